"""The job queue of a stateful version: requests of one sequence go to one worker, in order, one at a time.

A sequence begins with the first request that has its id.  It ends when it has been idle for too long, when its time
is over, or when client or handler say so (spec/inference.md section 9.3).  A worker keeps the state, so a sequence
stays with the slot that took it, and ends when that slot's worker does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import trio

from tserve.domain.plan import SequenceLimits
from tserve.errors import ServiceUnavailable
from tserve.runtime.jobs import Job, JobQueue, Purpose, QueueClosed, QueueFull

_NOBODY = -1


@dataclass(eq=False, slots=True)
class _Sequence:
    """`owner` is the slot whose worker has its state; `last` the time since when there is nothing to do for it."""

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


_Ordered = dict[str, _Sequence]  # oldest first


class SequenceQueue(JobQueue):
    """Jobs carry the id of their sequence; those without one, calls to describe, are served like in any queue.

    A worker has at most as many sequences as jobs fit its batch, twice as many in a continuous version.  `name` is
    the model's, for those that are refused; `end_header` names the header that ends sequences.

    A sequence is in one of these: `_new` (waits for a worker), `_ready` of its owner (its next request may be begun),
    `_idle`, or in hand.  No step looks at all of them.
    """

    def __init__(self, capacity: int, limits: SequenceLimits, *, per_worker: int, name: str, end_header: str) -> None:
        super().__init__(capacity)
        self._limits, self._per_worker, self._name, self._end_header = limits, per_worker, name, end_header
        self._sequences: _Ordered = {}
        self._new: _Ordered = {}
        self._ready: dict[int, _Ordered] = {}
        self._owned: dict[int, _Ordered] = {}
        self._idle: _Ordered = {}
        self._waiting = 0

    def __len__(self) -> int:
        return self.held

    @property
    def held(self) -> int:
        return len(self._jobs) + self._waiting

    # -- in and out

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
        self._waiting += 1
        self._file(sequence)

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
                self._waiting += 1
            self._file(sequence)

    def discard(self, job: Job) -> None:
        super().discard(job)
        sequence = self._sequences.get(job.sequence)
        if sequence is not None and job in sequence.waiting:
            sequence.waiting.remove(job)
            self._waiting -= 1
            if sequence.owner == _NOBODY and not sequence.waiting:  # no worker has ever heard of it
                self._forget(sequence)
            else:
                self._file(sequence)

    def clear(self) -> list[Job]:
        jobs = super().clear()
        for sequence in list(self._sequences.values()):
            jobs += sequence.waiting
            sequence.waiting.clear()
            if sequence.in_hand is None:
                self._forget(sequence)
        self._waiting = 0
        return jobs

    async def take(self, size: int, delay_s: float, *, taker: int) -> list[Job]:
        """The next request of each of at most `size` sequences: of those the slot has, then of new ones."""
        while not self._jobs and not self._can_take(1, taker) and not (self._closed and self.empty):
            await self._change()
        if not self._jobs and size > 1 and delay_s > 0:
            with trio.move_on_after(delay_s):
                while not self._can_take(size, taker) and not self._jobs and not self._closed:
                    await self._change()
        return [self._jobs.popleft()] if self._jobs else self._take(size, taker)

    def join(self, size: int, purpose: Purpose, *, taker: int) -> list[Job]:
        """While what asks for something else is the next in turn nobody joins, so that its turn comes."""
        first = next(self._takeable(taker), None)
        if size <= 0 or self._jobs or first is None or first.waiting[0].purpose is not purpose:
            return []
        return self._take(size, taker)

    def answered(self, job: Job, headers: Mapping[str, str]) -> None:
        sequence = self._sequences.get(job.sequence)
        if sequence is not None and sequence.in_hand is job:
            sequence.in_hand = None
            sequence.answered += 1
            if job.ends_sequence:
                self._end(sequence, "sequence_ended")
            else:
                self._file(sequence)
        told = next((value for name, value in headers.items() if name.lower() == self._end_header.lower()), "")
        for name in filter(None, told.split(";")):
            ended = self._sequences.get(job.sequence if name.lower() == "true" else name)
            if ended is not None:
                self._end(ended, "sequence_ended")
        self._changed.unpark_all()

    def release(self, taker: int) -> None:
        """The state of the sequences that a worker knew is gone with it: the next one must not answer them."""
        for sequence in list(self._owned.pop(taker, {}).values()):
            if sequence.known:
                self._end(sequence, "sequence_lost")
            sequence.in_hand, sequence.owner = None, _NOBODY
            if sequence.id in self._sequences:
                self._file(sequence)
        self._ready.pop(taker, None)
        self._changed.unpark_all()

    # -- who may be begun

    def _takeable(self, taker: int) -> Iterator[_Sequence]:
        """Sequences whose next request the slot may begin, its own first; as long as it has places, new ones."""
        yield from self._ready.get(taker, {}).values()
        room = self._per_worker - len(self._owned.get(taker, ()))
        for _, sequence in zip(range(room), self._new.values(), strict=False):
            yield sequence

    def _can_take(self, size: int, taker: int) -> bool:
        return sum(1 for _ in zip(range(size), self._takeable(taker), strict=False)) == size

    def _take(self, size: int, taker: int) -> list[Job]:
        """One request of each of at most `size` sequences, all of the first one's purpose."""
        chosen: list[_Sequence] = []
        for sequence in self._takeable(taker):
            if len(chosen) == size:
                break
            if not chosen or sequence.waiting[0].purpose is chosen[0].waiting[0].purpose:
                chosen.append(sequence)
        jobs = []
        for sequence in chosen:
            sequence.owner, sequence.in_hand = taker, sequence.waiting.popleft()
            self._waiting -= 1
            self._owned.setdefault(taker, {})[sequence.id] = sequence
            self._file(sequence)
            jobs.append(sequence.in_hand)
        return jobs

    def _file(self, sequence: _Sequence) -> None:
        """Put a sequence where it belongs now."""
        self._take_out(sequence)
        if sequence.in_hand is not None:
            return
        if not sequence.waiting:
            sequence.last = trio.current_time()  # so that they stand in the order in which they will end
            self._idle[sequence.id] = sequence
        elif sequence.owner == _NOBODY:
            self._new[sequence.id] = sequence
        else:
            self._ready.setdefault(sequence.owner, {})[sequence.id] = sequence
        self._changed.unpark_all()

    def _take_out(self, sequence: _Sequence) -> None:
        for place in (self._new, self._idle, self._ready.get(sequence.owner, {})):
            place.pop(sequence.id, None)

    # -- ends

    async def _change(self) -> None:
        """Wait until something is different: what others do, or a sequence that ends by itself."""
        with trio.move_on_at(self._next_end()):
            await self._changed.park()
        self._end_expired()

    def _next_end(self) -> float:
        idle = next((s.last + self._limits.max_idle_s for s in self._idle.values()), math.inf)
        return min(idle, next((s.began + self._limits.timeout_s for s in self._not_in_hand()), math.inf))

    def _not_in_hand(self) -> Iterator[_Sequence]:
        """Oldest first.  None ends amid a request."""
        return (sequence for sequence in self._sequences.values() if sequence.in_hand is None)

    def _end_expired(self) -> None:
        now = trio.current_time()
        while (first := next(iter(self._idle.values()), None)) and first.last + self._limits.max_idle_s <= now:
            self._end(first, "sequence_expired")
        while (first := next(self._not_in_hand(), None)) and first.began + self._limits.timeout_s <= now:
            self._end(first, "sequence_expired")

    def _end(self, sequence: _Sequence, reason: str) -> None:
        """Requests that still wait are refused: a worker would take them for the beginning of another sequence."""
        self._forget(sequence)
        self._waiting -= len(sequence.waiting)
        for job in sequence.waiting:
            cause = {"reason": reason, "sequence": sequence.id}
            job.finish(ServiceUnavailable.no_worker(self._name, job.asked_version, cause=cause))
        sequence.waiting.clear()

    def _forget(self, sequence: _Sequence) -> None:
        if self._sequences.get(sequence.id) is sequence:
            del self._sequences[sequence.id]
            self._take_out(sequence)
            self._owned.get(sequence.owner, {}).pop(sequence.id, None)
