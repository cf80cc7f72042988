"""Reading what an archive names: the class of a model file, a state dict, TorchScript; and saying what is wrong.

Each refusal starts with a sentence that the server knows (tserve/child/diagnosis.py) and names the file.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

NO_WEIGHTS = "No model weights could be loaded"
_FILES_SHOWN = 20
# What reading a file ends in that is no checkpoint at all.
_NO_CHECKPOINT = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def import_model_file(definition: Path) -> ModuleType:
    """Import `definition` by its bare name, as sibling files of the archive do.

    Raises RuntimeError if the file is missing, or if that name already belongs to another module.
    """
    if not definition.is_file():
        raise RuntimeError(
            f"Missing the model.py file: the manifest's modelFile is {definition.name!r}, {found(definition.parent)}"
        )
    module = importlib.import_module(definition.stem)
    origin = getattr(module, "__file__", None)
    if origin is None or Path(origin).resolve() != definition.resolve():
        raise RuntimeError(
            f"The model file {definition.name!r} cannot be imported: the module name {definition.stem!r} already "
            f"belongs to {origin or 'a built-in module'}. Rename the file."
        )
    return module


def load_tensors(path: str, device: Any, kind: str = "a state dict", advice: str = "model.state_dict()") -> Any:
    """Read tensors and plain containers; anything else is refused, since unpickling it can run any code.

    torch's own switch against that refusal counts here as well: servers that moved from TorchServe already set it.
    `kind` is what the file should be, `advice` what to save instead of other objects.
    """
    name = Path(path).name
    forced = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    try:
        return torch.load(path, map_location=device, weights_only=None if forced else True)
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(_why_refused(name, error, advice)) from error
    except _NO_CHECKPOINT as error:
        why = f"{type(error).__name__}: {_first_line(error)}"
        raise RuntimeError(f"{NO_WEIGHTS}: {name!r} cannot be read as {kind}. ({why})") from error


def _why_refused(name: str, error: pickle.UnpicklingError, advice: str) -> str:
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked is None:
        return f"{NO_WEIGHTS}: {name!r} is damaged or holds more than tensors."
    return (
        f"{NO_WEIGHTS}: {name!r} is refused because it asks for {asked[1]}, and unpickling that can run any code. "
        f"Save {advice} instead, or, if you trust the file, start the server with "
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 in its environment."
    )


def load_script(path: str, device: Any) -> Any:
    """Raises RuntimeError for a missing file and for one that is not TorchScript."""
    require(path)
    try:
        return torch.jit.load(path, map_location=device)
    except RuntimeError as error:
        if _is_torchscript(path):
            raise
        raise RuntimeError(
            f"{NO_WEIGHTS}: {Path(path).name!r} is not a TorchScript file. If it holds a state dict, "
            f"the archive needs a modelFile as well. ({_first_line(error)})"
        ) from error


def require(path: str) -> None:
    """Raises RuntimeError unless there is a file at `path`, saying what is there."""
    file = Path(path)
    if not file.is_file():
        raise RuntimeError(f"{NO_WEIGHTS}: the manifest's serializedFile is {file.name!r}, {found(file.parent)}")


def found(folder: Path) -> str:
    """What the model folder holds, to end a sentence about what it lacks."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else []
    more = f" and {len(names) - _FILES_SHOWN} more" if len(names) > _FILES_SHOWN else ""
    return f"but the model folder holds {', '.join(names[:_FILES_SHOWN]) or 'no files'}{more}."


def nothing_to_load(model_dir: str, manifest: Any, serialized_file: str | None) -> str:
    """Why a manifest without a model file gives no model."""
    if not serialized_file:
        lack = (
            "the archive has no manifest" if manifest is None else "the manifest names no serializedFile or modelFile"
        )
        return f"{NO_WEIGHTS}: {lack}, {found(Path(model_dir))}"
    if serialized_file.endswith(".so"):
        return (
            f"{NO_WEIGHTS}: {serialized_file!r} is a model compiled ahead of time, which is loaded only when the "
            "model's yaml says `pt2: {export: {aot_compile: true}}`."
        )
    return (
        f"{NO_WEIGHTS}: without a modelFile the serializedFile must be TorchScript (.pt), an exported program (.pt2), "
        f"ONNX (.onnx) or compiled ahead of time (.so); it is {serialized_file!r}."
    )


def _is_torchscript(path: str) -> bool:
    """A state dict is a zip file too, but has no `constants.pkl`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "no text")
