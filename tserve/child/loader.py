"""Finding and loading the handler of a model in the worker process (spec/inference.md section 10)."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tserve.domain.plan import WorkerSpec

Entry = Callable[[Any, Any], Any]
_DETAIL_LIMIT = 16 << 10


class LoadFailed(Exception):
    """The model cannot be loaded: `reason` is a code of docs/errors.md, `hopeless` that another try cannot help."""

    def __init__(self, reason: str, detail: str, *, code: int = 500, hopeless: bool = False) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.code, self.hopeless = reason, detail[-_DETAIL_LIMIT:], code, hopeless

    def report(self) -> dict[str, Any]:
        return {
            "ok": False,
            "reason": self.reason,
            "detail": self.detail,
            "code": self.code,
            "hopeless": self.hopeless,
        }


class Model:
    """A loaded handler: call `entry(data, context)` once per batch."""

    def __init__(self, entry: Entry, context: Any) -> None:
        self.entry = entry
        self.context = context


def load(spec: WorkerSpec) -> Model:
    """Import the handler and let it initialize.  Raises LoadFailed, also for what user code raises."""
    try:
        if spec.runtime == "LSP":
            raise LoadFailed("unsupported_runtime", "runtime LSP (C++ workers) is not served by tserve", hopeless=True)
        _enter_model_dir(spec.model_dir)
        context = _context(spec)
        entry = _entry(spec.handler, context)
    except LoadFailed as e:
        print(e.detail, file=sys.stderr, flush=True)
        raise
    except Exception as e:  # the child's boundary: whatever user code raises, the server is told and decides
        traceback.print_exc()
        raise _failure_of(e) from e
    return Model(entry, context)


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
        None,
        __version__,
        limit_max_image_pixels=spec.limit_max_image_pixels,
        model_yaml_config=_yaml(spec),
    )


def _yaml(spec: WorkerSpec) -> Any:
    """The model yaml for the handler; an unreadable one counts as none, as it does in the server."""
    if not spec.config_file:
        return {}
    import yaml

    try:
        return yaml.safe_load(Path(spec.model_dir, spec.config_file).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as e:
        print(f"Failed to read {spec.config_file}: {e}", file=sys.stderr)
        return {}


def _entry(handler: str, context: Any) -> Entry:
    path, _, function = handler.partition(":")
    name = path.rsplit("/", 1)[-1].removesuffix(".py")
    module = _import(name, handler)
    call = getattr(module, function or "handle", None)
    if callable(call):
        call(None, context)
        return call  # type: ignore[no-any-return]
    return _class_entry(module, handler, context)


def _import(name: str, handler: str) -> ModuleType:
    if not name:
        raise LoadFailed("handler_not_found", f"handler {handler!r} names no module", hopeless=True)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if not f"{name}.".startswith(f"{e.name}."):  # the module is there, something that it imports is not
            raise
    stock = f"ts.torch_handler.{name}"
    try:
        return importlib.import_module(stock)
    except ModuleNotFoundError as e:
        if not f"{stock}.".startswith(f"{e.name}."):
            raise
    found = sorted(p.stem for p in Path.cwd().glob("*.py"))
    detail = f"no module {name!r} for handler {handler!r}; the archive has {', '.join(found) or 'no Python modules'}"
    raise LoadFailed("handler_not_found", detail, hopeless=True)


def _class_entry(module: ModuleType, handler: str, context: Any) -> Entry:
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        detail = f"handler {handler!r}: expected a function entry point or exactly one class, found {names}"
        raise LoadFailed("handler_not_found", detail, hopeless=True)
    service = classes[0]()
    if not callable(getattr(service, "handle", None)):
        detail = f"class {classes[0].__name__} of handler {handler!r} has no method handle(data, context)"
        raise LoadFailed("handler_not_found", detail, hopeless=True)
    if hasattr(service, "initialize"):
        service.initialize(context)
    return service.handle  # type: ignore[no-any-return]


def _failure_of(error: Exception) -> LoadFailed:
    detail = "".join(traceback.format_exception(error))
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "CUDA" in str(error)):
        return LoadFailed("out_of_memory", detail, code=507)
    if isinstance(error, ImportError):
        return LoadFailed("import_error", detail, hopeless=True)
    if isinstance(error, SyntaxError):
        return LoadFailed("syntax_error", detail, hopeless=True)
    return LoadFailed("load_error", detail)
