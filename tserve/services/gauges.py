"""What is true of the versions at this moment, for the metrics (docs/metrics.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tserve.domain.phases import Phase
from tserve.domain.registry import Registry
from tserve.metrics.recorder import Metrics
from tserve.runtime.pool import PoolView
from tserve.runtime.reconcile import Reconciler
from tserve.services.health import State, judge

Gauge = tuple[str, tuple[str, ...], float]


class Gauges:
    def __init__(self, metrics: Metrics, registry: Registry, reconciler: Reconciler) -> None:
        self._metrics = metrics
        self._registry = registry
        self._reconciler = reconciler

    def tidy(self) -> None:
        """Have what was counted of versions forgotten that are gone."""
        self._metrics.keep_only({(version.key.name, version.key.version) for version in self._registry})

    def read(self) -> Iterator[Gauge]:
        """Name, values of the labels, and value of each."""
        self.tidy()
        for version in self._registry:
            where = (version.key.name, version.key.version)
            pool = self._reconciler.pool(version.key)
            view = pool.view() if pool is not None else PoolView()
            health = judge(version, view, is_default=self._registry.is_default(version.key))
            yield "tserve_queue_depth", where, view.pending
            yield "tserve_queue_capacity", where, view.capacity
            yield "tserve_workers_wanted", where, health.wanted
            yield "tserve_worker_memory_bytes", where, sum(slot.memory for slot in view.slots)
            yield "tserve_version_default", where, health.is_default
            phases = Counter(slot.phase for slot in view.slots)
            for phase in Phase:
                if phase is not Phase.STOPPED:
                    yield "tserve_workers", (*where, phase.value), phases[phase]
            for state in State:
                yield "tserve_version_state", (*where, state.value), health.state is state
