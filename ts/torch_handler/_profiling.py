"""A profiled batch: its operators in the log, its trace in a folder that chrome://tracing and TensorBoard read."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import profile, record_function, supported_activities, tensorboard_trace_handler

logger = logging.getLogger(__name__)


def profiled(
    steps: list[tuple[str, Callable[[Any], Any]]], data: Any, model_name: str, arguments: dict[str, Any]
) -> tuple[Any, Any]:
    """Hand `data` from step to step, each shown under its name.  Returns the last result and the profile.

    `arguments` are those of `torch.profiler.profile`; what they leave open are the activities that this machine has,
    the shapes of inputs, and a trace file in `pytorch_profiler/<model_name>` of the folder for temporary files.
    """
    if not arguments:
        arguments = {"activities": sorted(supported_activities(), key=str), "record_shapes": True}
    if "on_trace_ready" not in arguments:
        folder = Path(tempfile.gettempdir()) / "pytorch_profiler" / model_name
        arguments = arguments | {"on_trace_ready": tensorboard_trace_handler(str(folder))}
        logger.info("The trace of this batch goes to %s", folder)
    with profile(**arguments) as measured:
        for name, step in steps:
            with record_function(name):
                data = step(data)
    logger.info("%s", measured.key_averages().table(sort_by="cpu_time_total", row_limit=10))
    return data, measured
