"""A model split by DeepSpeed, as the yaml of its archive says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ts.torch_handler._optional import needed


def get_ds_engine(model: Any, ctx: Any) -> Any:
    """DeepSpeed's engine for `model`; its `module` is what to call.

    The yaml has `deepspeed: {config: <file>}`, and `checkpoint: <file>` beside it for weights that DeepSpeed loads;
    both are files of the archive.  Raises ModuleNotFoundError without the package, ValueError for a yaml or an archive
    that lacks one of them.
    """
    deepspeed = needed("deepspeed", "deepspeed", "get_ds_engine splits a model")
    settings = (ctx.model_yaml_config or {}).get("deepspeed") or {}
    model_dir = Path(ctx.system_properties.get("model_dir"))
    if "config" not in settings:
        raise ValueError("The model's yaml must name DeepSpeed's configuration: `deepspeed: {config: <file>}`.")
    files = {key: model_dir / settings[key] for key in ("config", "checkpoint") if settings.get(key)}
    for key, file in files.items():
        if not file.is_file():
            raise ValueError(f"The archive has no file {settings[key]!r}, which its yaml names in deepspeed.{key}.")
    return deepspeed.init_inference(model, **{key: str(file) for key, file in files.items()})
