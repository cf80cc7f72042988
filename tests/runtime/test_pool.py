"""A pool on fakes: how its slots follow the wishes, and what becomes of jobs (spec/management.md sections 4.1, 5.3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
import trio.testing

from tests.fakes import Asked, FakeLauncher, FakeWorker, Script, pool_spec
from tserve.domain.phases import Phase
from tserve.domain.plan import PoolSpec, WorkerSpec
from tserve.domain.wire import JobReply
from tserve.runtime.launcher import Launcher
from tserve.runtime.pool import NoCapacity, Pool, PoolView, Settled

Clock = trio.testing.MockClock
LONG_S = 80_000.0
HOPELESS = Script(load_report={"ok": False, "reason": "import_error", "detail": "no module", "hopeless": True})
NO_WORKER = (
    'Model "m" has no worker to serve inference request. Please use scale workers API to add workers. If this is a '
    "sequence inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)


@asynccontextmanager
async def pool_on(launcher: Launcher, spec: PoolSpec | None = None) -> AsyncIterator[Pool]:
    """A running pool; its first slots are there, but not yet up."""
    async with trio.open_nursery() as nursery:
        pool = Pool(spec or pool_spec(), launcher, itertools.count(9000))
        nursery.start_soon(pool.run)
        await caught_up(pool)
        yield pool
        nursery.cancel_scope.cancel()


async def caught_up(pool: Pool) -> None:
    with trio.fail_after(LONG_S):
        await pool.caught_up()


async def wish(pool: Pool, spec: PoolSpec | None, *, drain_s: float = math.inf) -> None:
    pool.apply(spec, drain_s=drain_s)
    await caught_up(pool)


async def settled(pool: Pool, *, patience_s: float = 0.0) -> Settled:
    with trio.fail_after(LONG_S):
        return await pool.settled(patience_s=patience_s)


async def up(pool: Pool) -> None:
    assert await settled(pool, patience_s=LONG_S) == Settled(ready=True)


def ask(pool: Pool, text: str = "", *, asked_version: str | None = None) -> Asked:
    job = Asked(text, asked_version=asked_version)
    pool.submit(job)
    return job


async def answered(*jobs: Asked) -> None:
    with trio.fail_after(LONG_S):
        for job in jobs:
            await job.answered.wait()


def slots(pool: Pool) -> dict[int, Phase]:
    return {slot.id: slot.phase for slot in pool.view().slots}


def refusal(pool: Pool) -> dict[str, object]:
    """Why a job is not taken now."""
    with pytest.raises(NoCapacity) as caught:
        pool.submit(Asked())
    assert caught.value.cause()["reason"] == caught.value.reason
    return caught.value.cause()


# -- following the wishes


async def test_the_first_wish_starts_min_slots(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_s=2.0))
    async with pool_on(launcher, pool_spec(2, 5)) as pool:
        assert list(slots(pool)) == [9000, 9001]
        assert set(slots(pool).values()) <= {Phase.STARTING, Phase.LOADING}
        await up(pool)
        assert trio.current_time() == 2.0
        assert slots(pool) == {9000: Phase.READY, 9001: Phase.READY}
        assert pool.healthy() == 2
        assert {worker.label for worker in launcher.workers} == {"W-9000-m_1.0", "W-9001-m_1.0"}


async def test_a_pool_of_none(autojump_clock: Clock) -> None:
    launcher = FakeLauncher()
    async with pool_on(launcher, pool_spec(0, 3)) as pool:
        assert await settled(pool) == Settled(ready=True)
        assert pool.view() == PoolView((), 0, 100)
        assert refusal(pool) == {"reason": "no_worker"}
        assert launcher.asked == 0


async def test_scaling_up_keeps_what_is_there(autojump_clock: Clock) -> None:
    launcher = FakeLauncher()
    async with pool_on(launcher) as pool:
        await up(pool)
        await wish(pool, pool_spec(3))
        found = slots(pool)
        assert (list(found), found[9000]) == ([9000, 9001, 9002], Phase.READY)
        assert {found[9001], found[9002]} <= {Phase.STARTING, Phase.LOADING}
        await up(pool)
        assert len(launcher.alive) == 3


async def test_between_min_and_max_nothing_happens(autojump_clock: Clock) -> None:
    launcher = FakeLauncher()
    async with pool_on(launcher, pool_spec(3)) as pool:
        await up(pool)
        for fewest, most in ((1, 3), (2, 4), (-1, 3)):
            await wish(pool, pool_spec(fewest, most))
            assert await settled(pool) == Settled(ready=True)
        assert list(slots(pool)) == [9000, 9001, 9002]
        assert launcher.asked == 3


async def test_scaling_down_stops_the_newest(autojump_clock: Clock) -> None:
    launcher = FakeLauncher()
    async with pool_on(launcher, pool_spec(3)) as pool:
        await up(pool)
        await wish(pool, pool_spec(1))
        assert list(slots(pool)) == [9000], "the others are not shown any more"
        assert await settled(pool) == Settled(ready=True)
        assert [worker.label for worker in launcher.alive] == ["W-9000-m_1.0"]
        await wish(pool, pool_spec(2))
        assert list(slots(pool)) == [9000, 9003], "numbers are not used twice"


async def test_slots_share_the_queue(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=1.0))
    async with pool_on(launcher, pool_spec(2)) as pool:
        jobs = [ask(pool, text) for text in "abcd"]
        await answered(*jobs)
        assert [job.body for job in jobs] == list("abcd")
        assert [job.at for job in jobs] == [1.0, 1.0, 2.0, 2.0]


async def test_a_bug_in_one_slot_leaves_the_others(autojump_clock: Clock) -> None:
    class Buggy(FakeLauncher):
        def launch(self, spec: WorkerSpec, *, label: str) -> AbstractAsyncContextManager[FakeWorker]:  # type: ignore[override]
            if label.startswith("W-9001"):
                raise ZeroDivisionError
            return super().launch(spec, label=label)

    async with pool_on(Buggy(), pool_spec(2)) as pool:
        await trio.sleep(50.0)
        job = ask(pool, "a")
        await answered(job)
        assert job.body == "a"
        assert slots(pool) == {9000: Phase.READY, 9001: Phase.BACKING_OFF}


# -- jobs


async def test_what_is_asked_before_a_worker_is_up_waits(autojump_clock: Clock) -> None:
    async with pool_on(FakeLauncher(Script(load_s=5.0))) as pool:
        jobs = [ask(pool, text) for text in "ab"]
        assert pool.view().pending == 2
        await answered(*jobs)
        assert [(job.body, job.at) for job in jobs] == [("a", 5.0), ("b", 5.0)]


async def test_a_full_queue_refuses(autojump_clock: Clock) -> None:
    async with pool_on(FakeLauncher(Script(batch_s=1.0)), pool_spec(queue_size=2)) as pool:
        await up(pool)
        first = ask(pool, "in hand")
        await trio.testing.wait_all_tasks_blocked()
        waiting = [ask(pool, "a"), ask(pool, "b")]
        assert (pool.view().pending, pool.view().capacity) == (2, 2)
        assert refusal(pool) == {"reason": "queue_full"}
        pool.discard(waiting[0])
        last = ask(pool, "c")
        await answered(first, waiting[1], last)
        assert last.body == "c"
        assert waiting[0].outcomes == []


async def test_giving_up_refuses_the_queue_and_new_jobs(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_s=5.0, load_report=HOPELESS.load_report))
    async with pool_on(launcher, pool_spec(2)) as pool:
        plain, versioned = ask(pool), ask(pool, asked_version="1.0")
        await answered(plain, versioned)
        why = {"reason": "import_error", "detail": "no module", "log_tail": "last words of W-9001-m_1.0\n"}
        assert (plain.at, plain.error.code, plain.error.message) == (5.0, 503, NO_WORKER)
        assert plain.error.type_name == "ServiceUnavailableException"
        assert plain.error.cause == {"reason": "all_failed", "workers": why}
        assert versioned.error.message == NO_WORKER.replace('"m"', '"m" Version 1.0"')
        assert refusal(pool) == {"reason": "all_failed", "workers": why}
        assert slots(pool) == {9000: Phase.FAILED, 9001: Phase.FAILED}
        assert pool.healthy() == 0


async def test_as_long_as_one_slot_may_come_the_queue_is_kept(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(HOPELESS, Script(load_s=30.0))
    async with pool_on(launcher, pool_spec(2)) as pool:
        job = ask(pool, "a")
        await trio.sleep(10.0)
        assert pool.healthy() == 1
        assert job.outcomes == []
        await answered(job)
        assert job.body == "a"


async def test_the_queue_is_refused_when_the_last_hope_leaves(autojump_clock: Clock) -> None:
    """One slot gave up; the other one, still busy, is scaled away: nobody will come for what waits."""
    launcher = FakeLauncher(Script(batch_s=100.0), named={"W-9000-m_1.0": HOPELESS})
    async with pool_on(launcher, pool_spec(2)) as pool:
        in_hand, waiting = ask(pool, "a"), ask(pool, "b")
        await trio.sleep(50.0)
        assert slots(pool) == {9000: Phase.FAILED, 9001: Phase.BUSY}
        await wish(pool, pool_spec(1), drain_s=20.0)
        await answered(in_hand, waiting)
        assert (in_hand.at, in_hand.error.code) == (70.0, 500)
        assert (waiting.at, waiting.error.code) == (70.0, 503)
        assert waiting.error.cause["reason"] == "all_failed"


async def test_only_a_wish_tries_again_what_gave_up(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(HOPELESS)
    async with pool_on(launcher, pool_spec(2)) as pool:
        assert (await settled(pool)).failure is not None
        await trio.sleep(LONG_S)
        assert launcher.asked == 2
        launcher.play(Script())
        await wish(pool, pool_spec(2))
        await up(pool)
        assert slots(pool) == {9000: Phase.READY, 9001: Phase.READY}
        job = ask(pool, "a")
        await answered(job)
        assert job.body == "a"
        assert pool.healthy() == 2


async def test_the_end_of_one_slot_does_not_try_another_again(autojump_clock: Clock) -> None:
    """Slots that leave wake the pool; that is no wish."""
    launcher = FakeLauncher(Script(batch_s=10.0), named={"W-9000-m_1.0": HOPELESS})
    async with pool_on(launcher, pool_spec(2)) as pool:
        ask(pool)
        await trio.sleep(1.0)
        await wish(pool, pool_spec(1))  # tries 9000 again, once, and drains 9001
        await trio.sleep(LONG_S)
        assert slots(pool) == {9000: Phase.FAILED}
        assert launcher.asked == 3


# -- scaling down with work in hand


@pytest.mark.parametrize(
    ("drain_s", "ends_at", "done"), [(0.0, 1.0, False), (3.0, 4.0, False), (20.0, 10.0, True), (math.inf, 10.0, True)]
)
async def test_the_time_for_what_is_in_hand(autojump_clock: Clock, drain_s: float, ends_at: float, done: bool) -> None:
    launcher = FakeLauncher(Script(batch_s=10.0))
    async with pool_on(launcher, pool_spec(2)) as pool:
        await up(pool)
        jobs = [ask(pool, "a"), ask(pool, "b")]
        queued = ask(pool, "c")
        await trio.sleep(1.0)
        await wish(pool, pool_spec(1), drain_s=drain_s)
        assert await settled(pool) == Settled(ready=True)
        assert trio.current_time() == ends_at
        await answered(*jobs, queued)
        stays, leaves = sorted(jobs, key=lambda job: b"W-9001" in label_of(launcher, job).encode())
        assert (stays.body, stays.at) == (stays.text, 10.0)
        assert leaves.at == ends_at
        assert isinstance(leaves.outcome, JobReply) == done
        if not done:
            assert (leaves.error.message, leaves.error.code) == ("Worker died.", 500)
            assert leaves.error.cause["reason"] == "drain_timeout"
        assert (queued.body, queued.at) == ("c", 20.0), "the queue is for the slot that stays"


def label_of(launcher: FakeLauncher, job: Asked) -> str:
    (label,) = [worker.label for worker in launcher.workers if [job.text.encode()] in worker.batches]
    return label


async def test_a_newer_wish_changes_the_limit(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=100.0))
    async with pool_on(launcher) as pool:
        await up(pool)
        job = ask(pool, "a")
        await trio.sleep(1.0)
        await wish(pool, pool_spec(0), drain_s=math.inf)
        await trio.sleep(1.0)
        await wish(pool, pool_spec(0), drain_s=5.0)
        assert await settled(pool) == Settled(ready=True)
        assert job.at == trio.current_time() == 7.0


async def test_scaling_to_none_serves_the_queue_out(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=10.0))
    async with pool_on(launcher) as pool:
        await up(pool)
        jobs = [ask(pool, text) for text in "abc"]
        await trio.sleep(1.0)
        await wish(pool, pool_spec(0), drain_s=math.inf)
        assert refusal(pool) == {"reason": "no_worker"}
        assert await settled(pool) == Settled(ready=True)
        assert [(job.body, job.at) for job in jobs] == [("a", 10.0), ("b", 20.0), ("c", 30.0)]


async def test_scaling_to_none_refuses_what_is_left_after_the_limit(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=10.0))
    async with pool_on(launcher) as pool:
        await up(pool)
        jobs = [ask(pool, text) for text in "abcd"]
        await trio.sleep(1.0)
        await wish(pool, pool_spec(0), drain_s=15.0)
        await answered(*jobs)
        assert [job.at for job in jobs] == [10.0, 16.0, 16.0, 16.0]
        assert jobs[0].body == "a"
        assert (jobs[1].error.code, jobs[1].error.message) == (500, "Worker died.")
        for job in jobs[2:]:
            assert (job.error.code, job.error.message) == (503, NO_WORKER)
            assert job.error.cause == {"reason": "no_worker"}


async def test_scaling_to_none_ends_the_batch_delay(autojump_clock: Clock) -> None:
    """Nothing more can come."""
    async with pool_on(FakeLauncher(), pool_spec(batch_size=4, batch_delay_s=60.0)) as pool:
        await up(pool)
        job = ask(pool, "a")
        await trio.sleep(1.0)
        await wish(pool, pool_spec(0), drain_s=math.inf)
        await answered(job)
        assert (job.body, job.at) == ("a", 1.0)


async def test_scaling_to_none_while_the_first_worker_loads(autojump_clock: Clock) -> None:
    """What was accepted is served within the limit."""
    launcher = FakeLauncher(Script(load_s=5.0))
    async with pool_on(launcher) as pool:
        job = ask(pool, "a")
        await trio.sleep(1.0)
        await wish(pool, pool_spec(0), drain_s=60.0)
        assert await settled(pool) == Settled(ready=True)
        assert (job.body, job.at) == ("a", 5.0)


@pytest.mark.parametrize("drain_s", [0.0, 3.0])
async def test_scaling_to_none_without_time_for_the_load(autojump_clock: Clock, drain_s: float) -> None:
    launcher = FakeLauncher(Script(load_s=50.0))
    async with pool_on(launcher) as pool:
        job = ask(pool, "a")
        await trio.sleep(1.0)
        await wish(pool, pool_spec(0), drain_s=drain_s)
        await answered(job)
        assert (job.error.code, job.at) == (503, 1.0 + drain_s)


async def test_scaling_to_none_and_up_again(autojump_clock: Clock) -> None:
    """The old slot finishes what it has in hand, a new one serves the rest."""
    launcher = FakeLauncher(Script(batch_s=10.0), Script())
    async with pool_on(launcher) as pool:
        await up(pool)
        in_hand, queued = ask(pool, "a"), ask(pool, "b")
        await trio.sleep(1.0)
        await wish(pool, pool_spec(0), drain_s=math.inf)
        await trio.sleep(1.0)
        await wish(pool, pool_spec(1), drain_s=math.inf)
        assert list(slots(pool)) == [9001]
        late = ask(pool, "c")
        await answered(in_hand, queued, late)
        assert [(job.body, job.at) for job in (queued, late, in_hand)] == [("b", 2.0), ("c", 2.0), ("a", 10.0)]
        assert await settled(pool) == Settled(ready=True)
        assert list(slots(pool)) == [9001]


async def test_wishes_that_cancel_out_within_a_breath(autojump_clock: Clock) -> None:
    launcher = FakeLauncher()
    async with pool_on(launcher) as pool:
        await up(pool)
        for count in (5, 0, 3, 1):
            pool.apply(pool_spec(count), drain_s=math.inf)
        await up(pool)
        assert slots(pool) == {9000: Phase.READY}
        assert launcher.asked == 1


# -- settled


async def test_settled_is_a_failure_at_the_first_attempt_of_a_new_slot(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script())
    async with pool_on(launcher) as pool:
        await up(pool)
        launcher.play(Script(load_s=4.0, load_dies=True))
        await wish(pool, pool_spec(2))
        found = await settled(pool, patience_s=LONG_S)
        assert (found.ready, found.gone) == (False, False)
        assert found.failure is not None
        assert found.failure.reason == "died_loading"
        assert trio.current_time() == 4.0
        assert slots(pool) == {9000: Phase.READY, 9001: Phase.BACKING_OFF}, "it is tried on"


async def test_a_wish_that_changes_nothing_leaves_a_first_start_decisive(autojump_clock: Clock) -> None:
    """A scale call during a synchronous registration must not make that wait out its patience and lose the cause."""
    launcher = FakeLauncher(Script(load_s=4.0, load_dies=True))
    async with pool_on(launcher) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(_wish_after, pool, 1.0)
        found = await settled(pool, patience_s=LONG_S)
        assert found.failure is not None
        assert found.failure.reason == "died_loading"
        assert trio.current_time() == 4.0


async def _wish_after(pool: Pool, delay_s: float) -> None:
    await trio.sleep(delay_s)
    await wish(pool, pool_spec(1))


async def test_settled_names_the_failure_though_other_new_slots_still_load(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_dies=True), Script(load_s=100.0))
    async with pool_on(launcher, pool_spec(2)) as pool:
        found = await settled(pool)
        assert found.failure is not None
        assert trio.current_time() == 0.0


async def test_settled_waits_for_a_slow_load_beyond_its_patience(autojump_clock: Clock) -> None:
    """A slot that the wish started has its own limit, the startup timeout."""
    async with pool_on(FakeLauncher(Script(load_s=100.0))) as pool:
        assert await settled(pool, patience_s=1.0) == Settled(ready=True)
        assert trio.current_time() == 100.0


async def test_settled_right_after_a_wish_answers_for_that(autojump_clock: Clock) -> None:
    async with pool_on(FakeLauncher(Script(load_s=3.0))) as pool:
        await up(pool)
        pool.apply(pool_spec(2), drain_s=math.inf)
        assert await settled(pool, patience_s=0.0) == Settled(ready=True)
        assert (trio.current_time(), len(slots(pool))) == (6.0, 2)


async def test_settled_takes_an_old_failure_for_no_new_one(autojump_clock: Clock) -> None:
    """A slot that failed for an earlier wish, and still backs off, is only waited for."""
    async with pool_on(FakeLauncher(Script(load_s=10.0, load_dies=True))) as pool:
        assert (await settled(pool)).failure is not None
        await wish(pool, pool_spec(1))
        assert await settled(pool, patience_s=3.0) == Settled(ready=False)
        assert trio.current_time() == 13.0


async def test_settled_of_a_slot_tried_again(autojump_clock: Clock) -> None:
    """Its old failure does not count, the new one does."""
    launcher = FakeLauncher(HOPELESS)
    async with pool_on(launcher) as pool:
        assert (await settled(pool)).failure is not None
        launcher.play(Script(load_s=9.0, load_report={"ok": False, "reason": "still broken", "hopeless": True}))
        await wish(pool, pool_spec(1))
        found = await settled(pool)
        assert found.failure is not None
        assert (found.failure.reason, trio.current_time()) == ("still broken", 9.0)


async def test_settled_partly(autojump_clock: Clock) -> None:
    """A slot that was down before the wish is waited for as long as patience goes."""
    launcher = FakeLauncher(Script(), Script(dies_idle_s=1.0), Script(load_dies=True))
    async with pool_on(launcher, pool_spec(2, retry_window_s=LONG_S)) as pool:
        await trio.sleep(50.0)
        assert sorted(slots(pool).values(), key=str) == [Phase.BACKING_OFF, Phase.READY]
        await wish(pool, pool_spec(2, retry_window_s=LONG_S))
        began = trio.current_time()
        assert await settled(pool, patience_s=7.0) == Settled(ready=False)
        assert trio.current_time() == began + 7.0


async def test_settled_when_what_was_down_comes_back_in_time(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(dies_idle_s=1.0), Script(load_s=5.0))
    async with pool_on(launcher) as pool:
        await trio.sleep(3.0)
        await wish(pool, pool_spec(1))
        assert await settled(pool, patience_s=7.0) == Settled(ready=True)
        assert trio.current_time() == 6.0


async def test_settled_starts_its_patience_when_the_new_slots_are_up(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(dies_idle_s=1.0), Script(load_s=40.0))
    async with pool_on(launcher) as pool:
        await trio.sleep(3.0)  # 9000 is up again at 41
        await wish(pool, pool_spec(2))  # 9001 is up at 43
        assert await settled(pool, patience_s=0.0) == Settled(ready=True)
        assert trio.current_time() == 43.0


async def test_a_newer_wish_begins_a_new_patience(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(dies_idle_s=1.0), Script(load_s=50.0), Script(load_s=30.0))
    async with pool_on(launcher) as pool, trio.open_nursery() as nursery:
        found: list[tuple[Settled, float]] = []

        async def wait() -> None:
            found.append((await settled(pool, patience_s=10.0), trio.current_time()))

        await trio.sleep(2.0)  # 9000 is up again at 51
        await wish(pool, pool_spec(1))
        nursery.start_soon(wait)
        await trio.sleep(8.0)
        await wish(pool, pool_spec(2))  # 9001 is up at 40
        await trio.sleep(100.0)
        assert found == [(Settled(ready=False), 50.0)]


async def test_the_end_of_an_old_slot_leaves_the_newest_wish_alone(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=10.0), Script(batch_s=10.0), Script(load_s=30.0))
    async with pool_on(launcher, pool_spec(2)) as pool:
        await up(pool)
        ask(pool)
        ask(pool)
        await trio.sleep(1.0)
        await wish(pool, pool_spec(1))  # 9001 leaves at 10
        await wish(pool, pool_spec(2))  # 9002 is up at 31
        assert await settled(pool, patience_s=0.0) == Settled(ready=True)
        assert trio.current_time() == 31.0


async def test_settled_waits_for_the_surplus_to_go(autojump_clock: Clock) -> None:
    async with pool_on(FakeLauncher(Script(batch_s=10.0)), pool_spec(2)) as pool:
        await up(pool)
        jobs = [ask(pool), ask(pool)]
        await trio.sleep(1.0)
        await wish(pool, pool_spec(1))
        assert await settled(pool, patience_s=0.0) == Settled(ready=True)
        assert trio.current_time() == 10.0
        await answered(*jobs)


async def test_settled_of_a_version_that_goes_meanwhile(autojump_clock: Clock) -> None:
    async with pool_on(FakeLauncher(Script(load_s=math.inf))) as pool, trio.open_nursery() as nursery:
        found: list[Settled] = []

        async def wait() -> None:
            found.append(await settled(pool))

        nursery.start_soon(wait)
        await trio.sleep(1.0)
        pool.apply(None, drain_s=0)
        await pool.gone.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert found == [Settled(ready=False, gone=True)]


async def test_a_waiter_overtaken_by_a_newer_wish_answers_for_that(autojump_clock: Clock) -> None:
    async with pool_on(FakeLauncher(Script(load_s=10.0)), pool_spec(1)) as pool, trio.open_nursery() as nursery:
        found: list[tuple[Settled, float]] = []

        async def wait() -> None:
            found.append((await settled(pool), trio.current_time()))

        nursery.start_soon(wait)
        await trio.sleep(5.0)
        pool.apply(pool_spec(2), drain_s=math.inf)
        await trio.sleep(50.0)
        assert found == [(Settled(ready=True), 15.0)]


# -- the end


async def test_retiring_drains(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=10.0, leave_s=0.5))
    async with pool_on(launcher) as pool:
        await up(pool)
        jobs = [ask(pool, text) for text in "abc"]
        await trio.sleep(1.0)
        pool.apply(None, drain_s=25.0)
        await caught_up(pool)
        assert refusal(pool) == {"reason": "no_worker"}
        await pool.gone.wait()
        assert [job.at for job in jobs] == [10.0, 20.0, 26.0]
        assert (jobs[1].body, jobs[2].error.code) == ("b", 500)
        assert launcher.alive == []
        assert pool.view() == PoolView((), 0, 100)
        await caught_up(pool)


async def test_retiring_an_idle_pool_takes_as_long_as_its_workers_need(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(leave_s=0.5))
    async with pool_on(launcher, pool_spec(3)) as pool:
        await up(pool)
        pool.apply(None, drain_s=math.inf)
        await pool.gone.wait()
        assert trio.current_time() == 0.5
        assert not any(worker.killed for worker in launcher.workers)


async def test_retiring_before_the_first_breath(autojump_clock: Clock) -> None:
    launcher = FakeLauncher()
    pool = Pool(pool_spec(2), launcher, itertools.count(1))
    pool.apply(None, drain_s=math.inf)
    with trio.fail_after(1):
        await pool.run()
        await pool.gone.wait()
    assert launcher.asked == 0


async def test_a_cancelled_pool_leaves_no_job_without_an_answer(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=math.inf))
    async with pool_on(launcher) as pool:
        await up(pool)
        jobs = [ask(pool), ask(pool)]
        await trio.sleep(1.0)
    assert [job.error.code for job in jobs] == [500, 503]
    assert launcher.alive == []
    assert pool.gone.is_set()
