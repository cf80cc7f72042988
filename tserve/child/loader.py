"""Finding and loading the handler of a model in the worker process (spec/inference.md section 10)."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import pkgutil
import sys
import uuid
from collections.abc import Callable, Iterator
from inspect import isabstract
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from tserve.child.diagnosis import LoadFailed, diagnose
from tserve.child.files import MANIFEST, ModelFiles, handler_folder, listed, meant
from tserve.child.words import say, traceback_of
from tserve.domain.plan import WorkerSpec

_HOME = str(Path(__file__).resolve().parents[2])  # of tserve and ts
_STOCK, _ENVELOPES = "ts.torch_handler", "ts.torch_handler.request_envelope"

Entry = Callable[[Any, Any], Any]
Settle = Callable[[Any], None]  # what a handler's first call returned, which may be a coroutine


class Model:
    """A loaded handler: call `entry(data, context)` once per batch."""

    def __init__(self, entry: Entry, context: Any) -> None:
        self.entry = entry
        self.context = context


def _ignore(result: Any) -> None:
    pass


def load(spec: WorkerSpec, *, settle: Settle = _ignore) -> Model:
    """Import the handler and let it initialize.  Raises LoadFailed, also for whatever user code raises."""
    try:
        if spec.runtime == "LSP":
            detail = "runtime LSP (C++ workers) is not served by tserve"
            raise LoadFailed("unsupported_runtime", detail, file=MANIFEST, hopeless=True)
        _enter_model_dir(spec)
        with _last_words():
            context = _context(spec)
            entry = _enveloped(_entry(spec, context, settle), spec.envelope)
    except LoadFailed as e:
        say(e.detail)
        raise
    except BaseException as e:  # the child's boundary: the server is told what user code raised, and decides
        raise _failure_of(e, spec) from e
    return Model(entry, context)


def _failure_of(error: BaseException, spec: WorkerSpec) -> LoadFailed:
    """What to report, said in the log as well.  Never raises: to look into an error runs code of the model's own."""
    detail = traceback_of(error)
    say(detail.rstrip())
    try:
        failure = _with_config(diagnose(error, spec), spec)
    except BaseException:
        return LoadFailed("load_error", detail)
    say(failure.detail.rstrip().rpartition("\n")[2])
    return failure


@contextlib.contextmanager
def _last_words() -> Iterator[None]:
    """While the model's code loads, have it say where it is when it ends the process behind Python's back.

    The server finds the file in what is printed here (tserve/domain/stack.py), as it does after a crash or a hang.
    """
    leave, worker = os._exit, os.getpid()

    def say_and_leave(status: int) -> NoReturn:
        if os.getpid() == worker:  # and not a process that the model's code forked
            os.write(2, f"os._exit({status}) while the model is loaded\n".encode())
            faulthandler.dump_traceback(2, all_threads=False)
        leave(status)

    os._exit = say_and_leave
    try:
        yield
    finally:
        os._exit = leave


def _enter_model_dir(spec: WorkerSpec) -> None:
    """The working folder, what can be imported, and the variables of spec/inference.md sections 16.2 and 17.

    The server's PYTHONPATH is in this interpreter's path by now.
    """
    inherited = [str(Path(each).absolute()) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    os.chdir(spec.model_dir)
    folder = handler_folder(spec)
    sys.path[:0] = [spec.model_dir, *folder]
    # A folder that was not there when the interpreter that this one is forked from started counts again.
    importlib.invalidate_caches()
    # What the handler starts as a process of its own finds the model's modules and `ts`, too.
    home = [] if Path(_HOME).name in ("site-packages", "dist-packages") else [_HOME]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*folder, *inherited, spec.model_dir, *home]))
    os.environ["TS_DECODE_INPUT_REQUEST"] = str(spec.decode_input).lower()
    os.environ["TS_IPEX_ENABLE"] = os.environ["TS_IPEX_GPU_ENABLE"] = "false"


def _context(spec: WorkerSpec) -> Any:
    from ts import __version__
    from ts.context import Context
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

    metrics = MetricsCacheYamlImpl(spec.metrics_config or None)
    metrics.model_name = spec.model_name
    metrics.set_request_ids(str(uuid.uuid4()))  # of no request: what a model emits while it loads
    context = Context(
        spec.model_name,
        spec.model_dir,
        dict(spec.manifest) if spec.manifest is not None else None,
        spec.batch_size,
        spec.gpu_id,
        __version__,
        limit_max_image_pixels=spec.limit_max_image_pixels,
        metrics=metrics,
        model_yaml_config=_yaml(spec),
    )
    # Upstream reads variables that nobody sets: renamed headers never reached the handlers.
    id_header, start_header, end_header = spec.sequence_headers
    context.header_key_sequence_id = id_header
    context.header_key_sequence_start = start_header
    context.header_key_sequence_end = end_header
    return context


def _yaml(spec: WorkerSpec) -> Any:
    """The model yaml for the handler; an unreadable one counts as none, as it does in the server."""
    if not spec.config_file:
        return {}
    config, problem = _read_yaml(spec.model_dir, spec.config_file)
    if problem:
        print(f"Failed to read {spec.config_file}: {problem}", file=sys.stderr)
    return config


def _read_yaml(model_dir: str, config_file: str) -> tuple[Any, str]:
    """What the file says, and why it cannot be read."""
    import yaml

    try:
        return yaml.safe_load(Path(model_dir, config_file).read_text("utf-8")), ""
    except (OSError, ValueError, yaml.YAMLError) as e:
        return {}, str(e)


def _with_config(failure: LoadFailed, spec: WorkerSpec) -> LoadFailed:
    """Code that fails for no reason that is known, with a yaml that counted as none, may have missed what that says."""
    if failure.reason != "load_error" or not spec.config_file:
        return failure
    _, problem = _read_yaml(spec.model_dir, spec.config_file)
    if not problem:
        return failure
    problem = " ".join(problem.split())
    detail = f"{failure.detail}{spec.config_file} cannot be read, so the model has none of its values: {problem}"
    return LoadFailed("bad_config", detail, file=spec.config_file)


def _entry(spec: WorkerSpec, context: Any, settle: Settle) -> Entry:
    path, _, function = spec.handler.partition(":")
    name = path.rsplit("/", 1)[-1].removesuffix(".py")
    module = _import(name, spec)
    call = getattr(module, function or "handle", None)
    if callable(call):
        settle(call(None, context))
        return call  # type: ignore[no-any-return]
    return _class_entry(module, function or "handle", spec, context, settle)


def _import(name: str, spec: WorkerSpec) -> ModuleType:
    files = ModelFiles(spec)
    if not name:
        raise _no_handler(f"handler {spec.handler!r} names no module; {files.contents()}", files.namer_of_handler())
    try:
        return _own(importlib.import_module(name), name, files)
    except ModuleNotFoundError as e:
        if not f"{name}.".startswith(f"{e.name}."):  # the module is there, something that it imports is not
            raise
    if own := files.handler_file():  # its folder is there, and hides behind another module of that name
        raise _taken(own, name)
    stock = f"{_STOCK}.{name}"
    try:
        return importlib.import_module(stock)
    except ModuleNotFoundError as e:
        if not f"{stock}.".startswith(f"{e.name}."):
            raise
    raise _no_handler(_where_it_is_not(name, files, spec), files.namer_of_handler())


def _where_it_is_not(name: str, files: ModelFiles, spec: WorkerSpec) -> str:
    found = sorted(files.modules())
    there = f"the archive has {listed(found, none='no Python modules')}{meant(name, found)}"
    path = os.environ["PYTHONPATH"].split(os.pathsep)
    outside = [each for each in path if each not in (spec.model_dir, _HOME)]
    sought = f"in the archive, in PYTHONPATH ({listed(outside, none='empty')}) and in {_STOCK}"
    folder = spec.handler.rpartition("/")[0]
    if folder and ":" not in spec.handler:
        sought += f", not in {folder}: a folder counts only where a function is named, as in {spec.handler}:handle"
    return f"no module {name!r} for handler {spec.handler!r}, sought {sought}; {there}"


def _own(module: ModuleType, name: str, files: ModelFiles) -> ModuleType:
    """A handler's module is not to be taken for one that was imported before, such as Python's own."""
    path = getattr(module, "__file__", None)
    own = files.handler_file()
    if own and not files.name_of(path):
        raise _taken(own, name)
    outside = "" if own else files.handler_outside()
    if outside and path != outside:
        raise _taken(outside, name)
    return module


def _taken(file: str, name: str) -> LoadFailed:
    top = name.partition(".")[0]
    return _no_handler(f"{file} cannot be imported: there is another module {top!r}; rename the handler's", file)


def _no_handler(detail: str, file: str) -> LoadFailed:
    return LoadFailed("handler_not_found", detail, file=file, hopeless=True)


def _enveloped(entry: Entry, name: str) -> Entry:
    """The entry point for requests as the envelope of that name has it; itself without one (section 10, 5)."""
    if not name:
        return entry
    modules = [found.name for found in pkgutil.iter_modules(importlib.import_module(_ENVELOPES).__path__)]
    envelope = _envelope(name) if name in modules else None
    if envelope is None:
        known = [each for each in modules if _envelope(each)]
        detail = f"there is no service_envelope {name!r}, but {listed(sorted(known), none='none')}{meant(name, known)}"
        raise LoadFailed("bad_envelope", detail, hopeless=True)
    return envelope(entry).handle  # type: ignore[no-any-return]


def _envelope(name: str) -> Any:
    """The first class of a module that is an envelope, None where there is none."""
    base = importlib.import_module(f"{_ENVELOPES}.base").BaseEnvelope
    module = importlib.import_module(f"{_ENVELOPES}.{name}")
    found = {each.__name__: each for each in _classes_of(module) if issubclass(each, base) and not isabstract(each)}
    return found[min(found)] if found else None


def _classes_of(module: ModuleType) -> list[type]:
    """Its own; imported ones do not count."""
    return [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]


def _class_entry(module: ModuleType, function: str, spec: WorkerSpec, context: Any, settle: Settle) -> Entry:
    file = ModelFiles(spec).handler_file()
    classes = _classes_of(module)
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        functions = (name for name, value in vars(module).items() if isinstance(value, FunctionType))
        near = f"; {function!r} is no function" if hasattr(module, function) else meant(function, functions)
        detail = f"handler {spec.handler!r}: expected a function entry point or exactly one class, found {names}{near}"
        raise _no_handler(detail, file)
    service = classes[0]()
    if not callable(getattr(service, "handle", None)):
        near = meant("handle", (name for name in dir(service) if not name.startswith("_")))
        detail = f"class {classes[0].__name__} of handler {spec.handler!r} has no method handle(data, context){near}"
        raise _no_handler(detail, file)
    if hasattr(service, "initialize"):
        settle(service.initialize(context))
    return service.handle  # type: ignore[no-any-return]
