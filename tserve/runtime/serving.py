"""How a worker is kept busy: jobs out of the queue, through the worker, and answered.

One `Serving` per worker.  Every job that it takes is finished, handed on in pieces, or goes back to the queue, on
every way out.  What a worker's end means for the slot is the slot's affair (`Host`).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import trio

from tserve.domain.plan import Failure, PoolSpec
from tserve.domain.wire import (
    STREAM_NEXT,
    TOOK,
    Frame,
    HandlerFailed,
    JobReply,
    JobRequest,
    Kind,
    WireError,
    decode_reply,
    encode_batch,
)
from tserve.errors import InternalServer, TserveError
from tserve.metrics.recorder import Metrics
from tserve.runtime import autopsy
from tserve.runtime.jobs import Job, JobQueue, Purpose
from tserve.runtime.launcher import Worker, WorkerGone

CLIENT_TAIL = 4 << 10  # of the log tail, for a client whose request a worker took down
_DIED_IDLE = "the worker ended while it waited for work"
_LATE = {"reason": "response_timeout"}
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

    def __init__(self, worker: Worker, queue: JobQueue, spec: PoolSpec, host: Host, metrics: Metrics) -> None:
        self.answered = 0  # batches
        self._worker, self._queue, self._spec, self._host = worker, queue, spec, host
        self._metrics, self._where = metrics, (spec.key.name, spec.key.version)
        self._size = spec.most_in_batch
        self._number = 0  # of the last batch that was sent
        self._hand: list[Job] = []
        self._sent_at = 0.0

    @property
    def room(self) -> int:
        """Jobs that could be begun at once."""
        return 0 if self._hand else self._size

    async def run(self) -> Failure | None:
        """Serve until the slot is to leave, None then, or the worker is of no use any more."""
        failure: Failure | None = None
        self._worker.on_frame = self._answer_clients
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_waiting_when_ailing)
                failure = await self._serve()
                nursery.cancel_scope.cancel()
        finally:
            self._fail(self._hand, failure)
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
            elif (describe := self._queue.take_alone()) is not None:
                failure = await self._answer_between(describe)
            elif not self._host.finished:
                room, purpose = self._size - len(self._hand), self._hand[0].purpose
                self._hand += self._queue.join(room, purpose, taker=self._host.id)
            if failure is None and self._hand:
                failure = await self._answer()
        return failure

    async def _answer_between(self, job: Job) -> Failure | None:
        """A call of its own amid a continuous batch, which may have no end."""
        aside, self._hand = self._hand, [job]
        try:
            return await self._answer()
        finally:
            self._hand += aside

    async def _stop_waiting_when_ailing(self) -> None:
        await self._worker.ailing.wait()
        if not self._hand:
            self._host.stop_idling()

    async def _idle_death(self) -> Failure:
        """What became of a worker that nobody had asked anything."""
        try:
            await self._worker.receive()
        except WorkerGone:
            return await self._host.death(self._worker, "died_idle", _DIED_IDLE)
        except WireError as e:
            return await self._bad_frame(str(e))
        return await self._bad_frame("the worker sent what nobody had asked for")

    async def _bad_frame(self, detail: str) -> Failure:
        return await self._host.death(self._worker, "bad_frame", detail, grace_s=0)

    async def _answer(self) -> Failure | None:
        """Have the worker answer what is in hand; what is left there then waits for the next round."""
        self._host.at_work(True)
        timeout_s = self._spec.response_timeout_s
        with trio.move_on_after(timeout_s) as scope:
            failure = await self._exchange(scope)
        if scope.cancelled_caught:
            return await self._host.unresponsive(self._worker, "response_timeout", _silence(timeout_s))
        if failure is None:
            self.answered += 1
            for job in self._hand:
                if job.done:  # that of a client which left, too
                    self._queue.answered(job, {})
            self._hand = [job for job in self._hand if not job.done]
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
        """One call of the handler.  Its response timeout runs anew with each piece that somebody waits for."""
        self._number += 1
        told, self._sent_at = False, perf_counter()
        try:
            await self._send(self._hand)
        except WorkerGone as e:
            return await self._host.death(self._worker, "died_idle", str(e))
        if not self._hand:
            return None
        try:
            while True:
                frame = await self._worker.receive()
                if frame.kind is Kind.REPLY:
                    return None
                if not all(job.done for job in self._hand):
                    limit.deadline = trio.current_time() + self._spec.response_timeout_s
                elif not told:  # else a stream without listeners, and without an end, would keep the worker
                    told = True
                    await self._worker.send(Frame(Kind.GONE, self._number, {}))
        except WorkerGone as e:
            return await self._host.death(self._worker, "crashed", str(e))
        except WireError as e:
            return await self._bad_frame(str(e))

    def _answer_clients(self, frame: Frame) -> None:
        """Answer clients as soon as the worker has, sooner than this task has its turn.  Raises WireError."""
        if frame.id != self._number:  # taken for this one it would give clients each other's answers
            raise WireError(f"an answer to batch {frame.id} came for batch {self._number}")
        self._measure(self._hand, frame, self._sent_at)
        self._deliver(self._hand, frame)

    def _measure(self, jobs: list[Job], frame: Frame, sent_at: float) -> None:
        took_s = frame.meta.get(TOOK)
        if isinstance(took_s, float) and 0 <= took_s < math.inf:
            self._metrics.batch_answered(
                self._where,
                seconds=perf_counter() - sent_at,
                worker_s=took_s,
                request_ids=(job.request.request_id for job in jobs),
            )

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
            elif frame.kind is Kind.PIECE or self._goes_on(job, answer):
                job.pass_on(answer)
            else:
                self._queue.answered(job, answer.headers)
                job.finish(answer)

    def _goes_on(self, job: Job, answer: JobReply) -> bool:
        """Whether the job stays in hand for another round."""
        more = answer.headers.get(STREAM_NEXT) == "true"
        return more and self._spec.continuous and job.purpose is not Purpose.DESCRIBE

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
                self._queue.answered(job, {})
                job.finish(error)
            jobs.clear()
        if jobs:
            new = [job for job in jobs if not job.begun]
            self._metrics.batch_begun(self._where, len(jobs), [job.begin() for job in new])


@dataclass(slots=True)
class _Call:
    """A job in the hand of an asynchronous worker: when its answer is `due`, and whether the worker knows that
    nobody waits for that any more."""

    job: Job
    due: float
    sent_at: float
    told: bool = False


class AsynchronousServing(Serving):
    """Each job is a batch of its own; many are in the worker's hand at once, and answered in any order.

    The response timeout counts for each of them.  A worker that says nothing at all for so long is ended; one that
    answers others is not: only the late request fails then.
    """

    def __init__(self, worker: Worker, queue: JobQueue, spec: PoolSpec, host: Host, metrics: Metrics) -> None:
        super().__init__(worker, queue, spec, host, metrics)
        self._calls: dict[int, _Call] = {}
        self._heard_at = trio.current_time()
        self._answered = trio.lowlevel.ParkingLot()
        self._sending = trio.Lock()
        self._taking = trio.CancelScope()
        self._silence = trio.CancelScope()
        self._failure: Failure | None = None

    @property
    def room(self) -> int:
        return MOST_ASYNCHRONOUS - len(self._calls)

    @property
    def _live(self) -> list[_Call]:
        return [call for call in self._calls.values() if not call.job.done]

    async def run(self) -> Failure | None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, nursery.cancel_scope)
                with self._taking:
                    await self._take_and_send()
                while self._live or self._taking.cancel_called:  # else whoever hears the worker ends this
                    await self._answered.park()
                nursery.cancel_scope.cancel()
        finally:
            self._fail([call.job for call in self._calls.values()], self._failure)
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
        number, now = self._number, trio.current_time()
        if not self._calls:
            self._host.at_work(True)
            self._heard_at = now
        call = self._calls[number] = _Call(jobs[0], now + self._spec.response_timeout_s, perf_counter())
        self._silence.deadline = min(self._silence.deadline, call.due)
        try:
            async with self._sending:
                await self._send(jobs)
        except WorkerGone:
            if not jobs:
                self._done(number)
            await trio.sleep_forever()  # whoever hears the worker has noticed as well, and ends this
        if not jobs:
            self._done(number)

    async def _hear(self, life: trio.CancelScope) -> None:
        """Take in what the worker says until it says no more, or nothing for too long."""
        try:
            while self._failure is None:
                frame = None
                with trio.CancelScope(deadline=min((c.due for c in self._live), default=math.inf)) as self._silence:
                    frame = await self._worker.receive()
                if frame is not None:
                    await self._take_in(frame)
                elif self._silent():
                    self._taking.cancel()  # nothing more for a worker that is on its way out
                    detail = _silence(self._spec.response_timeout_s)
                    self._failure = await self._host.unresponsive(self._worker, "response_timeout", detail)
        except WorkerGone as e:
            self._taking.cancel()
            reason, detail = ("crashed", str(e)) if self._calls else ("died_idle", _DIED_IDLE)
            self._failure = await self._host.death(self._worker, reason, detail)
        except WireError as e:
            self._taking.cancel()
            self._failure = await self._bad_frame(str(e))
        life.cancel()

    def _silent(self) -> bool:
        """Whether the worker has said nothing for too long, or can take no more; else those who are late fail alone."""
        now, timeout_s = trio.current_time(), self._spec.response_timeout_s
        if now - self._heard_at >= timeout_s:
            return True
        for call in self._live:
            if call.due <= now:
                call.job.finish(InternalServer(f"{_silence(timeout_s).capitalize()}.", cause=_LATE))
        return self.room <= 0 and not self._live

    async def _take_in(self, frame: Frame) -> None:
        call = self._calls.get(frame.id)
        if call is None:
            raise WireError(f"an answer to batch {frame.id}, which is not in hand")
        self._measure([call.job], frame, call.sent_at)
        self._deliver([call.job], frame)
        self._heard_at = trio.current_time()
        call.due = self._heard_at + self._spec.response_timeout_s
        if frame.kind is Kind.REPLY:
            self.answered += 1
            self._done(frame.id)
        elif call.job.done and not call.told:
            call.told = True
            async with self._sending:
                await self._worker.send(Frame(Kind.GONE, frame.id, {}))

    def _done(self, number: int) -> None:
        del self._calls[number]
        self._answered.unpark_all()
        if not self._calls:
            self._host.at_work(False)


def _request_of(job: Job) -> JobRequest:
    """What is sent of a job: its inputs once only, later rounds of a continuous batch have them."""
    return replace(job.request, inputs=()) if job.begun else job.request


def _error_of(failed: HandlerFailed) -> TserveError:
    cause = {"reason": "handler_failed", "detail": failed.detail}
    return InternalServer(failed.message, code=failed.code, cause=cause)


def _silence(timeout_s: float) -> str:
    return f"no answer within response_timeout, {timeout_s:g} s"
