"""Is it well?  The rule of /ping as recorded, and beside it the truth about each version, answered from memory."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tserve.domain.phases import LOADED, Phase
from tserve.domain.plan import Failure
from tserve.domain.registry import Registry
from tserve.domain.versions import Key, Version
from tserve.runtime.pool import PoolView
from tserve.runtime.reconcile import Reconciler


class State(Enum):
    """What there is of a version; docs/health.md has the table.  The values are the words that clients see."""

    STOPPED = "stopped"  # no worker is wanted
    READY = "ready"  # as many are loaded as are wanted
    DEGRADED = "degraded"  # some are, but fewer
    FAILED = "failed"  # none is, and one has given up
    STARTING = "starting"  # none is yet


@dataclass(frozen=True, slots=True)
class VersionHealth:
    """`ready` and `wanted` count workers, `restarts` is the sum over those there are, `failure` the latest of them."""

    key: Key
    is_default: bool
    state: State
    ready: int
    wanted: int
    restarts: int
    failure: Failure | None

    @property
    def lacks_nothing(self) -> bool:
        return self.state in (State.READY, State.STOPPED)


def judge(version: Version, view: PoolView, *, is_default: bool) -> VersionHealth:
    wanted = max(0, version.min_workers)
    ready = sum(slot.phase in LOADED for slot in view.slots)
    failures = [slot.failure for slot in view.slots if slot.failure is not None]
    return VersionHealth(
        version.key,
        is_default,
        _state(ready, wanted, any(slot.phase is Phase.FAILED for slot in view.slots)),
        ready,
        wanted,
        sum(slot.restarts for slot in view.slots),
        max(failures, key=lambda failure: failure.at, default=None),
    )


def _state(ready: int, wanted: int, one_gave_up: bool) -> State:
    if wanted == 0:
        return State.STOPPED
    if ready >= wanted:
        return State.READY
    if ready:
        return State.DEGRADED
    return State.FAILED if one_gave_up else State.STARTING


class Health:
    def __init__(self, registry: Registry, reconciler: Reconciler) -> None:
        self._registry = registry
        self._reconciler = reconciler

    def healthy(self) -> bool:
        """The rule of /ping: each default version has as many workers that have not given up as it wants.

        Source: spec/management.md section 5.5.  Workers that are about to be made count as there.
        """
        return all(self._enough(version) for version in self._registry.defaults() if version.min_workers > 0)

    def _enough(self, version: Version) -> bool:
        pool = self._reconciler.pool(version.key)
        if pool is None or pool.healthy() >= version.min_workers:
            return True
        return not any(slot.phase is Phase.FAILED for slot in pool.view().slots)

    def all(self) -> list[VersionHealth]:
        """Every version, those of a model together."""
        return [self._judge(version) for version in self._registry]

    def one(self, name: str, version: str | None) -> VersionHealth:
        """The version that a request with these words goes to.  Raises ModelNotFound, ModelVersionNotFound."""
        return self._judge(self._registry.find(name, version))

    def _judge(self, version: Version) -> VersionHealth:
        pool = self._reconciler.pool(version.key)
        view = pool.view() if pool is not None else PoolView()
        return judge(version, view, is_default=self._registry.is_default(version.key))
