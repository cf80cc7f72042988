"""Requests inside the server: jobs, and the bounded queue of a version that batches are taken from.

A job is in exactly one place: in the queue, in a worker's hand, or done.  Only this module moves it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from time import perf_counter

import trio

from tserve.domain.wire import JobReply, JobRequest
from tserve.errors import TserveError

Outcome = JobReply | TserveError


class QueueFull(Exception):
    """As many jobs wait as may."""


class QueueClosed(Exception):
    """The version takes no new work."""


class Purpose(Enum):
    """What a job asks of the handler.  Those of one batch ask the same: handlers look at its first request only."""

    PREDICT = "predict"
    EXPLAIN = "explain"
    DESCRIBE = "describe"  # always alone in its batch


class Job:
    """One request on its way: `on_done` is called once, with a reply or the error that its client gets.

    `on_piece` is called before that with each part of a streamed answer.  `asked_version` is the version that the
    client named, for the sentence that refuses it; `begun` says that a worker has it, `returned` that one died
    before it had it in full.  `sequence` is the id of the sequence it belongs to, `ends_sequence` that it is its last.
    """

    __slots__ = (
        "_on_done",
        "_on_piece",
        "asked_version",
        "begun",
        "begun_at",
        "done",
        "ends_sequence",
        "purpose",
        "queued_at",
        "request",
        "returned",
        "sequence",
    )

    def __init__(
        self,
        request: JobRequest,
        on_done: Callable[[Outcome], None],
        *,
        on_piece: Callable[[JobReply], None] | None = None,
        asked_version: str | None = None,
        purpose: Purpose = Purpose.PREDICT,
        sequence: str = "",
        ends_sequence: bool = False,
    ) -> None:
        self.request = request
        self.asked_version = asked_version
        self.purpose = purpose
        self.sequence = sequence
        self.ends_sequence = ends_sequence
        self.done = False
        self.queued_at = perf_counter()
        self.begun = False
        self.begun_at = 0.0
        self.returned = False
        self._on_done = on_done
        self._on_piece = on_piece

    def pass_on(self, piece: JobReply) -> None:
        """Deliver a part of the answer, unless the job is done."""
        if not self.done and self._on_piece is not None:
            self._on_piece(piece)

    def finish(self, outcome: Outcome) -> None:
        """Deliver the outcome; the first one counts, later ones are dropped."""
        if not self.done:
            on_done = self._on_done
            self.abandon()
            on_done(outcome)

    def begin(self) -> float:
        """A worker has it; the seconds that it has waited for that, now or when that was."""
        if not self.begun:
            self.begun, self.begun_at = True, perf_counter()
        return self.waited_s

    @property
    def waited_s(self) -> float:
        """In the queue, until it was begun or until now."""
        return (self.begun_at if self.begun else perf_counter()) - self.queued_at

    def abandon(self) -> None:
        """The client left: whatever comes is dropped."""
        self.done = True
        self._on_done, self._on_piece = _drop, None  # no circle of references for the garbage collector


def _drop(outcome: Outcome) -> None:
    """For whom nobody waits."""


class JobQueue:
    """Jobs in order of arrival.  Workers pull batches; one of them collects at a time (section 9.2 of the spec)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._jobs: deque[Job] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._collector = trio.Lock()
        self._forming = 0  # places of the batch being collected: its jobs do not count as waiting
        self._closed = False

    def __len__(self) -> int:
        """Jobs that wait, those of the batch being collected left out."""
        return max(0, len(self._jobs) - self._forming)

    @property
    def held(self) -> int:
        """All jobs in here."""
        return len(self._jobs)

    @property
    def empty(self) -> bool:
        return not self.held

    def put(self, job: Job) -> None:
        """Raises QueueClosed, QueueFull."""
        if self._closed:
            raise QueueClosed
        if len(self) >= self.capacity:
            raise QueueFull
        self._jobs.append(job)
        self._changed.unpark_all()

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Jobs that a worker did not begin return to the head, in their order, except those that did so before."""
        again = [job for job in jobs if not job.done and not job.returned]
        for job in again:
            job.returned = True
        self._jobs.extendleft(reversed(again))
        self._changed.unpark_all()

    def discard(self, job: Job) -> None:
        """The client left: free its place; a job in a worker's hand runs on."""
        job.abandon()
        if job in self._jobs:
            self._jobs.remove(job)

    def close(self) -> None:
        """Take no new jobs.  Collectors get what is left, then empty batches."""
        self._closed = True
        self._changed.unpark_all()

    def open(self) -> None:
        self._closed = False

    def clear(self) -> list[Job]:
        """Take every job out."""
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs

    async def take(self, size: int, delay_s: float, *, taker: int) -> list[Job]:
        """The next batch for a slot: waits for a first job without limit, then at most `delay_s` for `size` of them.

        Empty only when the queue is closed and has run out.  Jobs stay in the queue until the batch is complete,
        so a cancelled collector loses none.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:  # without giving way to all other tasks: who has sent the batch waits for its answer
            self._collector.acquire_nowait()
        except trio.WouldBlock:
            await self._collector.acquire()
        try:
            while True:
                self._forming = size
                while not self._jobs and not self._closed:
                    await self._changed.park()
                if size > 1 and delay_s > 0:
                    with trio.move_on_after(delay_s):
                        while not self._complete(size) and not self._closed:
                            await self._changed.park()
                if self._jobs or self._closed:  # else the clients of all of them left meanwhile
                    break
            return [self._jobs.popleft() for _ in range(self._together(size))]
        finally:
            self._forming = 0
            self._collector.release()

    def take_alone(self) -> Job | None:
        """The next job if that is a call to describe."""
        return self._jobs.popleft() if self._head_is_alone() else None

    def join(self, size: int, purpose: Purpose, *, taker: int) -> list[Job]:
        """At most `size` more jobs for a batch of that purpose which is in a worker's hand, without waiting."""
        if size <= 0 or not self._jobs or self._jobs[0].purpose is not purpose or self._head_is_alone():
            return []
        return [self._jobs.popleft() for _ in range(self._together(size))]

    def answered(self, job: Job, headers: Mapping[str, str]) -> None:
        """A job has left a worker's hand; `headers` are the answer's."""

    def release(self, taker: int) -> None:
        """The worker of a slot is gone."""

    def _complete(self, size: int) -> bool:
        """The batch at the head is full, or what waits behind it must not join it."""
        together = self._together(size)
        return together == size or 0 < together < len(self._jobs) or self._head_is_alone()

    def _together(self, size: int) -> int:
        """Jobs at the head that may share a batch."""
        if self._head_is_alone():
            return 1
        purpose = self._jobs[0].purpose if self._jobs else None
        same = itertools.takewhile(lambda job: job.purpose is purpose, itertools.islice(self._jobs, size))
        return sum(1 for _ in same)

    def _head_is_alone(self) -> bool:
        return bool(self._jobs) and self._jobs[0].purpose is Purpose.DESCRIBE
