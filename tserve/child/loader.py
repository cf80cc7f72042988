"""Finding and loading the handler of a model in the worker process (spec/inference.md section 10)."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from tserve.child.diagnosis import LoadFailed, diagnose
from tserve.child.files import MANIFEST, ModelFiles, listed, meant
from tserve.child.words import say, traceback_of
from tserve.domain.plan import WorkerSpec

Entry = Callable[[Any, Any], Any]


class Model:
    """A loaded handler: call `entry(data, context)` once per batch."""

    def __init__(self, entry: Entry, context: Any) -> None:
        self.entry = entry
        self.context = context


def load(spec: WorkerSpec) -> Model:
    """Import the handler and let it initialize.  Raises LoadFailed, also for whatever user code raises."""
    try:
        if spec.runtime == "LSP":
            detail = "runtime LSP (C++ workers) is not served by tserve"
            raise LoadFailed("unsupported_runtime", detail, file=MANIFEST, hopeless=True)
        _enter_model_dir(spec.model_dir)
        with _last_words():
            context = _context(spec)
            entry = _entry(spec, context)
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


def _enter_model_dir(model_dir: str) -> None:
    os.chdir(model_dir)
    sys.path.insert(0, model_dir)
    # What the handler starts as a process of its own finds the model's modules, too.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (inherited, model_dir)))


def _context(spec: WorkerSpec) -> Any:
    from ts import __version__
    from ts.context import Context

    return Context(
        spec.model_name,
        spec.model_dir,
        dict(spec.manifest) if spec.manifest is not None else None,
        spec.batch_size,
        spec.gpu_id,
        __version__,
        limit_max_image_pixels=spec.limit_max_image_pixels,
        model_yaml_config=_yaml(spec),
    )


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


def _entry(spec: WorkerSpec, context: Any) -> Entry:
    path, _, function = spec.handler.partition(":")
    name = path.rsplit("/", 1)[-1].removesuffix(".py")
    module = _import(name, spec)
    call = getattr(module, function or "handle", None)
    if callable(call):
        call(None, context)
        return call  # type: ignore[no-any-return]
    return _class_entry(module, function or "handle", spec, context)


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
    stock = f"ts.torch_handler.{name}"
    try:
        return importlib.import_module(stock)
    except ModuleNotFoundError as e:
        if not f"{stock}.".startswith(f"{e.name}."):
            raise
    found = sorted(files.modules())
    there = f"the archive has {listed(found, none='no Python modules')}{meant(name, found)}"
    raise _no_handler(f"no module {name!r} for handler {spec.handler!r}; {there}", files.namer_of_handler())


def _own(module: ModuleType, name: str, files: ModelFiles) -> ModuleType:
    """A module of the archive is not to be taken for one that was imported before, such as Python's own."""
    own = files.handler_file()
    if own and not files.name_of(getattr(module, "__file__", None)):
        raise _taken(own, name)
    return module


def _taken(file: str, name: str) -> LoadFailed:
    top = name.partition(".")[0]
    return _no_handler(f"{file} cannot be imported: there is another module {top!r}; rename the archive's", file)


def _no_handler(detail: str, file: str) -> LoadFailed:
    return LoadFailed("handler_not_found", detail, file=file, hopeless=True)


def _class_entry(module: ModuleType, function: str, spec: WorkerSpec, context: Any) -> Entry:
    file = ModelFiles(spec).handler_file()
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
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
        service.initialize(context)
    return service.handle  # type: ignore[no-any-return]
