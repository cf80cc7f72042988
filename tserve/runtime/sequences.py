"""The job queue of a stateful version: requests of one sequence go to one worker, in order, one at a time.

A sequence begins with the first request that has its id.  It ends when it has been idle for too long, when its time
is over, or when client or handler say so (spec/inference.md section 9.3).  A worker keeps the state, so a sequence
stays with the slot that took it, and ends when that slot's worker does.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import trio

from tserve.domain.plan import SequenceLimits
from tserve.errors import ServiceUnavailable
from tserve.runtime.jobs import Job, JobQueue, Purpose, QueueClosed, QueueFull

_NOBODY = -1


@dataclass(eq=False, slots=True)
class _Sequence:
    """`owner` is the slot whose worker has its state; `last` when its last request was answered, or it began."""

    id: str
    began: float
    last: float
    waiting: deque[Job] = field(default_factory=deque)
    in_hand: Job | None = None
    owner: int = _NOBODY
    answered: int = 0

    @property
    def known(self) -> bool:
        """To the worker of its owner."""
        return self.answered > 0 or (self.in_hand is not None and self.in_hand.begun)

    def ends_at(self, limits: SequenceLimits) -> float:
        """When it ends by itself, as things are; never amid a request."""
        if self.in_hand is not None:
            return math.inf
        idle = math.inf if self.waiting else self.last + limits.max_idle_s
        return min(idle, self.began + limits.timeout_s)


class SequenceQueue(JobQueue):
    """Jobs carry the id of their sequence; those without one, calls to describe, are served like in any queue.

    A worker has at most as many sequences as jobs fit its batch, twice as many in a continuous version.  `name` is
    the model's, for those that are refused; `end_header` names the header that ends sequences.
    """

    def __init__(self, capacity: int, limits: SequenceLimits, *, per_worker: int, name: str, end_header: str) -> None:
        super().__init__(capacity)
        self._limits, self._per_worker, self._name, self._end_header = limits, per_worker, name, end_header
        self._sequences: dict[str, _Sequence] = {}

    def __len__(self) -> int:
        return self.held

    @property
    def held(self) -> int:
        return len(self._jobs) + sum(len(sequence.waiting) for sequence in self._sequences.values())

    def put(self, job: Job) -> None:
        """Raises QueueClosed; QueueFull when as many sequences live, or as many requests of this one wait, as may."""
        if not job.sequence:
            super().put(job)
            return
        if self._closed:
            raise QueueClosed
        self._end_expired()
        sequence = self._sequences.get(job.sequence)
        if sequence is None:
            if len(self._sequences) >= self._limits.most:
                raise QueueFull
            now = trio.current_time()
            sequence = self._sequences[job.sequence] = _Sequence(job.sequence, now, now)
        elif len(sequence.waiting) >= self._limits.most_waiting:
            raise QueueFull
        sequence.waiting.append(job)
        self._changed.unpark_all()

    def put_back(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            sequence = self._sequences.get(job.sequence)
            if sequence is None:
                super().put_back([job])
                continue
            sequence.in_hand = None
            if not job.done and not job.returned:
                job.returned = True
                sequence.waiting.appendleft(job)
        self._changed.unpark_all()

    def discard(self, job: Job) -> None:
        super().discard(job)
        sequence = self._sequences.get(job.sequence)
        if sequence is not None and job in sequence.waiting:
            sequence.waiting.remove(job)
            if not sequence.known and not sequence.waiting:
                self._forget(sequence)

    def clear(self) -> list[Job]:
        jobs = super().clear()
        for sequence in list(self._sequences.values()):
            jobs += sequence.waiting
            sequence.waiting.clear()
            if sequence.in_hand is None:
                self._forget(sequence)
        return jobs

    async def take(self, size: int, delay_s: float, *, taker: int) -> list[Job]:
        """The next request of each of at most `size` sequences: of those the slot has, then of new ones."""
        while not self._jobs and not self._ready(size, taker) and not (self._closed and self.empty):
            await self._change()
        if not self._jobs and size > 1 and delay_s > 0:
            with trio.move_on_after(delay_s):
                while len(self._ready(size, taker)) < size and not self._jobs and not self._closed:
                    await self._change()
        return [self._jobs.popleft()] if self._jobs else self._take(self._ready(size, taker), taker)

    def join(self, size: int, purpose: Purpose, *, taker: int) -> list[Job]:
        """While a describe call waits nobody joins, so that its turn comes."""
        return [] if self._jobs or purpose is Purpose.DESCRIBE else self._take(self._ready(size, taker), taker)

    def answered(self, job: Job, headers: Mapping[str, str]) -> None:
        sequence = self._sequences.get(job.sequence)
        if sequence is not None and sequence.in_hand is job:
            sequence.in_hand, sequence.last = None, trio.current_time()
            sequence.answered += 1
            if job.ends_sequence:
                self._end(sequence, "sequence_ended")
        told = next((value for name, value in headers.items() if name.lower() == self._end_header.lower()), "")
        for name in filter(None, told.split(";")):
            ended = self._sequences.get(job.sequence if name.lower() == "true" else name)
            if ended is not None:
                self._end(ended, "sequence_ended")
        self._changed.unpark_all()

    def release(self, taker: int) -> None:
        """The state of the sequences that a worker knew is gone with it: the next one must not answer them."""
        for sequence in [s for s in self._sequences.values() if s.owner == taker]:
            if sequence.known:
                self._end(sequence, "sequence_lost")
            sequence.in_hand, sequence.owner = None, _NOBODY
        self._changed.unpark_all()

    async def _change(self) -> None:
        """Wait until something is different: what others do, or a sequence that ends by itself."""
        deadline = min((s.ends_at(self._limits) for s in self._sequences.values()), default=math.inf)
        with trio.move_on_at(deadline):
            await self._changed.park()
        self._end_expired()

    def _ready(self, size: int, taker: int) -> list[_Sequence]:
        """Sequences whose next request the slot may begin, its own first."""
        own = [s for s in self._sequences.values() if s.owner == taker]
        ready = [s for s in own if s.waiting and s.in_hand is None][: max(0, size)]
        room = max(0, min(size - len(ready), self._per_worker - len(own)))
        new = (s for s in self._sequences.values() if s.owner == _NOBODY and s.waiting)
        return [*ready, *itertools.islice(new, room)]

    def _take(self, sequences: Iterable[_Sequence], taker: int) -> list[Job]:
        """One request of each, all of the first one's purpose."""
        jobs: list[Job] = []
        for sequence in sequences:
            if jobs and sequence.waiting[0].purpose is not jobs[0].purpose:
                continue
            sequence.owner = taker
            sequence.in_hand = sequence.waiting.popleft()
            jobs.append(sequence.in_hand)
        return jobs

    def _end_expired(self) -> None:
        now = trio.current_time()
        for sequence in [s for s in self._sequences.values() if s.ends_at(self._limits) <= now]:
            self._end(sequence, "sequence_expired")

    def _end(self, sequence: _Sequence, reason: str) -> None:
        """Requests that still wait are refused: a worker would take them for the beginning of another sequence."""
        self._forget(sequence)
        for job in sequence.waiting:
            cause = {"reason": reason, "sequence": sequence.id}
            job.finish(ServiceUnavailable.no_worker(self._name, job.asked_version, cause=cause))

    def _forget(self, sequence: _Sequence) -> None:
        if self._sequences.get(sequence.id) is sequence:
            del self._sequences[sequence.id]
