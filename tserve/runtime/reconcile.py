"""The reconciler: makes the pools follow the desired state of their versions.

It holds keys, not events, and reads the desired state when it gets to them.  It is handed that state by a
function and knows no store.  A bug in here ends the server, loudly; a failing version stays in its pool.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import trio

from tserve.domain.events import Report
from tserve.domain.plan import PoolSpec
from tserve.domain.versions import Key
from tserve.metrics.recorder import Metrics
from tserve.runtime.launcher import Launcher
from tserve.runtime.pool import Place, Pool, no_gpu, tell_nobody


class _Look:
    """One look at a version that callers wait for, and the pool that came of it."""

    def __init__(self) -> None:
        self.drain_s: float | None = None
        self.impatient = False
        self.pool: Pool | None = None
        self.done = trio.Event()


class Reconciler:
    """`desired` gives the pool spec of a version, None when it is not registered."""

    def __init__(
        self,
        desired: Callable[[Key], PoolSpec | None],
        launcher: Launcher,
        *,
        first_slot_number: int,
        report: Report = tell_nobody,
        place: Place = no_gpu,
        metrics: Metrics | None = None,
    ) -> None:
        self._desired = desired
        self._report = report
        self._place = place
        self._metrics = metrics or Metrics()
        self._launcher = launcher
        self._numbers = itertools.count(first_slot_number)
        self._pools: dict[Key, Pool] = {}
        self._retiring: set[Pool] = set()
        self._woken: dict[Key, _Look] = {}
        self._wake = trio.Event()

    def pool(self, key: Key) -> Pool | None:
        return self._pools.get(key)

    async def wake(self, key: Key, *, drain_s: float | None = None, impatient: bool = False) -> Pool | None:
        """Have a version looked at after its desired state changed; the pool as it stands once that is done.

        `drain_s` is the time that surplus workers get for what they have in hand, None leaves it as it was said
        before; `impatient` ends the waiting of those that back off.
        """
        look = self._woken.setdefault(key, _Look())
        look.drain_s = look.drain_s if drain_s is None else drain_s
        look.impatient = look.impatient or impatient
        self._wake.set()
        await look.done.wait()
        if look.pool is not None:
            await look.pool.caught_up()
        return look.pool

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reconcile until cancelled; pools live in here."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                woken, self._woken = self._woken, {}
                for key, look in woken.items():
                    look.pool = self._reconcile(nursery, key, look)
                    look.done.set()

    def _reconcile(self, nursery: trio.Nursery, key: Key, look: _Look) -> Pool | None:
        """The pool that follows the wish, or that leaves for it; None when there was and is nothing to do."""
        spec, pool = self._desired(key), self._pools.get(key)
        if spec is None:
            if pool is not None:
                del self._pools[key]
                self._retiring.add(pool)
                pool.apply(None, drain_s=look.drain_s)
        elif pool is not None:
            pool.apply(spec, drain_s=look.drain_s, impatient=look.impatient)
        elif spec.wanted[-1] > 0:  # a version without workers needs no machine
            pool = self._pools[key] = Pool(
                spec, self._launcher, self._numbers, report=self._report, place=self._place, metrics=self._metrics
            )
            nursery.start_soon(self._run_pool, pool)
        return pool

    async def _run_pool(self, pool: Pool) -> None:
        try:
            await pool.run()
        finally:
            self._retiring.discard(pool)

    async def drain(self, *, drain_s: float) -> None:
        """Retire every pool and wait until all are gone; `drain_s` bounds it but for the ends of processes."""
        pools = [*self._pools.values(), *self._retiring]
        self._pools.clear()
        for pool in pools:
            pool.apply(None, drain_s=drain_s)
        for pool in pools:
            await pool.gone.wait()
