"""Which GPU a worker gets, and which GPUs a version may use, as pure rules over a number of GPUs.

Rules: spec/management.md sections 3.5 (deviceType, deviceIds, parallelLevel) and 4.1 (GPU assignment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tserve.domain.model_config import ModelConfig
from tserve.domain.plan import PoolSpec
from tserve.domain.versions import Key

USAGE_OF_CPU = "N/A"
USAGE_UNKNOWN = "failed to obtained gpu usage"  # sic (spec/management.md section 6)
_MOST_COUNTED = 10_000  # versions; far more than have configured devices at a time


class Devices(Protocol):
    """The GPUs that workers may use, numbered from 0 as handlers see them."""

    async def detect(self) -> None:
        """Look, once; there is none before."""
        ...

    def count(self) -> int: ...

    def usage(self, gpu_id: int) -> str:
        """Describe's `gpuUsage`, from memory."""
        ...

    def readings(self) -> Sequence[tuple[str, Mapping[str, float]]]:
        """The number of each GPU, as text, and its figures by the names of their metrics, from memory."""
        ...


@dataclass(frozen=True, slots=True)
class Usable:
    """What a version may use: `gpus` of them, 0 for the processor; of these only `ids`, when they are given.

    `parallel_level` is the number of GPUs that one worker takes, 0 when it takes one or none.
    """

    gpus: int = 0
    ids: tuple[int, ...] | None = None
    parallel_level: int = 0

    @property
    def kind(self) -> str:
        return "gpu" if self.gpus else "cpu"

    @property
    def most_workers(self) -> int | None:
        """Workers that there are GPUs for; None: any number."""
        return len(self.ids or range(self.gpus)) // self.parallel_level if self.parallel_level else None


def usable(config: ModelConfig, gpus: int) -> Usable:
    """What a version may use on a machine with `gpus`; one number that is not there drops the whole list."""
    ids = config.device_ids
    if ids is not None and not all(number < gpus for number in ids):
        ids = None
    if config.device_type == "cpu" or gpus == 0:
        return Usable(ids=ids)
    return Usable(gpus, ids, config.parallel_level)


class Placement:
    """Gives each new slot its GPU.  It counts and holds nothing: a slot that leaves gives nothing back."""

    def __init__(self) -> None:
        self._last = 0  # of those that any GPU suits
        self._next: dict[Key, int] = {}

    def place(self, spec: PoolSpec) -> int | None:
        """The GPU of the version's next slot; None for the processor.

        Without configuration all versions go round all GPUs together, and the first gets 1 (modulo their number).
        With `device_ids` a version goes round its list from the first entry, with a parallel level in steps of it.
        """
        if spec.gpus == 0:
            return None
        if spec.device_ids is None and spec.parallel_level == 0:
            self._last = (self._last + 1) % spec.gpus
            return self._last
        mine = spec.device_ids or range(spec.gpus)
        at = self._next.get(spec.key, 0) % len(mine)
        self._next[spec.key] = at + max(1, spec.parallel_level)
        if len(self._next) > _MOST_COUNTED:
            del self._next[next(iter(self._next))]
        return mine[at]
