"""The line that a metric is (spec/inference.md section 12), and how it reaches the server."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from ts.metrics.metric_type_enum import MetricTypes
from ts.metrics.unit import word_of

PREFIX = "[METRICS]"
sink: Callable[[str], bool] | None = None  # a worker's own way to its server; False says to print the line after all
_STDOUT = 1
_ONE_LINE = str.maketrans({"\n": " ", "\r": " "})


def line_of(
    name: str, unit: str | None, value: Any, dimensions: Iterable[tuple[str, Any]], kind: MetricTypes, request_id: str
) -> str:
    """One metric, without the prefix that gives it to the server.  Line breaks within become spaces."""
    labels = ",".join(f"{label}:{of}" for label, of in dimensions)
    origin = f"{socket.gethostname()},{int(time.time())}"
    line = f"{name}.{word_of(unit)}:{value}|#{labels}|#type:{kind.name}|#hostname:{origin}"
    return (f"{line},{request_id}" if request_id else line).translate(_ONE_LINE)


def emit(line: str) -> None:
    """Hand one line to the server.  Never raises for want of an output: a metric is no reason to fail a request.

    Where there is no `sink` for it, it is printed.  In a worker it goes to the descriptor in one piece, past Python's
    buffer: there the first half of what another thread prints may wait for its second.
    """
    if sink is not None and sink(line):
        return
    try:
        if sys.stdout.fileno() == _STDOUT:
            rest = f"{PREFIX}{line}\n".encode(errors="backslashreplace")
            while rest:
                rest = rest[os.write(_STDOUT, rest) :]
            return
    except (AttributeError, OSError, ValueError):  # closed, or something that only looks like a file
        pass
    try:
        sys.stdout.write(f"{PREFIX}{line}\n")
        sys.stdout.flush()
    except (AttributeError, OSError, ValueError):
        pass


def number_of(value: Any) -> Any:
    """The number in a value, such as a tensor with one element.  Raises TypeError, ValueError or RuntimeError."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, float)):
        return value
    if hasattr(value, "item"):
        value = value.item()
        return value if isinstance(value, (int, float)) else float(value)
    return float(value)
