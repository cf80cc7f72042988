"""What happens to workers, as the machine tells it to whoever keeps a history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from tserve.domain.versions import Key


class Happening(Enum):
    """The values are the words that clients see."""

    READY = "worker_ready"  # loaded; detail: load_s
    DIED = "worker_died"  # detail: reason, detail, exit, next_try_s
    GAVE_UP = "worker_gave_up"  # not started again; detail: reason, why
    STOPPED = "worker_stopped"  # told to leave, and gone; detail: reason when it had to be killed


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """`at` is epoch seconds; `worker` the slot's id as users see it; `detail` is JSON-able; `log_tail` up to 64 KiB."""

    at: float
    key: Key
    worker: int
    pid: int
    kind: Happening
    detail: Mapping[str, object] = field(default_factory=dict)
    log_tail: str = ""


Report = Callable[[WorkerEvent], None]  # must not block, must not raise
