"""Random lives of a version: whatever is ordered and whatever dies, each client gets one answer, and soon enough."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import Asked, FakeLauncher, Script, pool_spec
from tserve.domain.phases import Phase
from tserve.domain.plan import PoolSpec
from tserve.domain.wire import HandlerFailed, JobReply
from tserve.errors import InternalServer
from tserve.runtime.pool import NoCapacity, Pool

LIMITS: dict[str, Any] = {
    "batch_delay_s": 0.5,
    "response_timeout_s": 20.0,
    "startup_timeout_s": 30.0,
    "retry_window_s": 60.0,
}
# By then every timeout and back-off of a life has run out, however they follow each other.
LONG_S = 50_000.0

scripts = st.sampled_from(
    [
        Script(),
        Script(batch_s=1.0),
        Script(batch_s=3.0, leave_s=1.0),
        Script(load_s=5.0),
        Script(load_s=math.inf),
        Script(load_s=1.0, load_dies=True),
        Script(load_garbage=True),
        Script(load_report={"ok": False, "reason": "import_error", "hopeless": True}),
        Script(load_report={"ok": False, "reason": "load_error"}),
        Script(batch_s=math.inf),
        Script(batch_s=math.inf, leave_s=math.inf),
        Script(dies_on_batch=1),
        Script(batch_s=1.0, dies_on_batch=2, exit=137),
        Script(deaf_on_batch=1),
        Script(garbage_on_batch=1),
        Script(dies_after_batch=True),
        Script(dies_idle_s=0.0),
        Script(dies_idle_s=2.0),
        Script(start_error="none left"),
        Script(answer=[]),
        Script(answer=HandlerFailed(503, "Prediction failed")),
    ]
)
drains = st.sampled_from([0.0, 0.5, 5.0, math.inf])
submits = st.tuples(st.just("submit"), st.integers(1, 4), st.none())
acts = st.one_of(
    submits,
    submits,
    st.tuples(st.just("leave"), st.integers(0, 20), st.none()),
    st.tuples(st.just("scale"), st.tuples(st.integers(-1, 3), st.integers(-1, 3)), drains),
    st.tuples(st.just("crash"), st.integers(0, 5), st.sampled_from([0, 1, 137])),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.25, 1.0, 7.0, 40.0]), st.none()),
)


class Life:
    """A pool, the clients that ask it, and those that wait for their wishes to come true."""

    def __init__(self, pool: Pool, launcher: FakeLauncher, spec: PoolSpec, waiters: trio.Nursery) -> None:
        self.jobs: list[Asked] = []
        self.left: set[Asked] = set()
        self.wishes = self.settled = 0
        self._pool, self._launcher, self._spec, self._waiters = pool, launcher, spec, waiters

    async def step(self, kind: str, what: object, how: object) -> None:
        match kind, what, how:
            case "submit", int(count), _:
                for _ in range(count):
                    self._submit()
            case "leave", int(which), _ if self.jobs:
                job = self.jobs[which % len(self.jobs)]
                if not job.outcomes:
                    self.left.add(job)
                self._pool.discard(job)
            case "scale", (int(fewest), int(most)), float(drain_s):
                self._spec = replace(self._spec, min_workers=fewest, max_workers=most)
                self._pool.apply(self._spec, drain_s=drain_s)
                self.wishes += 1
                self._waiters.start_soon(self._wait)
            case "crash", int(which), int(code) if self._launcher.alive:
                self._launcher.alive[which % len(self._launcher.alive)].crash(code)
            case "sleep", float(seconds), _:
                await trio.sleep(seconds)

    def _submit(self) -> None:
        job = Asked(str(len(self.jobs)))
        self.jobs.append(job)
        try:
            self._pool.submit(job)
        except NoCapacity as e:
            job.finish(InternalServer(e.reason))

    async def _wait(self) -> None:
        await self._pool.settled(patience_s=5.0)
        self.settled += 1

    def check(self) -> None:
        """Each client has one answer, and its own; each who waited for a wish knows."""
        for job in self.jobs:
            assert len(job.outcomes) == (0 if job in self.left else 1), f"job {job.text}"
            if job.outcomes and isinstance(job.outcome, JobReply):
                assert job.body == job.text
        assert self.settled == self.wishes
        living = self._pool.view().slots
        assert len(living) in self._spec.wanted
        assert {slot.phase for slot in living} <= {Phase.READY, Phase.FAILED}
        assert len(self._launcher.alive) == sum(slot.phase is Phase.READY for slot in living)
        assert self._pool.view().pending == 0


async def live(played: list[Script], batch_size: int, acts: list[tuple[str, object, object]], drain_s: float) -> None:
    launcher = FakeLauncher(*played)
    spec = pool_spec(2, batch_size=batch_size, queue_size=5, **LIMITS)
    pool = Pool(spec, launcher, itertools.count(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        life = Life(pool, launcher, spec, nursery)
        for act in acts:
            await life.step(*act)
        await trio.sleep(LONG_S)
        life.check()
        for _ in range(3):
            life._submit()
        pool.apply(None, drain_s=drain_s)
        with trio.fail_after(LONG_S):
            await pool.gone.wait()
    assert all(len(job.outcomes) == 1 for job in life.jobs[-3:])
    assert launcher.alive == []


@settings(max_examples=200)
@given(st.lists(scripts, min_size=1, max_size=5), st.sampled_from([1, 3]), st.lists(acts, max_size=25), drains)
def test_each_client_gets_one_answer(
    played: list[Script], batch_size: int, acts: list[tuple[str, object, object]], drain_s: float
) -> None:
    trio.run(live, played, batch_size, acts, drain_s, clock=trio.testing.MockClock(autojump_threshold=0))
