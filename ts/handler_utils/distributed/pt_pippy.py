"""A model split into stages by PiPPy (package torchpippy), as the yaml of its archive says in `pippy`."""

from __future__ import annotations

import inspect
from typing import Any

from ts.torch_handler._optional import needed


def initialize_rpc_workers(local_rank: int, world_size: int, ctx: Any) -> None:
    """Connect the processes of the model, this one being number `local_rank` of `world_size`.

    The yaml may set `rpc_timeout`, in seconds, and `num_worker_threads`.  Address and port of the first process are
    torchrun's `MASTER_ADDR` and `MASTER_PORT`; torch raises ValueError without them.
    """
    rpc = needed("torch.distributed.rpc", "torch", "initialize_rpc_workers connects processes")
    import torch

    settings = _settings(ctx)
    given = {name: settings[name] for name in ("rpc_timeout", "num_worker_threads") if name in settings}
    options = rpc.TensorPipeRpcBackendOptions(**given)
    devices = torch.cuda.device_count()
    if devices:
        for other in range(world_size):
            options.set_device_map(f"worker{other}", {local_rank % devices: other % devices})
    rpc.init_rpc(f"worker{local_rank}", rank=local_rank, world_size=world_size, rpc_backend_options=options)


def get_pipeline_driver(model: Any, world_size: int, ctx: Any) -> Any:
    """The model in `world_size` stages, to be called in place of `model`.

    The yaml has `model_type` (`HF` for one of the package transformers), `input_names`, the arguments of the model that
    vary, and `chunks`, into how many parts a batch is split (default 1).  Raises ModuleNotFoundError without the
    package, ValueError without `input_names`.
    """
    pippy = needed("pippy", "torchpippy", "get_pipeline_driver splits a model")
    settings = _settings(ctx)
    names = settings.get("input_names")
    if not names:
        raise ValueError("The model's yaml must name the model's inputs: `pippy: {input_names: [...]}`.")
    arguments = inspect.signature(model.forward).parameters.values()
    fixed = {argument.name: argument.default for argument in arguments if argument.name not in names}
    is_hf = settings.get("model_type") == "HF"
    hf = needed("pippy.hf", "torchpippy", "get_pipeline_driver splits a model of transformers") if is_hf else None
    driver = pippy.compile(
        model,
        num_ranks=world_size,
        num_chunks=settings.get("chunks", 1),
        split_policy=pippy.split_into_equal_size(world_size),
        tracer=hf.PiPPyHFTracer() if hf else None,
        concrete_args=fixed,
    )
    if hf:
        hf.inject_pipeline_forward(model, driver)
        return model
    return driver


def _settings(ctx: Any) -> dict[str, Any]:
    return (ctx.model_yaml_config or {}).get("pippy") or {}
