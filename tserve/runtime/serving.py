"""How a worker is kept busy: jobs out of the queue, through the worker, and answered.

One `Serving` per worker.  Every job that it takes is finished, handed on in pieces, or goes back to the queue, on
every way out.  What a worker's end means for the slot is the slot's affair (`Host`).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import trio

from tserve.domain.plan import Failure, PoolSpec
from tserve.domain.wire import (
    STREAM_NEXT,
    Frame,
    HandlerFailed,
    JobRequest,
    Kind,
    WireError,
    decode_reply,
    encode_batch,
)
from tserve.errors import InternalServer, TserveError
from tserve.runtime import autopsy
from tserve.runtime.jobs import Job, JobQueue
from tserve.runtime.launcher import Worker, WorkerGone

CLIENT_TAIL = 4 << 10  # of the log tail, for a client whose request a worker took down
MOST_ASYNCHRONOUS = 100  # batches in the hand of one asynchronous worker; the rest waits where it can still be refused


class Host(Protocol):
    """The slot, as serving needs it."""

    id: int

    @property
    def finished(self) -> bool:
        """Told to leave, and nothing of the queue left to do."""
        ...

    def idle(self) -> AbstractContextManager[trio.CancelScope]:
        """What runs in it is given up as soon as the slot is told to leave."""
        ...

    def stop_idling(self) -> None:
        """Give up what runs in `idle` now."""
        ...

    def at_work(self, busy: bool) -> None:
        """The worker has something in hand, or no more."""
        ...

    def limit(self) -> str:
        """In words, the limit that cuts work short when the slot has to go."""
        ...

    async def death(
        self, worker: Worker, reason: str, detail: str, *, grace_s: float = autopsy.EXIT_GRACE_S
    ) -> Failure: ...

    async def unresponsive(self, worker: Worker, reason: str, detail: str) -> Failure: ...


class Serving:
    """One batch at a time.

    In a continuous version the jobs whose answer has not come to its end stay in hand, and others join them before
    the handler is called again (spec/inference.md section 9.3).
    """

    def __init__(self, worker: Worker, queue: JobQueue, spec: PoolSpec, host: Host) -> None:
        self.answered = 0  # batches
        self._worker, self._queue, self._spec, self._host = worker, queue, spec, host
        self._size = spec.most_in_batch
        self._number = 0  # of the last batch that was sent
        self._hand: list[Job] = []

    @property
    def room(self) -> int:
        """Jobs that could be begun at once."""
        return 0 if self._hand else self._size

    async def run(self) -> Failure | None:
        """Serve until the slot is to leave, None then, or the worker is of no use any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_waiting_when_ailing)
            failure = await self._serve()
            nursery.cancel_scope.cancel()
        return failure

    async def _serve(self) -> Failure | None:
        failure = None
        while failure is None and (self._hand or not self._host.finished):
            if not self._hand:
                with self._host.idle() as idle:
                    if self._worker.ailing.is_set():
                        idle.cancel()
                    self._hand = await self._queue.take(self._size, self._spec.batch_delay_s, taker=self._host.id)
                if idle.cancelled_caught and self._worker.ailing.is_set():
                    return await self._idle_death()
            elif not self._host.finished:
                room, purpose = self._size - len(self._hand), self._hand[0].purpose
                self._hand += self._queue.join(room, purpose, taker=self._host.id)
            if self._hand:
                failure = await self._answer()
        return failure

    async def _stop_waiting_when_ailing(self) -> None:
        await self._worker.ailing.wait()
        if not self._hand:
            self._host.stop_idling()

    async def _idle_death(self) -> Failure:
        """What became of a worker that nobody had asked anything."""
        try:
            await self._worker.receive()
        except WorkerGone:
            detail = "the worker ended while it waited for work"
            return await self._host.death(self._worker, "died_idle", detail)
        except WireError as e:
            return await self._bad_frame(str(e))
        return await self._bad_frame("the worker sent what nobody had asked for")

    async def _bad_frame(self, detail: str) -> Failure:
        return await self._host.death(self._worker, "bad_frame", detail, grace_s=0)

    async def _answer(self) -> Failure | None:
        """Have the worker answer what is in hand; what is left there then waits for the next round."""
        self._host.at_work(True)
        failure: Failure | None = None
        whole = False
        timeout_s = self._spec.response_timeout_s
        try:
            with trio.move_on_after(timeout_s) as scope:
                failure = await self._exchange(scope)
            if scope.cancelled_caught:
                failure = await self._host.unresponsive(self._worker, "response_timeout", _silence(timeout_s))
            whole = failure is None
        finally:
            if not whole:
                self._fail(self._hand, failure)
            for job in self._hand:
                if job.done:  # a client that left included
                    self._queue.answered(job, {})
            self._hand = [job for job in self._hand if not job.done]
        if whole:
            self.answered += 1
            if not self._hand:
                self._host.at_work(False)
        return failure

    def _fail(self, jobs: list[Job], failure: Failure | None) -> None:
        """The worker died, or had to go, with these in its hand."""
        why = failure or Failure("drain_timeout", f"no answer within {self._host.limit()}")
        cause = why.cause(tail=CLIENT_TAIL)
        for job in jobs:
            job.finish(InternalServer("Worker died.", code=why.code, cause=cause))

    async def _exchange(self, limit: trio.CancelScope) -> Failure | None:
        """One call of the handler.  Its response timeout runs anew with each piece."""
        self._number += 1
        try:
            await self._send(self._hand)
        except WorkerGone as e:
            return await self._host.death(self._worker, "died_idle", str(e))
        if not self._hand:
            return None
        try:
            while True:
                frame = await self._worker.receive()
                if frame.id != self._number:  # taken for this one it would give clients each other's answers
                    raise WireError(f"an answer to batch {frame.id} came for batch {self._number}")
                self._deliver(self._hand, frame)
                if frame.kind is Kind.REPLY:
                    return None
                limit.deadline = trio.current_time() + self._spec.response_timeout_s
        except WorkerGone as e:
            return await self._host.death(self._worker, "crashed", str(e))
        except WireError as e:
            return await self._bad_frame(str(e))

    def _deliver(self, jobs: list[Job], frame: Frame) -> None:
        """Hand on an answer, or a piece of it.  Raises WireError."""
        answers = decode_reply(frame)
        if isinstance(answers, HandlerFailed):
            answers = [answers] * len(jobs)
        if len(answers) != len(jobs):
            raise WireError(f"{len(answers)} replies for {len(jobs)} jobs")
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, HandlerFailed):
                self._queue.answered(job, {})
                job.finish(_error_of(answer))
            elif frame.kind is Kind.PIECE or (self._spec.continuous and answer.headers.get(STREAM_NEXT) == "true"):
                job.pass_on(answer)
            else:
                self._queue.answered(job, answer.headers)
                job.finish(answer)

    async def _send(self, jobs: list[Job]) -> None:
        """Jobs that the worker cannot have begun are taken out of `jobs`.  Raises WorkerGone."""
        try:
            await self._worker.send(encode_batch(self._number, [_request_of(job) for job in jobs]))
        except WorkerGone:
            # It never had the whole batch.  A job goes back once: one that no worker can take must not go round.
            tried_before = [job for job in jobs if job.begun or job.returned]
            self._queue.put_back([job for job in jobs if not job.begun])
            jobs[:] = tried_before
            raise
        except WireError as e:  # nothing has been sent; the worker is well
            error = InternalServer(f"The batch is too large to be sent: {e}", cause={"reason": "batch_too_large"})
            for job in jobs:
                job.finish(error)
            jobs.clear()
        for job in jobs:
            job.begun = True


class AsynchronousServing(Serving):
    """Each job is a batch of its own; many are in the worker's hand at once, and answered in any order.

    The response timeout is one of the worker: it runs while jobs are in hand and no frame comes.
    """

    def __init__(self, worker: Worker, queue: JobQueue, spec: PoolSpec, host: Host) -> None:
        super().__init__(worker, queue, spec, host)
        self._by_number: dict[int, Job] = {}
        self._answered = trio.lowlevel.ParkingLot()
        self._silence = trio.CancelScope()
        self._failure: Failure | None = None

    @property
    def room(self) -> int:
        return MOST_ASYNCHRONOUS - len(self._by_number)

    async def run(self) -> Failure | None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, nursery.cancel_scope)
                await self._take_and_send()
                while self._by_number:
                    await self._answered.park()
                nursery.cancel_scope.cancel()
        finally:
            self._fail(list(self._by_number.values()), self._failure)
        return self._failure

    async def _take_and_send(self) -> None:
        while not self._host.finished:
            jobs: list[Job] = []
            with self._host.idle():
                while self.room <= 0:
                    await self._answered.park()
                jobs = await self._queue.take(1, 0, taker=self._host.id)
            if jobs:
                await self._begin(jobs)

    async def _begin(self, jobs: list[Job]) -> None:
        self._number += 1
        number, job = self._number, jobs[0]
        self._by_number[number] = job
        if len(self._by_number) == 1:
            self._host.at_work(True)
            self._silence.deadline = trio.current_time() + self._spec.response_timeout_s
        try:
            await self._send(jobs)
        except WorkerGone:
            if not jobs:
                self._done(number)
            await trio.sleep_forever()  # whoever hears the worker has noticed as well, and ends this
        if not jobs:
            self._done(number)

    async def _hear(self, life: trio.CancelScope) -> None:
        try:
            while self._failure is None:
                with trio.CancelScope(deadline=self._silence.deadline) as self._silence:
                    self._take_in(await self._worker.receive())
                if self._silence.cancelled_caught:
                    detail = _silence(self._spec.response_timeout_s)
                    self._failure = await self._host.unresponsive(self._worker, "response_timeout", detail)
        except WorkerGone as e:
            if self._by_number:
                self._failure = self._failure or await self._host.death(self._worker, "crashed", str(e))
            else:
                self._failure = await self._idle_death()
        except WireError as e:
            self._failure = await self._bad_frame(str(e))
        life.cancel()

    def _take_in(self, frame: Frame) -> None:
        job = self._by_number.get(frame.id)
        if job is None:
            raise WireError(f"an answer to batch {frame.id}, which is not in hand")
        self._deliver([job], frame)
        self._silence.deadline = trio.current_time() + self._spec.response_timeout_s
        if frame.kind is Kind.REPLY:
            self.answered += 1
            self._done(frame.id)

    def _done(self, number: int) -> None:
        del self._by_number[number]
        self._answered.unpark_all()
        if not self._by_number:
            self._silence.deadline = math.inf
            self._host.at_work(False)


def _request_of(job: Job) -> JobRequest:
    """What is sent of a job: its inputs once only, later rounds of a continuous batch have them."""
    return replace(job.request, inputs=()) if job.begun else job.request


def _error_of(failed: HandlerFailed) -> TserveError:
    cause = {"reason": "handler_failed", "detail": failed.detail}
    return InternalServer(failed.message, code=failed.code, cause=cause)


def _silence(timeout_s: float) -> str:
    return f"no answer within response_timeout, {timeout_s:g} s"
