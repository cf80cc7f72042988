"""Models that are no longer Python: ONNX, exported programs and libraries compiled ahead of time."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ts.torch_handler._optional import needed
from ts.torch_handler._weights import NO_WEIGHTS, require


def onnx_session(path: str, map_location: str | None, handler: str) -> Any:
    """An `onnxruntime.InferenceSession`, on CUDA where the handler is.  ModuleNotFoundError without onnxruntime.

    It computes on as many threads as torch does: a worker has a share of the processors, not all of them.
    """
    require(path)
    onnxruntime = needed("onnxruntime", "onnxruntime", f"{handler} runs {Path(path).name!r}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CUDAExecutionProvider"] if map_location == "cuda" else []
    return onnxruntime.InferenceSession(path, sess_options=options, providers=[*providers, "CPUExecutionProvider"])


def is_onnx(model: Any) -> bool:
    return type(model).__module__.startswith("onnxruntime.")


def run_onnx(session: Any, data: Any) -> Any:
    """Feed one value, a sequence of them in the order of the model's inputs, or a dict by input name.

    A value is a tensor, an array or lists of numbers, which are what torch makes of them: 32 bits for a fraction.
    Returns the tensor of a single output, a list of tensors of several.
    """
    if not isinstance(data, dict):
        names = [each.name for each in session.get_inputs()]
        is_one = not isinstance(data, (list, tuple)) or (
            len(names) == 1 and not any(hasattr(each, "shape") for each in data)
        )
        data = dict(zip(names, [data] if is_one else data, strict=True))
    arrays = {name: _array(value) for name, value in data.items()}
    results = [torch.as_tensor(each) for each in session.run(None, arrays)]
    return results[0] if len(results) == 1 else results


def _array(value: Any) -> Any:
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    return torch.as_tensor(value).numpy() if isinstance(value, (list, tuple)) else np.asarray(value)


def shared_library(path: str, device: Any) -> Any:
    """A function from a `.so` that `torch._export.aot_compile` made.  RuntimeError for any other file."""
    require(path)
    import torch._export

    try:
        return torch._export.aot_load(path, str(device))
    except RuntimeError as error:
        raise RuntimeError(f"{NO_WEIGHTS}: {Path(path).name!r} cannot be loaded: {error}") from error


def program(path: str, device: Any) -> Any:
    """A `.pt2` file: what `torch.export.save` or `torch._inductor.aoti_compile_and_package` wrote.

    Raises RuntimeError for a file that is neither.
    """
    require(path)
    name = Path(path).name
    if not zipfile.is_zipfile(path):
        raise RuntimeError(f"{NO_WEIGHTS}: {name!r} is not an exported program.")
    with zipfile.ZipFile(path) as archive:
        compiled = any("/aotinductor/" in f"/{each}" for each in archive.namelist())
    if compiled:
        return _compiled_program(path, device)
    try:
        exported = torch.export.load(path)
    except RuntimeError as error:
        raise RuntimeError(f"{NO_WEIGHTS}: {name!r} is not an exported program: {error}") from error
    if torch.device(device).type != "cpu":
        from torch.export.passes import move_to_device_pass

        exported = move_to_device_pass(exported, str(device))
    return exported.module()


def _compiled_program(path: str, device: Any) -> Any:
    import torch._inductor

    load = getattr(torch._inductor, "aoti_load_package", None)
    if load is None:
        raise RuntimeError(
            f"{NO_WEIGHTS}: {Path(path).name!r} is a package of AOTInductor, which torch {torch.__version__} does not "
            "load; torch 2.6 does."
        )
    index = torch.device(device).index
    return load(path) if index is None else load(path, device_index=index)
