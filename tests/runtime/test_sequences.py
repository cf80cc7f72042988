"""Sequences: who gets which request of a stateful version, and when one ends (spec/inference.md section 9.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from tests.fakes import Asked, FakeLauncher, Script, pool_spec
from tests.runtime.test_slot import FOREVER_S, answered
from tserve.domain.plan import PoolSpec, SequenceLimits
from tserve.runtime.jobs import Job, Purpose, QueueClosed, QueueFull
from tserve.runtime.pool import Pool
from tserve.runtime.sequences import SequenceQueue

Clock = trio.testing.MockClock
LIMITS = SequenceLimits(most=3, most_waiting=2, max_idle_s=10.0, timeout_s=math.inf)
END = "ts_request_sequence_end"


def queue_of(limits: SequenceLimits = LIMITS, *, per_worker: int = 2) -> SequenceQueue:
    return SequenceQueue(100, limits, per_worker=per_worker, name="m", end_header=END)


def put(queue: SequenceQueue, *texts: str, **fields: object) -> list[Asked]:
    """Requests by texts such as `a1`: the first one of the sequence a."""
    jobs = [Asked(text, sequence=text[0], **fields) for text in texts]
    for job in jobs:
        queue.put(job)
    return jobs


async def take(queue: SequenceQueue, taker: int = 1, size: int = 2) -> list[str]:
    with trio.fail_after(FOREVER_S):
        return texts(await queue.take(size, 0, taker=taker))


def texts(jobs: Sequence[Job]) -> list[str]:
    return [job.text for job in jobs if isinstance(job, Asked)]


def nothing(queue: SequenceQueue, taker: int = 1, size: int = 2) -> bool:
    return not queue.join(size, Purpose.PREDICT, taker=taker)


# -- order and place


async def test_requests_of_a_sequence_run_in_order_one_per_batch(autojump_clock: Clock) -> None:
    queue = queue_of()
    (a1, a2), _ = put(queue, "a1", "a2"), put(queue, "b1")
    assert await take(queue) == ["a1", "b1"]
    assert nothing(queue), "a1 is in hand"
    queue.answered(a1, {})
    assert await take(queue) == ["a2"]
    queue.answered(a2, {})
    assert nothing(queue)


async def test_a_sequence_stays_with_its_worker(autojump_clock: Clock) -> None:
    queue = queue_of()
    (a1,) = put(queue, "a1")
    assert await take(queue, taker=1) == ["a1"]
    queue.answered(a1, {})
    put(queue, "a2", "b1")
    assert await take(queue, taker=2) == ["b1"]
    assert nothing(queue, taker=2)
    assert await take(queue, taker=1) == ["a2"]


async def test_a_worker_has_no_more_sequences_than_it_may(autojump_clock: Clock) -> None:
    queue = queue_of(per_worker=1)
    a1, _ = put(queue, "a1", "b1")
    assert await take(queue, taker=1) == ["a1"]
    queue.answered(a1, {})
    assert nothing(queue, taker=1), "b would be its second sequence, and a may go on"
    assert await take(queue, taker=2) == ["b1"]


async def test_a_new_sequence_waits_until_an_old_one_ends(autojump_clock: Clock) -> None:
    queue = queue_of(per_worker=1)
    a1, _ = put(queue, "a1", "b1")
    assert await take(queue) == ["a1"]
    queue.answered(a1, {})
    assert await take(queue) == ["b1"]
    assert trio.current_time() == LIMITS.max_idle_s


async def test_a_collector_waits_for_others_sequences(autojump_clock: Clock) -> None:
    queue = queue_of()

    async def later() -> None:
        await trio.sleep(0.2)
        put(queue, "b1")

    put(queue, "a1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        assert texts(await queue.take(2, 0.5, taker=1)) == ["a1", "b1"]
        assert trio.current_time() == 0.2


# -- bounds


async def test_no_more_sequences_than_may_live() -> None:
    queue = queue_of()
    put(queue, "a1", "b1", "c1")
    with pytest.raises(QueueFull):
        put(queue, "d1")
    put(queue, "a2")


async def test_no_more_requests_of_a_sequence_than_may_wait() -> None:
    queue = queue_of()
    put(queue, "a1", "a2")
    with pytest.raises(QueueFull):
        put(queue, "a3")
    assert len(queue) == 2


async def test_a_closed_queue_takes_none_and_gives_what_it_has(autojump_clock: Clock) -> None:
    queue = queue_of()
    put(queue, "a1")
    queue.close()
    with pytest.raises(QueueClosed):
        put(queue, "b1")
    assert await take(queue) == ["a1"]
    assert await take(queue) == []


# -- ends


async def test_an_idle_sequence_ends(autojump_clock: Clock) -> None:
    queue = queue_of(SequenceLimits(most=1, most_waiting=2, max_idle_s=10.0, timeout_s=math.inf))
    (a1,) = put(queue, "a1")
    assert await take(queue) == ["a1"]
    await trio.sleep(50)  # a long answer is not idleness
    queue.answered(a1, {})
    await trio.sleep(9)
    with pytest.raises(QueueFull):
        put(queue, "b1")
    await trio.sleep(1)
    put(queue, "b1")
    with pytest.raises(QueueFull):
        put(queue, "a2")


async def test_a_sequence_has_a_time_in_all(autojump_clock: Clock) -> None:
    queue = queue_of(SequenceLimits(most=2, most_waiting=2, max_idle_s=10.0, timeout_s=15.0))
    a1, a2, _ = put(queue, "a1", "a2", "b1")
    assert await take(queue, size=1) == ["a1"]
    await trio.sleep(16)
    queue.answered(a1, {})
    put(queue, "c1")  # makes room
    assert a2.error.cause == {"reason": "sequence_expired", "sequence": "a"}


async def test_a_client_can_end_its_sequence(autojump_clock: Clock) -> None:
    queue = queue_of()
    (a1,) = put(queue, "a1", ends_sequence=True)
    assert await take(queue) == ["a1"]
    queue.answered(a1, {})
    put(queue, "a2")
    assert await take(queue, taker=2) == ["a2"], "another sequence, for any worker"


@pytest.mark.parametrize("value", ["true", "a", "x;a", "a;b;"])
async def test_a_handler_can_end_sequences(autojump_clock: Clock, value: str) -> None:
    queue = queue_of()
    a1, a2 = put(queue, "a1", "a2")
    assert await take(queue) == ["a1"]
    queue.answered(a1, {"TS_Request_Sequence_End": value})
    assert a2.error.cause == {"reason": "sequence_ended", "sequence": "a"}
    assert queue.empty


async def test_the_state_of_a_sequence_is_lost_with_its_worker(autojump_clock: Clock) -> None:
    """Another worker would answer the rest as if it were the beginning."""
    queue = queue_of()
    a1, a2, b1 = put(queue, "a1", "a2", "b1")
    assert await take(queue, taker=1, size=1) == ["a1"]
    a1.begun = True
    queue.release(1)
    assert a2.error.cause == {"reason": "sequence_lost", "sequence": "a"}
    assert await take(queue, taker=2) == ["b1"]
    assert not b1.outcomes


async def test_a_sequence_that_no_worker_knew_goes_to_another(autojump_clock: Clock) -> None:
    queue = queue_of()
    (a1,) = put(queue, "a1")
    assert await take(queue, taker=1) == ["a1"]
    queue.put_back([a1])
    queue.release(1)
    assert await take(queue, taker=2) == ["a1"]


async def test_a_client_that_leaves_frees_its_place(autojump_clock: Clock) -> None:
    queue = queue_of(SequenceLimits(most=1, most_waiting=2, max_idle_s=10.0, timeout_s=math.inf))
    (a1,) = put(queue, "a1")
    queue.discard(a1)
    put(queue, "b1")
    assert await take(queue) == ["b1"]


async def test_a_client_that_leaves_a_sequence_that_is_being_sent(autojump_clock: Clock) -> None:
    """Its first request is on the way to a worker: the sequence is that worker's, though it has not begun it."""
    queue = queue_of()
    a1, a2 = put(queue, "a1", "a2")
    assert await take(queue, taker=1, size=1) == ["a1"]
    queue.discard(a2)
    put(queue, "a3")
    assert nothing(queue, taker=2)
    queue.answered(a1, {})
    assert await take(queue, taker=1) == ["a3"]


async def test_requests_that_ask_for_different_things_share_no_batch(autojump_clock: Clock) -> None:
    queue = queue_of()
    put(queue, "a1")
    put(queue, "b1", purpose=Purpose.EXPLAIN)
    assert await take(queue) == ["a1"]
    put(queue, "c1")
    assert nothing(queue), "b1 is the next in turn, and asks for something else"
    assert await take(queue, taker=2, size=1) == ["b1"]


async def test_sequences_end_in_the_order_in_which_they_fell_idle(autojump_clock: Clock) -> None:
    queue = queue_of(SequenceLimits(most=2, most_waiting=2, max_idle_s=10.0, timeout_s=math.inf))
    a1, b1 = put(queue, "a1", "b1")
    assert await take(queue) == ["a1", "b1"]
    queue.answered(a1, {})
    await trio.sleep(5)
    queue.answered(b1, {})
    (a2,) = put(queue, "a2")
    assert await take(queue) == ["a2"]
    queue.answered(a2, {})
    await trio.sleep(9)
    put(queue, "a3", "b2")
    with pytest.raises(QueueFull):
        put(queue, "c1")


async def test_what_waits_can_be_taken_out() -> None:
    queue = queue_of()
    jobs = put(queue, "a1", "a2", "b1")
    assert queue.clear() == jobs
    assert queue.empty


async def test_a_describe_call_belongs_to_no_sequence(autojump_clock: Clock) -> None:
    queue = queue_of()
    put(queue, "a1")
    describe = Asked("describe", purpose=Purpose.DESCRIBE)
    queue.put(describe)
    assert nothing(queue), "nobody joins while it waits"
    assert await take(queue) == ["describe"]
    assert await take(queue) == ["a1"]


# -- with workers


async def test_a_pool_keeps_sequences_together(autojump_clock: Clock) -> None:
    launcher = FakeLauncher(Script(batch_s=1.0))
    spec: PoolSpec = pool_spec(2, sequences=LIMITS)
    pool = Pool(spec, launcher, iter(range(9000, 9100)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        await pool.settled(patience_s=FOREVER_S)
        jobs = [Asked(text, sequence=text[0]) for text in ("a1", "b1", "a2", "b2")]
        for job in jobs:
            pool.submit(job)
        await answered(*jobs)
        assert sorted([*worker.batches] for worker in launcher.workers) == [[[b"a1"], [b"a2"]], [[b"b1"], [b"b2"]]]
        nursery.cancel_scope.cancel()
