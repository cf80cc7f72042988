"""BaseHandler: picks the device, loads the model an archive names and answers a batch (spec/inference.md section 13).

What needs no `self` stands outside the class on purpose: any further method name could collide with one of a subclass.
Importing it costs torch, and touches no accelerator.
"""

from __future__ import annotations

import abc
import importlib
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler import _exported
from ts.torch_handler._faster import faster
from ts.torch_handler._profiling import profiled
from ts.torch_handler._requests import content_of
from ts.torch_handler._weights import import_model_file, load_script, load_tensors, nothing_to_load, require
from ts.utils.util import list_classes_from_module, load_label_mapping

# Handlers import it from here.
logger = logging.getLogger(__name__)


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

        A `modelFile` means an eager model, with the weights of `serializedFile` if there is one; otherwise the ending
        of `serializedFile` says what it is: `.pt` TorchScript, `.onnx`, `.pt2` an exported program, or `.so` a library
        compiled ahead of time.  Then yaml `pt2` or TS_IPEX_ENABLE may make it faster.  Raises RuntimeError, ValueError
        (not exactly one class in the model file), pickle.UnpicklingError (weights that hold more than tensors) or
        ModuleNotFoundError (ONNX without onnxruntime), each naming the file.
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
            self.model.eval()
        else:
            self.model = _load_by_ending(self)
            if self.model is None:
                raise RuntimeError(nothing_to_load(model_dir, self.manifest, serialized_file))
        self.model = faster(self.model, getattr(self, "model_yaml_config", None))
        self.mapping = load_label_mapping(str(Path(model_dir) / "index_to_name.json"))
        self.initialized = True

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        """Raises RuntimeError for a missing file and for one that is not TorchScript."""
        return load_script(model_pt_path, self.device)

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """Make the one class of `model_file`, with the state dict at `model_pt_path` if that is given.

        `model_dir` must be on `sys.path`, as it is in a worker.  Raises as `initialize` does.
        """
        module = import_model_file(Path(model_dir) / model_file)
        classes = list_classes_from_module(module)
        if len(classes) != 1:
            names = ", ".join(cls.__name__ for cls in classes) or "none"
            raise ValueError(
                f"Expected only one class as model definition. {model_file!r} defines {len(classes)}: {names}."
            )
        model = classes[0]()
        if model_pt_path:
            require(model_pt_path)
            weights = load_tensors(model_pt_path, None if self.map_location is None else self.device)
            try:
                model.load_state_dict(weights)
            except (RuntimeError, TypeError) as error:
                raise RuntimeError(
                    f"The weights of {Path(model_pt_path).name!r} do not fit {classes[0].__name__} of {model_file!r}: "
                    f"{error}"
                ) from error
        return model

    def _load_torch_export_aot_compile(self, model_so_path: str) -> Any:
        """Raises RuntimeError for a missing file and for one that is no such library."""
        return _exported.shared_library(model_so_path, self.device)

    def _use_torch_export_aot_compile(self) -> bool:
        """Whether the model's yaml says `pt2: {export: {aot_compile: true}}`."""
        config = getattr(self, "model_yaml_config", None)
        pt2 = config.get("pt2") if isinstance(config, dict) else None
        export = pt2.get("export") if isinstance(pt2, dict) else None
        return isinstance(export, dict) and export.get("aot_compile") is True

    @timed
    def preprocess(self, data: Any) -> Any:
        """Rows of the batch to one tensor on the model's device."""
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's output for `data`; an ONNX model is fed by the order of its inputs."""
        with torch.inference_mode():
            if _exported.is_onnx(self.model):
                return _exported.run_onnx(self.model, data)
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> Any:
        """The model's output to a list with one entry per row."""
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Answer one batch: describe, explain or predict, as the headers of its first request ask.

        With ENABLE_TORCH_PROFILER in the environment predictions and explanations are profiled.
        """
        started = time.perf_counter()
        self.context = context
        if self._is_describe():
            output: Any = [self.describe_handle()]
        elif os.environ.get("ENABLE_TORCH_PROFILER"):
            output, _ = self._infer_with_profiler(data)
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
        row = raw_data[0] if raw_data and isinstance(raw_data[0], dict) else {}
        target = row.get("target")
        return get_insights(data_preprocess, content_of(row), target or 0)

    def describe_handle(self) -> Any:
        """Override it to say more in a describe call with `customized=true`."""
        return None

    def get_device(self) -> Any:
        return self.device

    def _infer_with_profiler(self, data: Any) -> tuple[Any, Any]:
        """The answers, and the profile; `profiler_args` are the arguments of `torch.profiler.profile`."""
        steps = [("preprocess", self.preprocess)]
        if self._is_explain():
            steps.append(("explain", lambda prepared: self.explain_handle(prepared, data)))
        else:
            steps += [("inference", self.inference), ("postprocess", self.postprocess)]
        manifest = getattr(self, "manifest", None) or {}
        name = manifest.get("model", {}).get("modelName") or ""
        return profiled(steps, data, name, getattr(self, "profiler_args", {}))

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


def _load_by_ending(handler: BaseHandler) -> Any:
    """The model of the handler's `model_pt_path`, ready to be called; None if its ending says nothing."""
    path = handler.model_pt_path or ""
    if path.endswith(".pt"):
        model = handler._load_torchscript_model(path)
        model.eval()
        return model
    if path.endswith(".onnx"):
        return _exported.onnx_session(path, handler.map_location, type(handler).__name__)
    if path.endswith(".pt2"):
        return _exported.program(path, handler.device)
    if path.endswith(".so") and handler._use_torch_export_aot_compile():
        return handler._load_torch_export_aot_compile(path)
    return None
