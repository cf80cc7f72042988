"""Functions and classes that public handlers import from `ts.utils.util` (spec/inference.md sections 13 to 15)."""

from __future__ import annotations

import enum
import functools
import inspect
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

logger = logging.getLogger(__name__)

# HTML tags and entities, as text handlers strip them.
CLEANUP_REGEX = re.compile(r"<[^>\n]*>|&(?:[a-z0-9]+|#[0-9]{1,6}|#x[0-9a-f]{1,6});")


class PredictionException(Exception):
    """Raised by a handler to fail the whole batch with its own message and HTTP status."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


class PT2Backend(str, enum.Enum):  # noqa: UP042 - its str() is "PT2Backend.EAGER", which StrEnum would change
    """The `torch.compile` backends an archive's yaml may name."""

    EAGER = "eager"
    AOT_EAGER = "aot_eager"
    INDUCTOR = "inductor"
    NVFUSER = "nvfuser"
    AOT_NVFUSER = "aot_nvfuser"
    AOT_CUDAGRAPHS = "aot_cudagraphs"
    OFI = "ofi"
    FX2TRT = "fx2trt"
    ONNXRT = "onnxrt"
    IPEX = "ipex"
    TORCHXLA_TRACE_ONCE = "torchxla_trace_once"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    HPU_BACKEND = "hpu_backend"


def check_valid_pt2_backend(backend: str) -> bool:
    """An unknown backend is a warning in the log, never an error."""
    known = [member.value for member in PT2Backend]
    if backend in known:
        return True
    logger.warning("%s is not a known torch.compile backend; known are %s", backend, ", ".join(known))
    return False


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """The classes defined in `module` itself (imported ones do not count), by name; optionally of one family."""
    classes = [
        member for _, member in inspect.getmembers(module, inspect.isclass) if member.__module__ == module.__name__
    ]
    return [cls for cls in classes if parent_class is None or issubclass(cls, parent_class)]


def load_label_mapping(mapping_file_path: str) -> dict[str, str] | None:
    """Read an `index_to_name.json`: class index, as text, to label.  A missing file is a warning and None.

    Three forms are read: `{"0": "label"}`, `{"0": ["id", "label"]}` (the last element counts) and
    `{"object_type_names": [...]}`.  Anything else raises ValueError, which names the file.
    """
    file = Path(mapping_file_path)
    if not file.is_file():
        logger.warning("%s is missing: results will show class indices instead of labels", mapping_file_path)
        return None
    try:
        mapping = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} is not valid JSON: {error}") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"{file.name} must hold a JSON object of index and label, not {type(mapping).__name__}.")
    names = mapping.get("object_type_names")
    if isinstance(names, list):
        return {str(index): name for index, name in enumerate(names)}
    return {index: _label(file.name, index, value) for index, value in mapping.items()}


def _label(file_name: str, index: str, value: Any) -> str:
    label = value[-1] if isinstance(value, list) and value else value
    if not isinstance(label, str):
        raise ValueError(f"{file_name}: the label of {index!r} must be a string or a list of strings, not {value!r}.")
    return label


def map_class_to_label(
    probs: list[Any], mapping: dict[str, str] | None = None, lbl_classes: Iterable[Iterable[Any]] | None = None
) -> list[dict[str, Any]]:
    """One `{label: probability}` per row of `probs`.

    `lbl_classes` names the class of each probability, row by row; without it a probability's place is its class.
    Without `mapping` the class itself, as text, is the label.  Raises ValueError if `probs` is not a list (a tensor
    needs `.tolist()` first) or `mapping` is not a dict, KeyError for a class the mapping lacks.
    """
    if not isinstance(probs, list):
        raise ValueError(f"probs must be a list of rows, not {type(probs).__name__}.")
    if mapping is not None and not isinstance(mapping, dict):
        raise ValueError(f"mapping must be a dict, not {type(mapping).__name__}.")
    if lbl_classes is None:
        lbl_classes = [range(len(row)) for row in probs]
    return [
        {(str(cls) if mapping is None else mapping[str(cls)]): prob for cls, prob in zip(classes, row, strict=False)}
        for classes, row in zip(lbl_classes, probs, strict=False)
    ]


def get_yaml_config(yaml_file_path: str) -> Any:
    """The content of a model's yaml file; None if the file is empty."""
    with Path(yaml_file_path).open(encoding="utf-8") as file:
        return yaml.safe_load(file)


def deprecated(
    version: str, replacement: str = "", klass: type[Warning] = PendingDeprecationWarning
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function as going away in `version`; each call warns with `klass` at the caller's line."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        advice = f"; use {replacement} instead" if replacement else ""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            warnings.warn(f"{function.__name__} is deprecated in {version}{advice}", klass, stacklevel=2)
            return function(*args, **kwargs)

        return call

    return mark
