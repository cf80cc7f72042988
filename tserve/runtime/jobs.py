"""Requests inside the server: jobs, and the bounded queue of a version that batches are taken from.

A job is in exactly one place: in the queue, in a worker's hand, or done.  Only this module moves it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import trio

from tserve.domain.wire import JobReply, JobRequest
from tserve.errors import TserveError

Outcome = JobReply | TserveError


class QueueFull(Exception):
    """As many jobs wait as may."""


class QueueClosed(Exception):
    """The version takes no new work."""


class Job:
    """One request on its way: `on_done` is called once, with a reply or the error that its client gets.

    `asked_version` is the version that the client named, for the sentence that refuses it; `returned` says that a
    worker died before it had the job in full.
    """

    __slots__ = ("_on_done", "asked_version", "done", "request", "returned")

    def __init__(
        self, request: JobRequest, on_done: Callable[[Outcome], None], *, asked_version: str | None = None
    ) -> None:
        self.request = request
        self.asked_version = asked_version
        self.done = False
        self.returned = False
        self._on_done = on_done

    def finish(self, outcome: Outcome) -> None:
        """Deliver the outcome; the first one counts, later ones are dropped."""
        if not self.done:
            self.done = True
            self._on_done(outcome)

    def abandon(self) -> None:
        """The client left: whatever comes is dropped."""
        self.done = True


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
    def empty(self) -> bool:
        return not self._jobs

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

    async def take(self, size: int, delay_s: float) -> list[Job]:
        """The next batch: waits for a first job without limit, then at most `delay_s` for `size` of them.

        Empty only when the queue is closed and has run out.  Jobs stay in the queue until the batch is complete,
        so a cancelled collector loses none.
        """
        async with self._collector:
            try:
                while True:
                    self._forming = size
                    while not self._jobs and not self._closed:
                        await self._changed.park()
                    if size > 1 and delay_s > 0:
                        with trio.move_on_after(delay_s):
                            while len(self._jobs) < size and not self._closed:
                                await self._changed.park()
                    if self._jobs or self._closed:  # else the clients of all of them left meanwhile
                        break
            finally:
                self._forming = 0
            return [self._jobs.popleft() for _ in range(min(size, len(self._jobs)))]
