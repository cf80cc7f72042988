"""How a worker is kept busy: streams, continuous batches, asynchronous workers (spec/inference.md 6 and 9.3)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes import Asked, FakeLauncher, Script, pool_spec
from tests.runtime.test_slot import FOREVER_S, Bench, answered, busy, slot_on
from tserve.domain.phases import Phase
from tserve.domain.wire import HandlerFailed, JobReply
from tserve.errors import InternalServer
from tserve.runtime.jobs import Purpose
from tserve.runtime.serving import MOST_ASYNCHRONOUS

Clock = trio.testing.MockClock


def asynchronous(**settings: Any) -> dict[str, Any]:
    return {"worker": replace(pool_spec().worker, asynchronous=True), **settings}


def queued(bench: Bench, text: str, **fields: Any) -> Asked:
    job = Asked(text, **fields)
    bench.queue.put(job)
    return job


# -- streams


async def test_pieces_are_passed_on_as_they_come(autojump_clock: Clock) -> None:
    async with slot_on(FakeLauncher(Script(pieces=3, piece_s=1.0)), batch_size=2) as bench:
        jobs = [bench.ask("a"), bench.ask("b")]
        await answered(*jobs)
        for job in jobs:
            assert job.pieces == [(job.at - 3, b"0|"), (job.at - 2, b"1|"), (job.at - 1, b"2|")]
            assert job.body == job.text


async def test_the_response_timeout_runs_anew_with_each_piece(autojump_clock: Clock) -> None:
    """It is of each gap, not of the whole."""
    async with slot_on(FakeLauncher(Script(pieces=10, piece_s=1.5)), response_timeout_s=2.0) as bench:
        job = bench.ask("slow but steady")
        await answered(job)
        assert job.body == "slow but steady"


async def test_a_stream_that_stops_is_cut(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(pieces=1, piece_s=3.0), Script())
    async with slot_on(launcher, response_timeout_s=2.0) as bench:
        job = bench.ask("stuck")
        await answered(job)
        assert [body for _, body in job.pieces] == [b"0|"]
        assert job.error.cause["reason"] == "response_timeout"
        assert launcher.workers[0].aborted


async def test_a_stream_that_nobody_reads_ends(autojump_clock: Clock) -> None:
    """The worker is told, and free for the next."""
    launcher = FakeLauncher(Script(pieces=1000, piece_s=1.0))
    async with slot_on(launcher) as bench:
        job = bench.ask("gone")
        await busy_since(bench)
        await trio.sleep(0.5)
        bench.queue.discard(job)
        await bench.until(Phase.READY)
        assert trio.current_time() == 2.0
        assert launcher.workers[0].gone == [1]
        assert len(job.pieces) == 1
        assert not job.outcomes


async def test_a_handler_that_streams_on_for_nobody_is_late(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(pieces=1000, piece_s=1.0, streams_on=True), Script())
    async with slot_on(launcher, response_timeout_s=5.0) as bench:
        job = bench.ask("gone")
        await busy_since(bench)
        await trio.sleep(3.5)
        bench.queue.discard(job)
        assert await bench.answer() == "again"
        assert launcher.workers[0].aborted


async def test_a_stream_goes_on_for_those_who_stayed(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(pieces=5, piece_s=1.0))
    async with slot_on(launcher, batch_size=2, batch_delay_s=1.0) as bench:
        gone, stays = bench.ask("gone"), bench.ask("stays")
        await busy_since(bench)
        bench.queue.discard(gone)
        await answered(stays)
        assert len(stays.pieces) == 5
        assert not launcher.workers[0].gone


async def busy_since(bench: Bench) -> None:
    await bench.until(Phase.BUSY)
    await trio.testing.wait_all_tasks_blocked()


async def test_each_request_fails_alone_when_the_worker_says_so(autojump_clock: Clock) -> None:
    answer = [JobReply(200, "", {}, b"fine"), HandlerFailed(503, "Unsupported model output data type.", "a set")]
    async with slot_on(FakeLauncher(Script(answer=answer)), batch_size=2, batch_delay_s=1.0) as bench:
        fine, failed = bench.ask("fine"), bench.ask("failed")
        await answered(fine, failed)
        assert fine.body == "fine"
        assert (failed.error.code, failed.error.message) == (503, "Unsupported model output data type.")
        assert failed.error.cause == {"reason": "handler_failed", "detail": "a set"}


# -- who shares a batch


async def test_a_describe_call_travels_alone(autojump_clock: Clock) -> None:
    """It closes the batch that is being collected (section 9.2)."""
    launcher = FakeLauncher()
    async with slot_on(launcher, run=False, batch_size=4, batch_delay_s=0.5) as bench:
        purposes = [Purpose.PREDICT, Purpose.PREDICT, Purpose.DESCRIBE, Purpose.PREDICT, Purpose.EXPLAIN]
        jobs = [queued(bench, str(n), purpose=purpose) for n, purpose in enumerate(purposes)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.run)
            await answered(*jobs)
            nursery.cancel_scope.cancel()
        assert launcher.workers[0].batches == [[b"0", b"1"], [b"2"], [b"3"], [b"4"]]
        assert jobs[3].at == jobs[0].at, "nobody waited for what cannot join"


# -- continuous batches


async def test_jobs_join_and_leave_a_continuous_batch(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(rounds=3, batch_s=1.0))
    async with slot_on(launcher, batch_size=2, batch_delay_s=0.0, continuous=True) as bench:
        first = bench.ask("a")
        await busy_since(bench)
        second, third = bench.ask("b"), bench.ask("c")
        await answered(first, second, third)
        # A job that the worker has is sent again without its inputs; c waited for a's place.
        assert launcher.workers[0].batches == [[b"a"], [b"", b"b"], [b"", b""], [b"", b"c"], [b""], [b""]]
        assert [body for _, body in first.pieces] == [b"a", b""]
        assert [job.at for job in (first, second, third)] == [3.0, 4.0, 6.0]


async def test_a_client_that_left_leaves_the_continuous_batch(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(rounds=100, batch_s=1.0))
    async with slot_on(launcher, batch_size=1, batch_delay_s=0.0, continuous=True) as bench:
        gone = bench.ask("gone")
        await busy_since(bench)
        await trio.sleep(2.5)
        bench.queue.discard(gone)
        await bench.until(Phase.READY)
        assert len(launcher.workers[0].batches) == 3


async def test_a_describe_call_comes_between_two_rounds(autojump_clock: Clock) -> None:
    """A continuous batch may have no end; it goes on all the same."""
    launcher = FakeLauncher(Script(rounds=50, batch_s=1.0))
    async with slot_on(launcher, batch_size=2, batch_delay_s=0.0, continuous=True) as bench:
        endless = bench.ask("endless")
        await busy_since(bench)
        describe = queued(bench, "describe", purpose=Purpose.DESCRIBE)
        await trio.sleep(2.5)
        assert launcher.workers[0].batches == [[b"endless"], [b"describe"], [b""]]
        await answered(endless, describe)


async def test_a_continuous_batch_is_finished_before_the_slot_leaves(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(rounds=3, batch_s=1.0))
    async with slot_on(launcher, batch_size=2, batch_delay_s=0.0, continuous=True) as bench:
        job = bench.ask("a")
        await busy_since(bench)
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        late = bench.ask("late")
        await answered(job)
        await bench.until(Phase.STOPPED)
        assert job.body == ""
        assert not late.outcomes, "it waits for another slot"


async def test_a_worker_that_dies_takes_the_whole_continuous_batch(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(rounds=9, batch_s=1.0, dies_on_batch=3), Script())
    async with slot_on(launcher, batch_size=2, batch_delay_s=0.0, continuous=True) as bench:
        jobs = [bench.ask("a"), bench.ask("b")]
        await answered(*jobs)
        assert {job.error.message for job in jobs} == {"Worker died."}
        assert await bench.answer() == "again"


async def test_what_a_worker_did_not_get_of_a_continuous_batch_goes_back(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(rounds=9, batch_s=1.0, dies_before_batch=2), Script())
    async with slot_on(launcher, batch_size=2, batch_delay_s=0.0, continuous=True) as bench:
        begun = bench.ask("begun")
        await busy_since(bench)
        fresh = bench.ask("fresh")
        await answered(begun, fresh)
        assert begun.error.message == "Worker died."
        assert fresh.body == "fresh"


# -- asynchronous workers


async def test_an_asynchronous_worker_has_many_in_hand(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(takes_its_time=True))
    async with slot_on(launcher, **asynchronous()) as bench:
        slow, quick = bench.ask("3"), bench.ask("1")
        await answered(slow, quick)
        assert (slow.at, quick.at) == (3.0, 1.0)
        assert [slow.body, quick.body] == ["3", "1"]
        await bench.until(Phase.READY)


async def test_an_asynchronous_worker_has_no_more_in_hand_than_it_may(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(takes_its_time=True))
    async with slot_on(launcher, queue_size=1000, **asynchronous()) as bench:
        jobs = [bench.ask("1") for _ in range(MOST_ASYNCHRONOUS + 1)]
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.5)
        assert len(launcher.workers[0].batches) == MOST_ASYNCHRONOUS
        assert bench.slot.room == 0
        await answered(*jobs)
        assert {job.at for job in jobs} == {1.0, 2.0}


async def test_an_asynchronous_slot_finishes_what_it_has_and_takes_no_more(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(takes_its_time=True))
    async with slot_on(launcher, **asynchronous()) as bench:
        job = bench.ask("2")
        await busy_since(bench)
        bench.slot.stop(drain_s=math.inf, serve_out=False)
        assert bench.slot.phase is Phase.DRAINING
        late = bench.ask("1")
        await answered(job)
        await bench.until(Phase.STOPPED)
        assert job.body == "2"
        assert not late.outcomes


@pytest.mark.parametrize("serve_out", [True, False])
async def test_an_asynchronous_slot_leaves_when_it_has_nothing(autojump_clock: Clock, serve_out: bool) -> None:
    async with slot_on(FakeLauncher(), **asynchronous()) as bench:
        await bench.until(Phase.READY)
        bench.slot.stop(drain_s=math.inf, serve_out=serve_out)
        await bench.until(Phase.STOPPED)


async def test_an_asynchronous_worker_that_dies_takes_all_it_had(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(takes_its_time=True), Script(takes_its_time=True))
    async with slot_on(launcher, **asynchronous()) as bench:
        jobs = [bench.ask("5"), bench.ask("6")]
        worker = await busy(launcher)
        await trio.sleep(1)
        worker.crash(13)
        await answered(*jobs)
        assert [job.error.cause["reason"] for job in jobs] == ["crashed", "crashed"]
        assert await bench.answer("1") == "1"


async def test_an_asynchronous_worker_that_dies_idle_is_started_again(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(dies_idle_s=1.0), Script(takes_its_time=True))
    async with slot_on(launcher, **asynchronous()) as bench:
        await bench.until_started(2)
        assert bench.failure.reason == "died_idle"
        assert await bench.answer("1") == "1"


async def test_a_late_answer_of_an_asynchronous_worker_fails_alone(autojump_clock: Clock) -> None:
    """As long as the worker answers others."""
    launcher = FakeLauncher(Script(takes_its_time=True))
    async with slot_on(launcher, **asynchronous(response_timeout_s=2.0)) as bench:
        late, first = bench.ask("5"), bench.ask("1.5")
        await answered(first)
        second = bench.ask("1.5")
        await answered(late, second)
        assert (late.at, late.error.message) == (2.0, "No answer within response_timeout, 2 s.")
        assert late.error.cause["reason"] == "response_timeout"
        assert second.body == "1.5"
        await bench.until(Phase.READY)
        assert trio.current_time() == 5.0, "the answer that came late goes nowhere"
        assert not launcher.workers[0].aborted


async def test_silence_of_an_asynchronous_worker_is_its_end(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(takes_its_time=True), Script(takes_its_time=True))
    async with slot_on(launcher, **asynchronous(response_timeout_s=2.0)) as bench:
        stuck, other = bench.ask("9"), bench.ask("8")
        await answered(stuck, other)
        assert stuck.at >= 2.0
        for job in (stuck, other):
            assert (job.error.message, job.error.cause["reason"]) == ("Worker died.", "response_timeout")
        assert launcher.workers[0].aborted
        assert await bench.answer("1") == "1"


async def test_a_worker_on_its_way_out_gets_nothing_more(autojump_clock: Clock) -> None:
    script = Script(takes_its_time=True, ignores_abort=True)
    launcher = FakeLauncher(script, Script(takes_its_time=True))
    async with slot_on(launcher, **asynchronous(response_timeout_s=2.0)) as bench:
        stuck = bench.ask("9")
        await busy_since(bench)
        await trio.sleep(2.1)  # it is being ended now
        fresh = bench.ask("1")
        await answered(stuck, fresh)
        assert stuck.error.message == "Worker died."
        assert fresh.body == "1"


async def test_an_asynchronous_worker_full_of_late_requests_is_ended(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(takes_its_time=True), Script(takes_its_time=True))
    async with slot_on(launcher, queue_size=1000, **asynchronous(response_timeout_s=2.0)) as bench:
        last = bench.ask("1.5")
        late = [bench.ask("99") for _ in range(MOST_ASYNCHRONOUS - 1)]
        await answered(last)
        late.append(bench.ask("99"))
        await answered(*late)
        assert await bench.answer("1") == "1"


async def test_a_stream_of_an_asynchronous_worker_that_nobody_reads(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(pieces=1000, piece_s=1.0))
    async with slot_on(launcher, **asynchronous()) as bench:
        job = bench.ask("gone")
        await busy_since(bench)
        await trio.sleep(2.5)
        bench.queue.discard(job)
        await bench.until(Phase.READY)
        assert launcher.workers[0].gone == [1]


async def test_a_surplus_answer_of_an_asynchronous_worker_is_its_end(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(surplus_on_batch=1, takes_its_time=True), Script(takes_its_time=True))
    async with slot_on(launcher, **asynchronous()) as bench:
        first, second = bench.ask("1"), bench.ask("2")
        await answered(first, second)
        assert first.body == "1"
        assert isinstance(second.error, InternalServer)
        assert second.error.cause["reason"] == "bad_frame"
        with trio.fail_after(FOREVER_S):
            assert await bench.answer("1") == "1"
