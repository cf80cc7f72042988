"""The job queue and how batches are formed (spec/inference.md section 9.2)."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.fakes import Asked
from tserve.domain.wire import JobReply
from tserve.errors import InternalServer
from tserve.runtime.jobs import Job, JobQueue, QueueClosed, QueueFull

DELAY_S = 0.7
REPLY = JobReply(200, "", {}, b"")


def queue_of(*texts: str, capacity: int = 100) -> JobQueue:
    queue = JobQueue(capacity)
    for text in texts:
        queue.put(Asked(text))
    return queue


def texts(jobs: list[Job] | None) -> str:
    return " ".join(job.text for job in jobs or () if isinstance(job, Asked))


class Collector:
    """A task that takes one batch; `batch` and the time are there once it has it."""

    def __init__(self, queue: JobQueue, size: int) -> None:
        self.batch: list[Job] | None = None
        self.at = math.nan
        self.scope = trio.CancelScope()
        self._take = queue, size

    async def run(self) -> None:
        queue, size = self._take
        with self.scope:
            self.batch = await queue.take(size, DELAY_S, taker=1)
            self.at = trio.current_time()


Collect = Callable[[JobQueue, int], Awaitable[Collector]]


@pytest.fixture
def collect(nursery: trio.Nursery) -> Collect:
    async def start(queue: JobQueue, size: int) -> Collector:
        collector = Collector(queue, size)
        nursery.start_soon(collector.run)
        await trio.testing.wait_all_tasks_blocked()
        return collector

    return start


# -- batches


async def test_more_than_a_batch_waits(autojump_clock: trio.testing.MockClock) -> None:
    queue = queue_of(*"abcdefghij")
    start = trio.current_time()
    assert texts(await queue.take(4, DELAY_S, taker=1)) == "a b c d"
    assert texts(await queue.take(4, DELAY_S, taker=1)) == "e f g h"
    assert trio.current_time() == start
    assert texts(await queue.take(4, DELAY_S, taker=1)) == "i j"
    assert trio.current_time() == start + DELAY_S


async def test_size_one_takes_the_next_and_needs_no_clock() -> None:
    """On a clock that stands still, so any delay would hang."""
    queue = queue_of("a", "b")
    with trio.fail_after(5):
        assert texts(await queue.take(1, 3600, taker=1)) == "a"
        assert texts(await queue.take(1, 3600, taker=1)) == "b"


async def test_without_a_delay_there_is_no_clock_either() -> None:
    queue = queue_of("a", "b")
    with trio.fail_after(5):
        assert texts(await queue.take(8, 0, taker=1)) == "a b"


async def test_fewer_than_a_batch_leave_after_exactly_the_delay(autojump_clock: trio.testing.MockClock) -> None:
    queue = queue_of(*"abcde")
    start = trio.current_time()
    assert texts(await queue.take(8, DELAY_S, taker=1)) == "a b c d e"
    assert trio.current_time() == start + DELAY_S


async def test_no_job_is_waited_for_without_limit(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1e9) as scope:
        await queue_of().take(8, DELAY_S, taker=1)
    assert scope.cancelled_caught


async def test_a_lone_job_leaves_its_delay_after_it_came(
    autojump_clock: trio.testing.MockClock, collect: Collect
) -> None:
    queue = queue_of()
    collector = await collect(queue, 8)
    await trio.sleep(100)
    came = trio.current_time()
    queue.put(Asked("late"))
    await trio.sleep(10)
    assert texts(collector.batch) == "late"
    assert collector.at == came + DELAY_S


async def test_the_delay_counts_from_the_first_job(autojump_clock: trio.testing.MockClock, collect: Collect) -> None:
    queue = queue_of()
    collector = await collect(queue, 8)
    start = trio.current_time()
    for text in "abc":
        queue.put(Asked(text))
        await trio.sleep(0.3)
    await trio.sleep(10)
    assert (texts(collector.batch), collector.at) == ("a b c", start + DELAY_S)


async def test_a_full_batch_leaves_at_once(autojump_clock: trio.testing.MockClock, collect: Collect) -> None:
    queue = queue_of("a", "b")
    collector = await collect(queue, 3)
    await trio.sleep(0.5)
    queue.put(Asked("c"))
    now = trio.current_time()
    await trio.sleep(10)
    assert (texts(collector.batch), collector.at) == ("a b c", now)


async def test_jobs_whose_clients_left_are_left_out(autojump_clock: trio.testing.MockClock, collect: Collect) -> None:
    queue = queue_of()
    jobs = [Asked(text) for text in "abcd"]
    collector = await collect(queue, 4)
    for job in jobs[:3]:
        queue.put(job)
    queue.discard(jobs[1])
    await trio.sleep(0.5)
    queue.put(jobs[3])  # the third that is left: the batch is not full
    await trio.sleep(10)
    assert texts(collector.batch) == "a c d"
    assert jobs[1].outcomes == []


async def test_a_batch_whose_clients_all_left_is_never_sent(
    autojump_clock: trio.testing.MockClock, collect: Collect
) -> None:
    """The next job starts a batch, and a clock, of its own."""
    queue = queue_of()
    collector = await collect(queue, 4)
    gone = Asked("gone")
    queue.put(gone)
    await trio.sleep(0.5)
    queue.discard(gone)
    await trio.sleep(10)
    assert collector.batch is None
    came = trio.current_time()
    queue.put(Asked("stays"))
    await trio.sleep(10)
    assert (texts(collector.batch), collector.at) == ("stays", came + DELAY_S)


async def test_one_worker_collects_at_a_time(autojump_clock: trio.testing.MockClock, collect: Collect) -> None:
    """The next idle one starts a fresh batch afterwards."""
    queue = queue_of("a")
    first, second = await collect(queue, 2), await collect(queue, 2)
    await trio.sleep(0.5)
    queue.put(Asked("b"))
    queue.put(Asked("c"))
    start = trio.current_time()
    await trio.sleep(10)
    assert (texts(first.batch), first.at) == ("a b", start)
    assert (texts(second.batch), second.at) == ("c", start + DELAY_S)


async def test_a_cancelled_collector_loses_nothing(autojump_clock: trio.testing.MockClock, collect: Collect) -> None:
    queue = queue_of("a", "b")
    first = await collect(queue, 4)
    second = await collect(queue, 4)
    await trio.sleep(0.5)
    first.scope.cancel()
    queue.put(Asked("c"))
    await trio.sleep(10)
    assert first.batch is None
    assert texts(second.batch) == "a b c"


async def test_a_cancel_that_comes_with_the_batch_loses_nothing(
    autojump_clock: trio.testing.MockClock, collect: Collect
) -> None:
    """Whichever is seen first, each job is in the batch or still in the queue."""
    queue = queue_of()
    collector = await collect(queue, 1)
    queue.put(Asked("a"))
    collector.scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert texts((collector.batch or []) + queue.clear()) == "a"


# -- places


async def test_a_full_queue_refuses() -> None:
    queue = queue_of("a", "b", capacity=2)
    with pytest.raises(QueueFull):
        queue.put(Asked("c"))
    assert len(queue) == 2
    await queue.take(1, 0, taker=1)
    queue.put(Asked("c"))
    assert texts(queue.clear()) == "b c"


async def test_the_batch_being_collected_is_not_waiting(
    autojump_clock: trio.testing.MockClock, collect: Collect
) -> None:
    """Only what waits counts against the capacity (spec/management.md section 5.3)."""
    queue = queue_of(capacity=2)
    collector = await collect(queue, 3)
    for text in "abc":
        queue.put(Asked(text))
        assert len(queue) == 0
    queue.put(Asked("d"))
    queue.put(Asked("e"))
    assert len(queue) == 2
    with pytest.raises(QueueFull):
        queue.put(Asked("f"))
    await trio.testing.wait_all_tasks_blocked()
    assert texts(collector.batch) == "a b c"
    assert len(queue) == 2


async def test_a_client_that_leaves_frees_its_place() -> None:
    queue = JobQueue(2)
    jobs = [Asked(text) for text in "abc"]
    queue.put(jobs[0])
    queue.put(jobs[1])
    queue.discard(jobs[0])
    queue.discard(jobs[0])
    queue.put(jobs[2])
    assert texts(queue.clear()) == "b c"


async def test_put_back_goes_to_the_head_in_order() -> None:
    queue = queue_of("c", "d", capacity=2)
    first, left, second = Asked("a"), Asked("gone"), Asked("b")
    left.abandon()
    queue.put_back([first, left, second])
    assert len(queue) == 4
    assert texts(queue.clear()) == "a b c d"


async def test_put_back_wakes_a_collector(autojump_clock: trio.testing.MockClock, collect: Collect) -> None:
    queue = queue_of()
    collector = await collect(queue, 1)
    queue.put_back([Asked("again")])
    await trio.testing.wait_all_tasks_blocked()
    assert texts(collector.batch) == "again"


async def test_clear_takes_all_and_leaves_it_usable() -> None:
    queue = queue_of("a", "b")
    assert not queue.empty
    assert texts(queue.clear()) == "a b"
    assert queue.empty
    assert queue.clear() == []
    queue.put(Asked("c"))
    assert texts(await queue.take(1, 0, taker=1)) == "c"


# -- closing


async def test_a_closed_queue_serves_out_and_then_gives_empty_batches(autojump_clock: trio.testing.MockClock) -> None:
    queue = queue_of("a", "b", "c")
    queue.close()
    with pytest.raises(QueueClosed):
        queue.put(Asked("d"))
    start = trio.current_time()
    assert texts(await queue.take(2, DELAY_S, taker=1)) == "a b"
    assert texts(await queue.take(2, DELAY_S, taker=1)) == "c"
    assert await queue.take(2, DELAY_S, taker=1) == []
    assert trio.current_time() == start, "nothing more can come: no delay"


async def test_closing_wakes_collectors(autojump_clock: trio.testing.MockClock, collect: Collect) -> None:
    queue = queue_of()
    first, second = await collect(queue, 2), await collect(queue, 2)
    queue.close()
    await trio.testing.wait_all_tasks_blocked()
    assert (first.batch, second.batch) == ([], [])


async def test_closing_ends_the_delay(autojump_clock: trio.testing.MockClock, collect: Collect) -> None:
    queue = queue_of("a")
    collector = await collect(queue, 2)
    await trio.sleep(0.1)
    now = trio.current_time()
    queue.close()
    await trio.testing.wait_all_tasks_blocked()
    assert (texts(collector.batch), collector.at) == ("a", now)


async def test_an_opened_queue_takes_jobs_again(autojump_clock: trio.testing.MockClock, collect: Collect) -> None:
    queue = queue_of()
    queue.close()
    queue.open()
    collector = await collect(queue, 1)
    assert collector.batch is None
    queue.put(Asked("a"))
    await trio.testing.wait_all_tasks_blocked()
    assert texts(collector.batch) == "a"


# -- jobs


async def test_the_first_outcome_counts() -> None:
    job = Asked()
    job.finish(REPLY)
    job.finish(InternalServer("late"))
    assert job.outcomes == [REPLY]
    assert job.done


async def test_an_abandoned_job_tells_nobody() -> None:
    job = Asked()
    job.abandon()
    job.finish(REPLY)
    assert job.outcomes == []


async def test_discard_of_a_job_in_a_workers_hand_drops_its_outcome() -> None:
    queue = JobQueue(1)
    job = Asked("a")
    queue.put(job)
    (taken,) = await queue.take(1, 0, taker=1)
    queue.discard(job)
    taken.finish(REPLY)
    assert job.outcomes == []
