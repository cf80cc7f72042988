"""BaseHandler: picks the device, loads eager or TorchScript weights and answers a batch (spec/inference.md section 13).

Functions of this module are private and outside the class on purpose: any further method name could collide with one
of a subclass.  Importing it costs torch, and touches no accelerator.
"""

from __future__ import annotations

import abc
import importlib
import logging
import os
import pickle
import re
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ts.utils.util import list_classes_from_module, load_label_mapping

logger = logging.getLogger(__name__)

_NO_WEIGHTS = "No model weights could be loaded"
_NOT_LOADED_HERE = {".onnx": "an ONNX model", ".so": "a model compiled ahead of time"}
_FILES_SHOWN = 20


class BaseHandler(abc.ABC):  # noqa: B024 - subclasses rely on the metaclass for abstract methods of their own
    """Subclass it and override what differs: mostly `preprocess` and `postprocess`.

    Subclasses may skip `__init__`, `initialize` or both: `handle` itself relies on neither.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, str] | None = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: Any = None
        self.map_location: str | None = None
        self.explain = False
        self.target = 0
        self.profiler_args: dict[str, Any] = {}

    def initialize(self, context: Any) -> None:
        """Load the model that the manifest names, and the labels of `index_to_name.json` if there are any.

        A `modelFile` means an eager model, with the weights of `serializedFile` if there is one; otherwise
        `serializedFile` must be TorchScript (`.pt`).  Raises RuntimeError, ValueError (not exactly one class in the
        model file) or pickle.UnpicklingError (weights that hold more than tensors), each naming the file.
        """
        if hasattr(context, "model_yaml_config"):
            self.model_yaml_config = context.model_yaml_config
        properties = context.system_properties
        self.device, self.map_location = _choose_device(properties.get("gpu_id"))
        self.manifest = context.manifest
        named = (self.manifest or {}).get("model") or {}
        model_dir = properties.get("model_dir")
        serialized_file, model_file = named.get("serializedFile"), named.get("modelFile")
        self.model_pt_path = str(Path(model_dir) / serialized_file) if serialized_file else None

        if model_file:
            self.model = self._load_pickled_model(model_dir, model_file, self.model_pt_path)
            self.model.to(self.device)
        elif self.model_pt_path and self.model_pt_path.endswith(".pt"):
            self.model = self._load_torchscript_model(self.model_pt_path)
        else:
            raise RuntimeError(_nothing_to_load(model_dir, self.manifest, serialized_file))
        self.model.eval()
        _warn_of_idle_options(getattr(self, "model_yaml_config", None))
        self.mapping = load_label_mapping(str(Path(model_dir) / "index_to_name.json"))
        self.initialized = True

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        """Raises RuntimeError for a missing file and for one that is not TorchScript."""
        _require(model_pt_path)
        try:
            return torch.jit.load(model_pt_path, map_location=self.device)
        except RuntimeError as error:
            if _is_torchscript(model_pt_path):
                raise
            raise RuntimeError(
                f"{_NO_WEIGHTS}: {Path(model_pt_path).name!r} is not a TorchScript file. If it holds a state dict, "
                f"the archive needs a modelFile as well. ({_first_line(error)})"
            ) from error

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """Make the one class of `model_file`, with the state dict at `model_pt_path` if that is given.

        `model_dir` must be on `sys.path`, as it is in a worker.  Raises as `initialize` does.
        """
        module = _import_model_file(Path(model_dir) / model_file)
        classes = list_classes_from_module(module)
        if len(classes) != 1:
            names = ", ".join(cls.__name__ for cls in classes) or "none"
            raise ValueError(
                f"Expected only one class as model definition. {model_file!r} defines {len(classes)}: {names}."
            )
        model = classes[0]()
        if model_pt_path:
            weights = _load_weights(model_pt_path, None if self.map_location is None else self.device)
            try:
                model.load_state_dict(weights)
            except (RuntimeError, TypeError) as error:
                raise RuntimeError(
                    f"The weights of {Path(model_pt_path).name!r} do not fit {classes[0].__name__} of {model_file!r}: "
                    f"{error}"
                ) from error
        return model

    def preprocess(self, data: Any) -> Any:
        """Rows of the batch to one tensor on the model's device."""
        return torch.as_tensor(data, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> Any:
        """The model's output to a list with one entry per row."""
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Answer one batch: describe, explain or predict, as the headers of its first request ask."""
        started = time.perf_counter()
        self.context = context
        if self._is_describe():
            output: Any = [self.describe_handle()]
        else:
            prepared = self.preprocess(data)
            if self._is_explain():
                output = self.explain_handle(prepared, data)
            else:
                output = self.postprocess(self.inference(prepared))
        metrics = getattr(context, "metrics", None)
        if metrics is not None:
            metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return output

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """Ask the subclass's `get_insights(tensor, raw, target)`; raw input and target are those of the first row."""
        get_insights = getattr(self, "get_insights", None)
        if get_insights is None:
            raise NotImplementedError(f"{type(self).__name__} has no get_insights method, so it cannot explain.")
        row = raw_data[0]
        if not isinstance(row, dict):
            return get_insights(data_preprocess, None, 0)
        return get_insights(data_preprocess, row.get("data") or row.get("body"), row.get("target") or 0)

    def describe_handle(self) -> Any:
        """Override it to say more in a describe call with `customized=true`."""
        return None

    def get_device(self) -> Any:
        return self.device

    def _is_explain(self) -> bool:
        if self.context and self.context.get_request_header(0, "explain") == "True":
            self.explain = True
            return True
        return False

    def _is_describe(self) -> bool:
        return bool(self.context) and self.context.get_request_header(0, "describe") == "True"


def _choose_device(gpu_id: int | str | None) -> tuple[Any, str | None]:
    """The device and its `map_location`, which is None for XLA.  No `gpu_id` means no GPU."""
    if gpu_id is not None:
        if torch.cuda.is_available():
            return torch.device(f"cuda:{gpu_id}"), "cuda"
        if os.environ.get("TS_IPEX_GPU_ENABLE") == "true" and torch.xpu.is_available():
            return torch.device(f"xpu:{gpu_id}"), "xpu"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "mps"
    try:
        return importlib.import_module("torch_xla.core.xla_model").xla_device(), None
    except ImportError:
        return torch.device("cpu"), "cpu"


def _import_model_file(definition: Path) -> ModuleType:
    """Import `definition` by its bare name, as sibling files of the archive do.

    Raises RuntimeError if the file is missing, or if that name already belongs to another module.
    """
    if not definition.is_file():
        raise RuntimeError(
            f"Missing the model.py file: the manifest's modelFile is {definition.name!r}, {_found(definition.parent)}"
        )
    module = importlib.import_module(definition.stem)
    origin = getattr(module, "__file__", None)
    if origin is None or Path(origin).resolve() != definition.resolve():
        raise RuntimeError(
            f"The model file {definition.name!r} cannot be imported: the module name {definition.stem!r} already "
            f"belongs to {origin or 'a built-in module'}. Rename the file."
        )
    return module


def _load_weights(path: str, device: Any) -> Any:
    """Read a state dict; anything but tensors is refused, since unpickling it can run any code.

    torch's own switch against that refusal counts here as well: servers that moved from TorchServe already set it.
    """
    _require(path)
    name = Path(path).name
    forced = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    try:
        return torch.load(path, map_location=device, weights_only=None if forced else True)
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(_why_refused(name, error)) from error
    except (EOFError, LookupError, RuntimeError, ValueError) as error:
        # A file that is no checkpoint at all ends in any of these, KeyError included.
        why = f"{type(error).__name__}: {_first_line(error)}"
        raise RuntimeError(f"{_NO_WEIGHTS}: {name!r} cannot be read as a state dict. ({why})") from error


def _why_refused(name: str, error: pickle.UnpicklingError) -> str:
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked is None:
        return f"{_NO_WEIGHTS}: {name!r} is damaged or holds more than tensors."
    return (
        f"{_NO_WEIGHTS}: {name!r} is refused because it asks for {asked[1]}, and unpickling that can run any code. "
        "Save model.state_dict() instead, or, if you trust the file, start the server with "
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 in its environment."
    )


def _nothing_to_load(model_dir: str, manifest: Any, serialized_file: str | None) -> str:
    if not serialized_file:
        lack = (
            "the archive has no manifest" if manifest is None else "the manifest names no serializedFile or modelFile"
        )
        return f"{_NO_WEIGHTS}: {lack}, {_found(Path(model_dir))}"
    kind = _NOT_LOADED_HERE.get(Path(serialized_file).suffix)
    if kind:
        return f"{_NO_WEIGHTS}: {serialized_file!r} is {kind}, which this release does not load."
    return (
        f"{_NO_WEIGHTS}: without a modelFile the serializedFile must be TorchScript and end in .pt; "
        f"it is {serialized_file!r}."
    )


def _require(path: str) -> None:
    file = Path(path)
    if not file.is_file():
        raise RuntimeError(f"{_NO_WEIGHTS}: the manifest's serializedFile is {file.name!r}, {_found(file.parent)}")


def _found(folder: Path) -> str:
    """What the model folder holds, to end a sentence about what it lacks."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else []
    more = f" and {len(names) - _FILES_SHOWN} more" if len(names) > _FILES_SHOWN else ""
    return f"but the model folder holds {', '.join(names[:_FILES_SHOWN]) or 'no files'}{more}."


def _is_torchscript(path: str) -> bool:
    """A state dict is a zip file too, but has no `constants.pkl`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "no text")


def _warn_of_idle_options(config: Any) -> None:
    """Say which options that make a model faster or measured this release leaves aside; the model runs without."""
    config = config if isinstance(config, dict) else {}
    settings = config.get("handler")
    idle = {
        "yaml `pt2`": bool(config.get("pt2")),
        "yaml `handler.profile`": isinstance(settings, dict) and settings.get("profile") is True,
        "TS_IPEX_ENABLE": os.environ.get("TS_IPEX_ENABLE") == "true",
        "ENABLE_TORCH_PROFILER": bool(os.environ.get("ENABLE_TORCH_PROFILER")),
    }
    for option, is_set in idle.items():
        if is_set:
            logger.warning("%s is set but has no effect in this release", option)
