"""The reconciler on fakes: pools follow the desired state of their versions, each for itself."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
import trio.testing

from tests.fakes import Asked, FakeLauncher, Script, pool_spec
from tserve.domain.phases import Phase
from tserve.domain.plan import PoolSpec
from tserve.domain.versions import Key
from tserve.runtime.pool import Pool, Settled
from tserve.runtime.reconcile import Reconciler

Clock = trio.testing.MockClock
A, B = Key("a", "1"), Key("b", "1")
LONG_S = 80_000.0


class Machine:
    """A reconciler with its desired state, which tests write into."""

    def __init__(self, launcher: FakeLauncher) -> None:
        self.desired: dict[Key, PoolSpec] = {}
        self.asked_for: list[Key] = []
        self.launcher = launcher
        self.reconciler = Reconciler(self._spec, launcher, first_slot_number=9000)

    def _spec(self, key: Key) -> PoolSpec | None:
        self.asked_for.append(key)
        return self.desired.get(key)

    def write(self, key: Key, spec: PoolSpec | None) -> None:
        if spec is None:
            self.desired.pop(key, None)
        else:
            self.desired[key] = replace(spec, key=key)

    async def want(self, key: Key, spec: PoolSpec | None, *, drain_s: float = math.inf) -> Pool | None:
        """Write and wake, as a management call does."""
        self.write(key, spec)
        with trio.fail_after(LONG_S):
            return await self.reconciler.wake(key, drain_s=drain_s)

    async def up(self, key: Key, count: int = 1) -> Pool:
        pool = await self.want(key, pool_spec(count))
        assert pool is not None
        with trio.fail_after(LONG_S):
            assert await pool.settled(patience_s=LONG_S) == Settled(ready=True)
        return pool

    @property
    def labels(self) -> list[str]:
        return sorted(worker.label for worker in self.launcher.alive)


@asynccontextmanager
async def machine_on(launcher: FakeLauncher) -> AsyncIterator[Machine]:
    machine = Machine(launcher)
    async with trio.open_nursery() as nursery:
        await nursery.start(machine.reconciler.run)
        yield machine
        nursery.cancel_scope.cancel()


async def test_a_registered_version_gets_a_pool(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher()) as machine:
        assert machine.reconciler.pool(A) is None
        pool = await machine.want(A, pool_spec(2))
        assert pool is not None
        assert machine.reconciler.pool(A) is pool
        assert [slot.id for slot in pool.view().slots] == [9000, 9001], "its slots are there when wake returns"
        assert pool.key == A


async def test_versions_share_the_numbers_of_their_slots(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher()) as machine:
        await machine.up(A, 2)
        await machine.up(B)
        await machine.up(A, 3)
        await machine.up(A, 1)
        await machine.up(A, 2)
        assert machine.labels == ["W-9000-a_1", "W-9002-b_1", "W-9004-a_1"]


async def test_waking_a_version_that_nobody_knows(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher()) as machine:
        assert await machine.want(A, None) is None
        assert machine.reconciler.pool(A) is None


async def test_waking_without_a_change_changes_nothing(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher()) as machine:
        pool = await machine.up(A)
        assert await machine.up(A) is pool
        assert machine.launcher.asked == 1


async def test_an_unregistered_version_drains_and_goes(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher(Script(batch_s=10.0))) as machine:
        pool = await machine.up(A)
        job = Asked("a")
        pool.submit(job)
        await trio.sleep(1.0)
        assert await machine.want(A, None, drain_s=30.0) is pool, "the caller can wait for its end"
        assert machine.reconciler.pool(A) is None
        assert trio.current_time() == 1.0
        await pool.gone.wait()
        assert (job.body, trio.current_time()) == ("a", 10.0)
        assert machine.launcher.alive == []


async def test_a_version_registered_again_while_the_old_one_drains(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher(Script(batch_s=10.0))) as machine:
        old = await machine.up(A)
        first, second = Asked("first"), Asked("second")
        old.submit(first)
        await trio.sleep(1.0)
        await machine.want(A, None, drain_s=30.0)
        new = await machine.up(A)
        assert new is not old
        new.submit(second)
        await old.gone.wait()
        assert first.body == "first"
        assert machine.labels == ["W-9001-a_1"]
        await second.answered.wait()
        assert (second.body, second.at) == ("second", 11.0)


async def test_one_version_fails_and_the_others_serve(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(named={"W-9000-a_1": Script(load_dies=True), "W-9001-b_1": Script()})
    async with machine_on(launcher) as machine:
        failing = await machine.want(A, pool_spec())
        assert failing is not None
        serving = await machine.up(B)
        await trio.sleep(1000.0)
        assert [slot.phase for slot in failing.view().slots] == [Phase.FAILED]
        job = Asked("b")
        serving.submit(job)
        await job.answered.wait()
        assert job.body == "b"


async def test_wishes_are_read_when_they_are_looked_at(autojump_clock: Clock) -> None:
    """Keys, not events: ten calls at a time make one look, and all get the pool."""
    async with machine_on(FakeLauncher()) as machine, trio.open_nursery() as nursery:
        pools: list[Pool | None] = []

        async def call(count: int) -> None:
            pools.append(await machine.want(A, pool_spec(count)))

        for count in range(1, 11):
            nursery.start_soon(call, count)
        await trio.sleep(1.0)
        assert machine.asked_for == [A]
        assert set(pools) == {machine.reconciler.pool(A)}
        assert len(pools) == 10
        assert len(machine.labels) == machine.desired[A].min_workers


async def test_a_caller_that_leaves_does_not_take_its_wish_along(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher()) as machine:
        with trio.CancelScope() as scope:
            scope.cancel()
            await machine.want(A, pool_spec())
        await trio.sleep(1.0)
        assert machine.labels == ["W-9000-a_1"]


async def test_the_wake_of_one_version_does_not_wait_for_another(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher(Script(load_s=math.inf))) as machine:
        await machine.want(A, pool_spec(3))
        await machine.want(B, pool_spec())
        await machine.want(A, None, drain_s=math.inf)
        assert trio.current_time() == 0.0


async def test_drain_ends_all(autojump_clock: Clock) -> None:
    """Those that were on their way out before, too, under the new limit."""
    async with machine_on(FakeLauncher(Script(batch_s=100.0))) as machine:
        jobs = [Asked("a"), Asked("b"), Asked("waits")]
        a, b = await machine.up(A), await machine.up(B)
        a.submit(jobs[0])
        b.submit(jobs[1])
        await trio.sleep(1.0)
        b.submit(jobs[2])
        await machine.want(A, None, drain_s=math.inf)
        await machine.reconciler.drain(drain_s=20.0)
        assert trio.current_time() == 21.0
        assert machine.launcher.alive == []
        assert [job.error.code for job in jobs] == [500, 500, 503]
        assert machine.reconciler.pool(B) is None


async def test_drain_of_nothing(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher()) as machine:
        with trio.fail_after(1):
            await machine.reconciler.drain(drain_s=math.inf)


async def test_drain_does_not_wait_for_loads(autojump_clock: Clock) -> None:
    async with machine_on(FakeLauncher(Script(load_s=math.inf))) as machine:
        await machine.want(A, pool_spec(3))
        await machine.reconciler.drain(drain_s=math.inf)
        assert trio.current_time() == 0.0
        assert machine.launcher.alive == []
