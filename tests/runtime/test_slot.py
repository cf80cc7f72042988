"""One slot on fakes: what becomes of its worker, and of the batch that the worker had in hand."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import Asked, FakeLauncher, FakeWorker, Script, pool_spec
from tserve.domain.events import WorkerEvent
from tserve.domain.phases import Phase
from tserve.domain.plan import SETTLED_S, Failure, Intensity, PoolSpec, WorkerSpec
from tserve.domain.wire import HandlerFailed, JobReply
from tserve.runtime.autopsy import ABORT_GRACE_S, EXIT_GRACE_S
from tserve.runtime.jobs import JobQueue
from tserve.runtime.launcher import Launcher
from tserve.runtime.slot import Slot

Clock = trio.testing.MockClock
FOREVER_S = 1e7
LONG_S = 80_000.0
LEAVE_S = 0.5


class Bench:
    """A slot with a queue of its own, and what it went through: its phases and when it entered them."""

    def __init__(self, launcher: Launcher, spec: PoolSpec) -> None:
        self.queue = JobQueue(spec.queue_size)
        self.phases: list[Phase] = [Phase.STARTING]
        self.starts: list[float] = [trio.current_time()]
        self.stopped = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()
        self.events: list[WorkerEvent] = []
        self.slot = Slot(
            9000,
            spec,
            self.queue,
            launcher,
            self._on_change,
            intensity=Intensity(spec.most_restarts, spec.restart_period_s),
            report=self.events.append,
        )

    def _on_change(self) -> None:
        if self.slot.phase is not self.phases[-1]:
            self.phases.append(self.slot.phase)
            if self.slot.phase is Phase.STARTING:
                self.starts.append(trio.current_time())
        self._changed.unpark_all()

    async def run(self) -> None:
        await self.slot.run()
        self.stopped.set()

    async def until(self, phase: Phase) -> None:
        with trio.fail_after(FOREVER_S):
            while self.slot.phase is not phase:
                await self._changed.park()

    async def until_started(self, times: int) -> None:
        with trio.fail_after(FOREVER_S):
            while len(self.starts) < times:
                await self._changed.park()

    def ask(self, text: str = "") -> Asked:
        job = Asked(text)
        self.queue.put(job)
        return job

    async def answer(self, text: str = "again") -> str:
        """Ask and wait for a success."""
        job = self.ask(text)
        await answered(job)
        return job.body

    @property
    def failure(self) -> Failure:
        assert self.slot.failure is not None
        return self.slot.failure


@asynccontextmanager
async def slot_on(launcher: Launcher, *, run: bool = True, **settings: Any) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        bench = Bench(launcher, pool_spec(**settings))
        if run:
            nursery.start_soon(bench.run)
        yield bench
        nursery.cancel_scope.cancel()


async def answered(*jobs: Asked) -> None:
    with trio.fail_after(FOREVER_S):
        for job in jobs:
            await job.answered.wait()


async def busy(launcher: FakeLauncher, worker: int = -1) -> FakeWorker:
    """The worker, once it has a batch in hand."""
    await trio.testing.wait_all_tasks_blocked()
    assert launcher.workers[worker].batches
    return launcher.workers[worker]


# -- coming up


async def test_a_slot_comes_up_and_answers(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_s=3.0, batch_s=0.25))
    async with slot_on(launcher) as bench:
        await bench.until(Phase.LOADING)
        worker = launcher.workers[0]
        view = bench.slot.view()
        assert (view.id, view.pid, view.memory, view.restarts, view.failure) == (9000, worker.pid, 1 << 20, 0, None)
        assert (worker.label, worker.spec) == ("W-9000-m_1.0", pool_spec().worker)
        await bench.until(Phase.READY)
        assert trio.current_time() == 3.0
        job = bench.ask("hello")
        await bench.until(Phase.BUSY)
        await trio.sleep(0.125)
        assert bench.slot.view().since_s == 0.125
        await answered(job)
        assert (job.body, job.at) == ("hello", 3.25)
        await bench.until(Phase.READY)
    assert bench.phases[:5] == [Phase.STARTING, Phase.LOADING, Phase.READY, Phase.BUSY, Phase.READY]


async def test_jobs_go_as_batches(autojump_clock: Clock) -> None:
    launcher = FakeLauncher()
    async with slot_on(launcher, batch_size=4, batch_delay_s=0.5) as bench:
        jobs = [bench.ask(text) for text in "abcdef"]
        await answered(*jobs)
        assert [job.body for job in jobs] == list("abcdef")
        assert [job.at for job in jobs] == [0.0] * 4 + [0.5] * 2
        assert launcher.workers[0].batches == [[b"a", b"b", b"c", b"d"], [b"e", b"f"]]


async def test_an_abandoned_job_in_hand_runs_on(autojump_clock: Clock) -> None:
    """The client is gone; the worker is not to blame."""
    launcher = FakeLauncher(Script(batch_s=5.0))
    async with slot_on(launcher) as bench:
        job = bench.ask("a")
        worker = await busy(launcher)
        bench.queue.discard(job)
        assert await bench.answer("b") == "b"
        assert trio.current_time() == 10.0
        assert job.outcomes == []
        assert not worker.exited.is_set()


async def test_startup_timeout(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_s=math.inf), Script())
    async with slot_on(launcher, startup_timeout_s=30.0) as bench:
        await bench.until(Phase.BACKING_OFF)
        assert trio.current_time() == 30.0
        assert bench.failure.reason == "startup_timeout"
        assert bench.failure.detail == "the model was not loaded within startup_timeout, 30 s"
        assert bench.failure.log_tail == "last words of W-9000-m_1.0\n"
        assert launcher.workers[0].aborted
        view = bench.slot.view()
        assert (view.pid, view.memory, view.next_try_in_s, view.failure) == (-1, 0, 1.0, bench.failure)
        await bench.until(Phase.READY)
        assert trio.current_time() == 31.0
        assert bench.slot.view().next_try_in_s is None
        assert bench.slot.view().restarts == 1


async def test_a_failed_load_says_what_the_worker_reported(autojump_clock: Clock) -> None:
    report = {"ok": False, "reason": "out_of_memory", "detail": "Traceback …", "code": 507, "hopeless": False}
    launcher = FakeLauncher(Script(load_report=report), Script())
    async with slot_on(launcher) as bench:
        await bench.until(Phase.BACKING_OFF)
        assert bench.failure == Failure(
            "out_of_memory", "Traceback …", 507, log_tail="last words of W-9000-m_1.0\n", hopeless=False
        )
        assert bench.slot.tried
        await bench.until(Phase.READY)
        assert trio.current_time() == 1.0


@pytest.mark.parametrize("code", [200, 503, None, "507"])
async def test_a_failed_load_is_a_500_or_a_507(autojump_clock: Clock, code: object) -> None:
    launcher = FakeLauncher(Script(load_report={"ok": False, "reason": "load_error", "code": code}))
    async with slot_on(launcher) as bench:
        await bench.until(Phase.BACKING_OFF)
        assert bench.failure.code == 500


async def test_what_cannot_heal_is_given_up_until_asked_again(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_report={"ok": False, "reason": "import_error", "hopeless": True}), Script())
    async with slot_on(launcher) as bench:
        await bench.until(Phase.FAILED)
        await trio.sleep(LONG_S)
        assert (bench.slot.phase, len(launcher.workers)) == (Phase.FAILED, 1)
        bench.slot.retry()
        assert not bench.slot.tried
        await bench.until(Phase.READY)
        assert bench.phases[-4:] == [Phase.FAILED, Phase.STARTING, Phase.LOADING, Phase.READY]
        assert await bench.answer() == "again"


async def test_no_process(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(start_error="no memory"), Script())
    async with slot_on(launcher) as bench:
        await bench.until(Phase.BACKING_OFF)
        assert bench.failure == Failure("start_failed", "no process could be started: no memory")
        await bench.until(Phase.READY)
        assert trio.current_time() == 1.0


async def test_a_death_while_loading(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_s=2.0, load_dies=True, exit=3), Script())
    async with slot_on(launcher) as bench:
        await bench.until(Phase.BACKING_OFF)
        assert (bench.failure.reason, bench.failure.exit, bench.failure.code) == ("died_loading", "exit code 3", 500)
        assert trio.current_time() == 2.0


async def test_a_kill_while_loading_is_taken_for_lack_of_memory(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_dies=True, exit=137))
    async with slot_on(launcher) as bench:
        await bench.until(Phase.BACKING_OFF)
        assert (bench.failure.reason, bench.failure.exit) == ("out_of_memory_kill", "signal SIGKILL")
        assert bench.failure.code == 507


async def test_garbage_for_a_load_report(autojump_clock: Clock) -> None:
    """The worker lives on, so that tserve has to end it: no lack of memory."""
    launcher = FakeLauncher(Script(load_garbage=True), Script())
    async with slot_on(launcher) as bench:
        await bench.until(Phase.BACKING_OFF)
        assert launcher.workers[0].killed
        assert (bench.failure.reason, bench.failure.code) == ("died_loading", 500)
        assert "not a frame" in bench.failure.detail
        assert trio.current_time() <= EXIT_GRACE_S


async def test_a_bug_of_ours_stays_in_the_slot(autojump_clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(FakeLauncher):
        def launch(self, spec: WorkerSpec, *, label: str) -> AbstractAsyncContextManager[FakeWorker]:  # type: ignore[override]
            if not self.asked:
                self.asked = 1
                raise ZeroDivisionError("a bug")
            return super().launch(spec, label=label)

    async with slot_on(Buggy()) as bench:
        await bench.until(Phase.BACKING_OFF)
        assert bench.failure == Failure("internal_error", "ZeroDivisionError('a bug')")
        await bench.until(Phase.READY)
    assert "ended by an internal error" in caplog.text


# -- failing while serving


async def test_response_timeout(autojump_clock: Clock) -> None:
    """The batch fails exactly then, the worker is killed, its successor serves."""
    launcher = FakeLauncher(Script(batch_s=math.inf), Script())
    async with slot_on(launcher, response_timeout_s=3.0, batch_size=2, batch_delay_s=0) as bench:
        await bench.until(Phase.READY)
        await trio.sleep(1.0)
        jobs = [bench.ask("a"), bench.ask("b")]
        kept = bench.ask("kept")
        await answered(*jobs)
        for job in jobs:
            assert job.at == 4.0
            assert (job.error.message, job.error.code) == ("Worker died.", 500)
            assert job.error.type_name == "InternalServerException"
            assert job.error.cause == {
                "reason": "response_timeout",
                "detail": "no answer within response_timeout, 3 s",
                "log_tail": "last words of W-9000-m_1.0\n",
            }
        await answered(kept)
        assert (kept.body, kept.at) == ("kept", 4.0)
        assert launcher.workers[0].aborted
        assert await bench.answer() == "again"
        assert len(launcher.workers) == 2
        assert bench.slot.view().restarts == 1
        assert bench.slot.view().failure is bench.failure, "the last failure stays to be seen"


async def test_the_response_timer_runs_on_when_the_client_leaves(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=math.inf), Script())
    async with slot_on(launcher, response_timeout_s=3.0) as bench:
        job = bench.ask("a")
        await busy(launcher)
        bench.queue.discard(job)
        assert await bench.answer() == "again"
        assert trio.current_time() == 3.0


async def test_each_batch_has_a_timer_of_its_own(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=2.0))
    async with slot_on(launcher, response_timeout_s=3.0) as bench:
        jobs = [bench.ask(text) for text in "abcde"]
        await answered(*jobs)
        assert [job.body for job in jobs] == list("abcde")
        assert jobs[-1].at == 10.0


async def test_a_batch_that_a_worker_never_had_goes_to_the_next_one(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(dies_before_batch=1), Script())
    async with slot_on(launcher) as bench:
        first, second = bench.ask("first"), bench.ask("second")
        await answered(first, second)
        assert (first.body, second.body) == ("first", "second")
        assert [worker.batches for worker in launcher.workers] == [[], [[b"first"], [b"second"]]]


async def test_a_worker_that_prints_nothing_when_late_is_killed_soon(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=math.inf, ignores_abort=True), Script())
    async with slot_on(launcher, response_timeout_s=3.0) as bench:
        job = bench.ask("a")
        await answered(job)
        assert job.at == 3.0 + ABORT_GRACE_S
        assert job.error.cause["reason"] == "response_timeout"
        assert launcher.workers[0].killed


async def test_a_surplus_answer_is_nobodys(autojump_clock: Clock) -> None:
    """Taken for the next batch's, it would give every later client the answer of the one before."""
    launcher = FakeLauncher(Script(surplus_on_batch=1), Script())
    async with slot_on(launcher) as bench:
        first, second, third = (bench.ask(text) for text in "abc")
        await answered(first, second, third)
        assert [job.body for job in (first, second, third)] == ["a", "b", "c"]
        assert launcher.workers[0].killed
        assert launcher.workers[0].batches == [[b"a"]]
        assert bench.failure.reason == "bad_frame"


async def test_an_idle_worker_that_says_what_nobody_asked_for_is_replaced(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(surplus_on_batch=1), Script())
    async with slot_on(launcher) as bench:
        assert await bench.answer() == "again"
        await bench.until_started(2)
        assert trio.current_time() == 0.0
        assert bench.failure.reason == "bad_frame"


async def test_an_idle_worker_that_hangs_up_is_replaced(autojump_clock: Clock) -> None:
    """And is not shown as ready while it is given time to end."""
    launcher = FakeLauncher(Script(hangs_up_idle_s=5.0), Script())
    async with slot_on(launcher) as bench:
        await bench.until(Phase.READY)
        await bench.until(Phase.STOPPING)
        assert trio.current_time() == 5.0
        await bench.until(Phase.READY)
        assert trio.current_time() == 5.0 + EXIT_GRACE_S
        assert (bench.failure.reason, bench.failure.exit) == ("died_idle", "did not end by itself")


async def test_an_answer_to_another_batch_is_no_answer(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(off_on_batch=2), Script())
    async with slot_on(launcher) as bench:
        first, second, third = (bench.ask(text) for text in "abc")
        await answered(first, second, third)
        assert first.body == "a"
        assert second.error.cause["reason"] == "bad_frame"
        assert third.body == "c", "by the next worker"
        assert launcher.workers[0].killed


async def test_a_batch_goes_back_once_only(autojump_clock: Clock) -> None:
    """One that no worker can take must not go round for ever."""
    launcher = FakeLauncher(Script(dies_before_batch=1), Script(dies_before_batch=1), Script())
    async with slot_on(launcher) as bench:
        unlucky, following = bench.ask("unlucky"), bench.ask("following")
        await answered(unlucky, following)
        assert (unlucky.error.message, unlucky.error.code) == ("Worker died.", 500)
        assert following.body == "following"


async def test_a_crash_fails_the_batch_in_hand_and_keeps_the_queue(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=0.5, dies_on_batch=2, exit=7), Script(load_s=2.0))
    async with slot_on(launcher) as bench:
        first, second, third, fourth = (bench.ask(text) for text in "abcd")
        await answered(first, second, third, fourth)
        assert (first.body, first.at) == ("a", 0.5)
        assert (second.error.message, second.error.code, second.at) == ("Worker died.", 500, 1.0)
        assert second.error.cause == {
            "reason": "crashed",
            "detail": "hung up",
            "exit": "exit code 7",
            "log_tail": "last words of W-9000-m_1.0\n",
        }
        assert (third.body, third.at, fourth.body) == ("c", 3.0, "d")
        assert bench.starts == [0.0, 1.0], "at once, as it had been well"


async def test_a_kill_by_the_kernel_is_a_507(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(dies_on_batch=1, exit=137), Script())
    async with slot_on(launcher) as bench:
        job = bench.ask()
        await answered(job)
        assert (job.error.message, job.error.code) == ("Worker died.", 507)
        assert job.error.cause["reason"] == "out_of_memory_kill"


async def test_a_worker_that_hangs_up_but_stays_is_no_lack_of_memory(autojump_clock: Clock) -> None:
    """tserve's own kill must not be taken for the kernel's."""
    launcher = FakeLauncher(Script(deaf_on_batch=1), Script())
    async with slot_on(launcher) as bench:
        job = bench.ask()
        await answered(job)
        assert job.at == EXIT_GRACE_S
        assert job.error.code == 500
        assert job.error.cause["reason"] == "crashed"
        assert launcher.workers[0].killed
        assert await bench.answer() == "again"


async def test_a_death_while_idle_costs_no_job(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(dies_idle_s=60.0), Script(load_s=1.0))
    async with slot_on(launcher) as bench:
        await bench.until(Phase.READY)
        await trio.sleep(60.5)
        job = bench.ask("a")
        await answered(job)
        assert (job.body, job.at) == ("a", 61.0)
        assert (bench.failure.reason, bench.failure.exit) == ("died_idle", "exit code 1")
        assert bench.starts == [0.0, 60.0]


async def test_a_death_amid_the_batch_delay_costs_no_job(autojump_clock: Clock) -> None:
    """Collected, but not yet begun."""
    launcher = FakeLauncher(Script(dies_idle_s=5.0), Script())
    async with slot_on(launcher, batch_size=4, batch_delay_s=10.0) as bench:
        await bench.until(Phase.READY)
        job = bench.ask("a")
        await answered(job)
        assert (job.body, job.at) == ("a", 15.0), "the successor starts a clock of its own"


async def test_a_death_that_comes_with_a_job(autojump_clock: Clock) -> None:
    """Seen before the job is sent or after: it has an outcome either way."""
    launcher = FakeLauncher()
    async with slot_on(launcher) as bench:
        await bench.until(Phase.READY)
        launcher.workers[0].crash(9)
        job = bench.ask("a")
        await answered(job)


async def test_a_death_right_after_an_answer_is_seen(autojump_clock: Clock) -> None:
    """Whichever comes first to the slot, the answer or the end; each worker serves one job here."""
    launcher = FakeLauncher(Script(dies_after_batch=True))
    async with slot_on(launcher) as bench:
        for number in range(10):
            await bench.until(Phase.READY)
            assert await bench.answer(str(number)) == str(number)
            await trio.testing.wait_all_tasks_blocked()
        assert len(launcher.workers) == 11
        assert bench.failure.reason == "died_idle"


@pytest.mark.parametrize(
    "script",
    [
        Script(garbage_on_batch=1),
        Script(answer=[]),
        Script(answer=[JobReply(200, "", {}, b"1"), JobReply(200, "", {}, b"2")]),
    ],
    ids=["no frame", "too few", "too many"],
)
async def test_a_reply_that_makes_no_sense(autojump_clock: Clock, script: Script) -> None:
    launcher = FakeLauncher(script, Script())
    async with slot_on(launcher) as bench:
        job = bench.ask()
        await answered(job)
        assert (job.error.message, job.error.code) == ("Worker died.", 500)
        assert job.error.cause["reason"] == "bad_frame"
        assert await bench.answer() == "again"
        assert launcher.workers[0].killed
        assert trio.current_time() == 0.0


async def test_a_handlers_failure_is_no_workers(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(answer=HandlerFailed(503, "Prediction failed", "Traceback …")))
    async with slot_on(launcher, batch_size=2) as bench:
        jobs = [bench.ask("a"), bench.ask("b")]
        await answered(*jobs)
        for job in jobs:
            assert (job.error.message, job.error.code) == ("Prediction failed", 503)
            assert job.error.type_name == "InternalServerException"
            assert job.error.cause == {"reason": "handler_failed", "detail": "Traceback …"}
        await bench.until(Phase.READY)
        assert len(launcher.alive) == 1
        assert bench.slot.failure is None


# -- trying again


async def starts_of(script: Script, times: int, **settings: Any) -> list[float]:
    async with slot_on(FakeLauncher(script), **settings) as bench:
        await bench.until_started(times)
        return [later - earlier for earlier, later in pairwise(bench.starts)]


async def test_back_off_of_a_worker_that_never_loads(autojump_clock: Clock) -> None:
    assert await starts_of(Script(load_dies=True), 9) == [1, 1, 2, 3, 5, 8, 13, 21]


async def test_back_off_counts_from_the_failure(autojump_clock: Clock) -> None:
    assert await starts_of(Script(load_s=4.0, load_dies=True), 5) == [5, 5, 6, 7]


async def test_back_off_of_a_worker_that_loads_and_dies(autojump_clock: Clock) -> None:
    """The first restart is immediate; a load alone ends no row of failures."""
    assert await starts_of(Script(load_s=1.0, dies_idle_s=0.0), 8) == [1, 2, 2, 3, 4, 6, 9]


async def test_back_off_of_a_worker_that_dies_of_its_first_batch(autojump_clock: Clock) -> None:
    async with slot_on(FakeLauncher(Script(dies_on_batch=1))) as bench:
        for _ in range(6):
            bench.ask("poison")
        await bench.until_started(7)
        assert bench.starts == [0, 0, 1, 2, 4, 7, 12]


@pytest.mark.parametrize(
    "script",
    [Script(dies_idle_s=SETTLED_S), Script(dies_on_batch=2)],
    ids=["was ready for long", "answered a batch"],
)
async def test_a_worker_that_was_well_ends_the_row(autojump_clock: Clock, script: Script) -> None:
    async with slot_on(FakeLauncher(script)) as bench:
        for _ in range(8):
            bench.ask()
        await bench.until_started(4)
        assert bench.phases.count(Phase.BACKING_OFF) == 0


async def test_giving_up_after_the_window(autojump_clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    launcher = FakeLauncher(Script(load_dies=True))
    async with slot_on(launcher, retry_window_s=12.0) as bench:
        await bench.until(Phase.FAILED)
        assert bench.starts == [0, 1, 2, 4, 7, 12]
        assert trio.current_time() == 12.0
        assert bench.failure.reason == "died_loading"
        assert "still failing 12 s after the first failure (limit 12 s)" in caplog.text
        await trio.sleep(LONG_S)
        assert bench.slot.phase is Phase.FAILED

        bench.slot.retry()  # begins a row of its own
        await bench.until_started(9)
        assert bench.starts[6:] == [LONG_S + 12, LONG_S + 13, LONG_S + 14]


# -- stopping


@pytest.mark.parametrize("drain_s", [0.0, 5.0, math.inf])
@pytest.mark.parametrize("serve_out", [True, False])
async def test_an_idle_slot_stops_at_once(autojump_clock: Clock, drain_s: float, serve_out: bool) -> None:
    launcher = FakeLauncher(Script(leave_s=LEAVE_S))
    async with slot_on(launcher) as bench:
        await bench.until(Phase.READY)
        bench.slot.stop(drain_s=drain_s, serve_out=serve_out)
        await bench.stopped.wait()
        assert bench.phases[-3:] == [Phase.READY, Phase.STOPPING, Phase.STOPPED]
        assert launcher.workers[0].killed == (drain_s == 0)
        assert trio.current_time() == (0 if drain_s == 0 else LEAVE_S)
        assert bench.slot.stopping


async def test_what_is_in_hand_is_finished(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=7.0))
    async with slot_on(launcher) as bench:
        job, queued = bench.ask("a"), bench.ask("b")
        worker = await busy(launcher)
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        assert bench.slot.phase is Phase.DRAINING
        await bench.stopped.wait()
        assert (job.body, job.at) == ("a", 7.0)
        assert bench.phases[-4:] == [Phase.BUSY, Phase.DRAINING, Phase.STOPPING, Phase.STOPPED]
        assert not worker.killed
        assert queued.outcomes == []
        assert bench.queue.clear() == [queued], "for another slot"


async def test_what_is_in_hand_is_killed_after_the_limit(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=7.0))
    async with slot_on(launcher) as bench:
        job = bench.ask("a")
        worker = await busy(launcher)
        bench.slot.stop(drain_s=5.0, serve_out=False)
        await bench.stopped.wait()
        assert job.at == 5.0
        assert (job.error.message, job.error.code) == ("Worker died.", 500)
        assert job.error.cause == {
            "reason": "drain_timeout",
            "detail": "no answer within the time to drain, 5 s",
        }
        assert worker.killed
        assert trio.current_time() == 5.0


async def test_without_time_what_is_in_hand_is_killed_at_once(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=7.0))
    async with slot_on(launcher) as bench:
        job = bench.ask("a")
        worker = await busy(launcher)
        await trio.sleep(1.0)
        bench.slot.stop(drain_s=0, serve_out=True)
        await bench.stopped.wait()
        assert job.at == trio.current_time() == 1.0
        assert job.error.cause["reason"] == "drain_timeout"
        assert worker.killed


@pytest.mark.parametrize(
    ("first_s", "second_s", "ends_at", "done"),
    [
        (math.inf, 0.0, 1.0, False),
        (math.inf, 3.0, 4.0, False),
        (6.0, 2.0, 3.0, False),
        (2.0, math.inf, 7.0, True),
        (2.0, 20.0, 7.0, True),
    ],
)
async def test_a_second_order_changes_the_limit(
    autojump_clock: Clock, first_s: float, second_s: float, ends_at: float, done: bool
) -> None:
    launcher = FakeLauncher(Script(batch_s=7.0))
    async with slot_on(launcher) as bench:
        job = bench.ask("a")
        await busy(launcher)
        bench.slot.stop(drain_s=first_s, serve_out=False)
        await trio.sleep(1.0)
        bench.slot.stop(drain_s=second_s, serve_out=False)
        await bench.stopped.wait()
        assert (trio.current_time(), job.at) == (ends_at, ends_at)
        assert isinstance(job.outcome, JobReply) == done


async def test_a_worker_that_dies_while_draining_is_not_replaced(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=1.0, dies_on_batch=1))
    async with slot_on(launcher) as bench:
        job = bench.ask("a")
        await busy(launcher)
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        await bench.stopped.wait()
        assert job.error.cause["reason"] == "crashed"
        assert len(launcher.workers) == 1


async def test_a_silent_worker_is_drained_no_longer_than_it_may_take(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=math.inf))
    async with slot_on(launcher, response_timeout_s=30.0) as bench:
        job = bench.ask("a")
        await busy(launcher)
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        await bench.stopped.wait()
        assert job.at == trio.current_time() == 30.0
        assert job.error.cause["reason"] == "response_timeout"


async def test_a_worker_that_will_not_leave_is_killed(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(leave_s=math.inf))
    async with slot_on(launcher) as bench:
        await bench.until(Phase.READY)
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        with trio.fail_after(10):
            await bench.stopped.wait()
        assert launcher.workers[0].killed


async def stop_in(bench: Bench, phase: Phase) -> None:
    await bench.until(phase)
    bench.slot.stop(drain_s=math.inf, serve_out=False)
    now = trio.current_time()
    await bench.stopped.wait()
    assert trio.current_time() == now
    stopping = [Phase.STOPPING] if phase is Phase.LOADING else []
    assert bench.phases[-2 - len(stopping) :] == [phase, *stopping, Phase.STOPPED]


async def test_stop_while_loading(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_s=math.inf))
    async with slot_on(launcher) as bench:
        await stop_in(bench, Phase.LOADING)
        assert launcher.workers[0].exited.is_set()


async def test_stop_while_backing_off(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_dies=True))
    async with slot_on(launcher) as bench:
        await stop_in(bench, Phase.BACKING_OFF)
        await trio.sleep(LONG_S)
        assert launcher.asked == 1, "no retry after the end (spec/management.md section 5.4)"


async def test_stop_after_giving_up(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_report={"ok": False, "hopeless": True}))
    async with slot_on(launcher) as bench:
        await stop_in(bench, Phase.FAILED)


async def test_stop_before_the_first_breath(autojump_clock: Clock) -> None:
    """Ordered, and taken back before its task ran: no worker is started for that."""
    launcher = FakeLauncher()
    async with slot_on(launcher, run=False) as bench:
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        await bench.run()
        assert bench.phases == [Phase.STARTING, Phase.STOPPED]
        assert launcher.asked == 0


async def test_a_retry_taken_back(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_report={"ok": False, "hopeless": True}))
    async with slot_on(launcher) as bench:
        await bench.until(Phase.FAILED)
        bench.slot.retry()
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        await bench.stopped.wait()
        assert launcher.asked == 1


# -- serving out


async def test_serving_out_the_queue(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=2.0))
    async with slot_on(launcher) as bench:
        jobs = [bench.ask(text) for text in "abc"]
        await busy(launcher)
        bench.queue.close()
        bench.slot.stop(drain_s=math.inf, serve_out=True)
        await bench.stopped.wait()
        assert [job.body for job in jobs] == ["a", "b", "c"]
        assert trio.current_time() == 6.0
        assert not launcher.workers[0].killed
        assert bench.phases[-3:] == [Phase.DRAINING, Phase.STOPPING, Phase.STOPPED]


async def test_serving_out_ends_with_the_limit(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=2.0))
    async with slot_on(launcher) as bench:
        jobs = [bench.ask(text) for text in "abc"]
        await busy(launcher)
        bench.queue.close()
        bench.slot.stop(drain_s=3.0, serve_out=True)
        await bench.stopped.wait()
        assert trio.current_time() == 3.0
        assert jobs[0].body == "a"
        assert jobs[1].error.cause["reason"] == "drain_timeout"
        assert bench.queue.clear() == [jobs[2]], "left to the pool"


async def test_serving_out_amid_the_batch_delay(autojump_clock: Clock) -> None:
    """What has come leaves at once: nothing more can come."""
    launcher = FakeLauncher()
    async with slot_on(launcher, batch_size=4, batch_delay_s=60.0) as bench:
        job = bench.ask("a")
        await bench.until(Phase.READY)
        await trio.sleep(1.0)
        bench.queue.close()
        bench.slot.stop(drain_s=math.inf, serve_out=True)
        await bench.stopped.wait()
        assert (job.body, job.at) == ("a", 1.0)
        assert bench.phases[-4:] == [Phase.READY, Phase.DRAINING, Phase.STOPPING, Phase.STOPPED]


async def test_serving_out_waits_for_the_load(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_s=5.0))
    async with slot_on(launcher) as bench:
        job = bench.ask("a")
        await bench.until(Phase.LOADING)
        bench.queue.close()
        bench.slot.stop(drain_s=math.inf, serve_out=True)
        await bench.stopped.wait()
        assert (job.body, job.at) == ("a", 5.0)


async def test_serving_out_does_not_outlast_a_failed_load(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_s=5.0, load_dies=True))
    async with slot_on(launcher) as bench:
        job = bench.ask("a")
        await bench.until(Phase.LOADING)
        bench.queue.close()
        bench.slot.stop(drain_s=math.inf, serve_out=True)
        await bench.stopped.wait()
        assert trio.current_time() == 5.0
        assert bench.queue.clear() == [job]


async def test_a_slot_that_gave_up_does_not_come_back_to_serve_out(autojump_clock: Clock) -> None:
    """Others may still serve the queue; what gave up leaves."""
    launcher = FakeLauncher(Script(load_report={"ok": False, "hopeless": True}), Script())
    async with slot_on(launcher) as bench:
        await bench.until(Phase.FAILED)
        bench.ask("for another slot")
        bench.queue.close()
        bench.slot.stop(drain_s=math.inf, serve_out=True)
        await bench.stopped.wait()
        assert launcher.asked == 1


async def test_an_order_to_leave_the_queue_to_others_ends_the_serving_out(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=2.0))
    async with slot_on(launcher) as bench:
        jobs = [bench.ask(text) for text in "abc"]
        await busy(launcher)
        bench.slot.stop(drain_s=math.inf, serve_out=True)
        await trio.sleep(1.0)
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        await bench.stopped.wait()
        assert jobs[0].body == "a"
        assert bench.queue.clear() == jobs[1:]


# -- the server ends


async def test_a_cancelled_slot_answers_what_it_has_in_hand(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=math.inf))
    async with slot_on(launcher) as bench:
        job = bench.ask("a")
        worker = await busy(launcher)
    assert job.error.message == "Worker died."
    assert worker.killed
    assert bench.slot.phase is Phase.STOPPED


# -- what is told of it


def told(bench: Bench) -> list[tuple[str, dict[str, object]]]:
    return [(event.kind.value, dict(event.detail)) for event in bench.events]


async def test_a_life_as_it_is_told(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_s=2.0, dies_on_batch=1, exit=7), Script())
    async with slot_on(launcher) as bench:
        await bench.until(Phase.READY)
        await answered(bench.ask("a"))
        assert await bench.answer() == "again"
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        await bench.stopped.wait()
        crash = {"reason": "crashed", "detail": "hung up", "exit": "exit code 7", "next_try_s": 0.0}
        assert told(bench) == [
            ("worker_ready", {"load_s": 2.0}),
            ("worker_died", crash),
            ("worker_ready", {"load_s": 0.0}),
            ("worker_stopped", {"exit": "exit code 0"}),
        ]
        assert [(event.worker, event.pid) for event in bench.events] == [(9000, 1001)] * 2 + [(9000, 1002)] * 2
        assert bench.events[1].log_tail == "last words of W-9000-m_1.0\n"


async def test_giving_up_is_told_with_its_reason(autojump_clock: Clock) -> None:
    report = {"ok": False, "reason": "import_error", "detail": "no", "hopeless": True, "file": "handler.py:3"}
    async with slot_on(FakeLauncher(Script(load_report=report))) as bench:
        await bench.until(Phase.FAILED)
        why = {"reason": "import_error", "detail": "no", "file": "handler.py:3", "why": "trying again cannot help"}
        assert told(bench) == [("worker_gave_up", why)]
        assert bench.failure.cause()["file"] == "handler.py:3"


@pytest.mark.parametrize(
    ("script", "drain_s", "reason"),
    [
        (Script(leave_s=math.inf), math.inf, "kill_grace"),
        (Script(batch_s=math.inf), 3.0, "drain_timeout"),
    ],
)
async def test_a_worker_that_had_to_be_killed(
    autojump_clock: Clock, script: Script, drain_s: float, reason: str
) -> None:
    launcher = FakeLauncher(script)
    async with slot_on(launcher) as bench:
        if reason == "drain_timeout":
            bench.ask("a")
            await busy(launcher)
        else:
            await bench.until(Phase.READY)
        bench.slot.stop(drain_s=drain_s, serve_out=False)
        await bench.stopped.wait()
        kind, detail = told(bench)[-1]
        assert (kind, detail["exit"], detail["reason"]) == ("worker_stopped", "signal SIGKILL", reason)


# -- limits of its own


async def test_too_many_processes_end_the_worker(autojump_clock: Clock) -> None:
    spec = WorkerSpec("m", "model_dir", "handler.py", 1, process_limit=4)
    launcher = FakeLauncher(Script(processes=5), Script(processes=4))
    async with slot_on(launcher, worker=spec) as bench:
        await bench.until_started(2)
        assert bench.failure.reason == "process_limit"
        assert bench.failure.detail == "5 processes, worker_process_limit is 4"
        assert launcher.workers[0].killed
        await bench.until(Phase.READY)
        await trio.sleep(100.0)
        assert len(launcher.workers) == 2, "as many as allowed are allowed"


async def test_a_worker_that_dies_too_often_is_left_down(autojump_clock: Clock) -> None:
    """Though each start of it works, and answers."""
    launcher = FakeLauncher(Script(dies_on_batch=2))
    async with slot_on(launcher, most_restarts=3, restart_period_s=60.0) as bench:
        for _ in range(4):
            assert await bench.answer() == "again"
            await answered(bench.ask("the end"))
        await bench.until(Phase.FAILED)
        assert len(launcher.workers) == 4
        assert told(bench)[-1][1]["why"] == "3 restarts of this version within 60 s (max_worker_restarts)"


async def test_a_worker_that_dies_now_and_then_is_started_for_ever(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(dies_on_batch=2))
    async with slot_on(launcher, most_restarts=3, restart_period_s=60.0) as bench:
        for _ in range(20):
            assert await bench.answer() == "again"
            await trio.sleep(21.0)
            await answered(bench.ask("the end"))
        await bench.until(Phase.READY)
        assert len(launcher.workers) == 21


async def test_a_retry_does_not_wait_for_the_next_try(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(load_dies=True), Script(load_dies=True), Script(load_dies=True), Script())
    async with slot_on(launcher) as bench:
        await bench.until_started(3)
        await bench.until(Phase.BACKING_OFF)
        at = trio.current_time()
        bench.slot.retry()
        await bench.until(Phase.READY)
        assert trio.current_time() == at


async def test_the_workers_of_a_slot_get_its_gpu(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(dies_on_batch=1), Script())
    queue = JobQueue(10)
    spec = pool_spec()
    slot = Slot(1, spec, queue, launcher, lambda: None, intensity=Intensity(0, 1), report=print, gpu_id=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slot.run)
        job = Asked("a")
        queue.put(job)
        await answered(job)
        await trio.testing.wait_all_tasks_blocked()
        assert [(worker.spec.gpu_id, worker.told["gpu_id"]) for worker in launcher.workers] == [(3, 3), (3, 3)]
        assert slot.view().gpu_id == 3
        nursery.cancel_scope.cancel()
