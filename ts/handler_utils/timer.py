"""`timed`: how long the steps of a handler take, once the model's yaml asks for it (spec/inference.md section 13)."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Emit `ts_handler_<function>`, in ms, for each call of this method, if the yaml has `handler: {profile: true}`.

    The method's object needs `context`, with `metrics` and `model_yaml_config`; as long as one of them is not there,
    nothing is measured.  A coroutine is measured to its end.  What a call that raises took is not emitted.
    """
    name = f"ts_handler_{function.__name__}"

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        metrics = _metrics_of(args)
        if metrics is None:
            return function(*args, **kwargs)
        started = time.perf_counter()
        result = function(*args, **kwargs)
        metrics.add_time(name, _ms_since(started))
        return result

    @functools.wraps(function)
    async def wait_for(*args: Any, **kwargs: Any) -> Any:
        metrics = _metrics_of(args)
        started = time.perf_counter()
        result = await function(*args, **kwargs)
        if metrics is not None:
            metrics.add_time(name, _ms_since(started))
        return result

    return wait_for if inspect.iscoroutinefunction(function) else call


def _metrics_of(args: tuple[Any, ...]) -> Any:
    """Where to emit, or None when nothing is to be measured."""
    context = getattr(args[0], "context", None) if args else None
    config = getattr(context, "model_yaml_config", None)
    if not isinstance(config, dict):
        return None
    settings = config.get("handler")
    if not isinstance(settings, dict) or settings.get("profile") is not True:
        return None
    return getattr(context, "metrics", None)


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
