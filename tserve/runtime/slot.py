"""A slot: the place that users see by its id, and in it one worker after another.

Structure: `_life` is the scope of the whole slot, its deadline is the end of a drain; `_idle` is the scope of
whatever may be given up at once (waiting for a batch, a back-off).  What a worker has in hand is answered on
every way out, see `_answer`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from tserve.domain import phases
from tserve.domain.phases import Phase
from tserve.domain.plan import SETTLED_S, Failure, FailureRun, GiveUp, PoolSpec, after_failure
from tserve.domain.wire import BatchFailed, Frame, JobReply, Kind, WireError, decode_reply, encode_batch
from tserve.errors import InternalServer
from tserve.runtime.jobs import Job, JobQueue
from tserve.runtime.launcher import Exit, Launcher, Worker, WorkerGone

EXIT_GRACE_S = 1.0  # a worker that hung up, or could not load, is given this to end with the exit code it meant
LOG_TAIL_SHOWN = 4 << 10  # bytes of the log tail that go into an error object
_log = logging.getLogger("tserve.runtime")


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot as describe shows it; times are epoch seconds, `since_s` the seconds in the present phase."""

    id: int
    created_at: float
    phase: Phase
    since_s: float
    pid: int
    memory: int
    restarts: int
    failure: Failure | None
    next_try_in_s: float | None


class Slot:
    """One place for a worker of a version.  `run` owns it; the other methods only give orders."""

    def __init__(
        self, number: int, spec: PoolSpec, queue: JobQueue, launcher: Launcher, on_change: Callable[[], None]
    ) -> None:
        self.id = number
        self.created_at = time.time()
        self.phase = Phase.STARTING
        self.stopping = False
        self.tried = False  # a start has come to an end, good or bad, since the slot was made or told to retry
        self.failure: Failure | None = None
        self._spec = spec
        self._queue = queue
        self._launcher = launcher
        self._on_change = on_change
        self._serve_out = False
        self._life = trio.CancelScope()
        self._idle = trio.CancelScope()
        self._since = trio.current_time()
        self._next_try = math.inf
        self._restarts = 0
        self._pid = -1
        self._worker: Worker | None = None
        self._run = FailureRun()
        self._batches = 0
        self._number = 0  # of the last batch that was sent

    # -- orders

    def stop(self, *, drain_s: float, serve_out: bool) -> None:
        """Leave: after what is in hand, with `serve_out` also what waits in the queue, but within `drain_s`.

        A second order replaces the first one's time limit.
        """
        self.stopping = True
        self._serve_out = serve_out
        self._life.deadline = trio.current_time() + drain_s
        if drain_s <= 0:
            self._life.cancel()
        elif self.phase is Phase.BUSY:
            self._enter(Phase.DRAINING)
        elif not (serve_out and self.phase in (Phase.STARTING, Phase.LOADING) and not self._queue.empty):
            self._idle.cancel()

    def retry(self) -> None:
        """Start again after giving up."""
        self.tried = False
        self._run = FailureRun()
        self._idle.cancel()

    def view(self) -> SlotView:
        now = trio.current_time()
        return SlotView(
            id=self.id,
            created_at=self.created_at,
            phase=self.phase,
            since_s=now - self._since,
            pid=self._pid,
            memory=self._worker.memory() if self._worker is not None else 0,
            restarts=self._restarts,
            failure=self.failure,
            next_try_in_s=self._next_try - now if self.phase is Phase.BACKING_OFF else None,
        )

    # -- life

    async def run(self) -> None:
        """Live until stopped."""
        try:
            with self._life:
                while not self._finished():
                    failure = await self._guarded()
                    if failure is None or self.stopping:
                        break
                    await self._recover(failure)
                    self._restarts += 1
        finally:
            if self.phase in phases.LOADED:
                self._enter(Phase.STOPPING)
            self._enter(Phase.STOPPED)

    async def _guarded(self) -> Failure | None:
        """One worker's life inside the error boundary of its version: a bug here must not end the others."""
        try:
            return await self._one_worker()
        except Exception as e:
            _log.exception("%s ended by an internal error", self._label())
            return Failure("internal_error", repr(e))

    async def _one_worker(self) -> Failure | None:
        """Start, load and serve until the worker is of no use any more: None when it was told to leave."""
        if self.phase is not Phase.STARTING:
            self._enter(Phase.STARTING)
        outcome: Failure | None = None
        with trio.CancelScope() as self._idle:
            try:
                async with self._launcher.launch(self._spec.worker, label=self._label()) as worker:
                    self._worker, self._pid = worker, worker.pid
                    outcome = await self._load_and_serve(worker)
                    if outcome is not None:
                        worker.kill()  # it failed; there is nothing that it could still finish
                    elif self.phase in phases.LOADED:
                        self._enter(Phase.STOPPING)
            except OSError as e:
                outcome = Failure("start_failed", f"no process could be started: {e}")
            finally:
                self._worker, self._pid = None, -1
        return outcome

    async def _load_and_serve(self, worker: Worker) -> Failure | None:
        self._enter(Phase.LOADING)
        failure = await self._load(worker)
        if failure is not None:
            return failure
        loaded_at, self._batches = trio.current_time(), 0
        self.tried = True
        self._enter(Phase.READY)
        _log.info("%s is ready, pid %d", self._label(), worker.pid)
        failure = await self._serve(worker)
        if self._batches or trio.current_time() - loaded_at >= SETTLED_S:
            self._run = FailureRun()
        return failure

    async def _load(self, worker: Worker) -> Failure | None:
        timeout_s = self._spec.startup_timeout_s
        with trio.move_on_after(timeout_s):
            try:
                await worker.send(Frame(Kind.LOAD, 0, _as_meta(self._spec)))
                answer = await worker.receive()
                report = answer.meta
                if answer.kind is not Kind.LOADED:
                    raise WireError("the answer to a load is of another kind")
            except (WorkerGone, WireError) as e:
                return await self._death(worker, "died_loading", str(e))
            if report.get("ok") is True:
                return None
            await self._end(worker)
            return Failure(
                str(report.get("reason")),
                str(report.get("detail")),
                code=507 if report.get("code") == 507 else 500,
                log_tail=worker.tail()[-LOG_TAIL_SHOWN:],
                hopeless=report.get("hopeless") is True,
            )
        detail = f"the model was not loaded within startup_timeout, {timeout_s:g} s"
        return Failure("startup_timeout", detail, log_tail=worker.tail()[-LOG_TAIL_SHOWN:])

    async def _serve(self, worker: Worker) -> Failure | None:
        """Batch after batch.  A worker that dies while it waits ends the waiting."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_waiting_at_exit, worker)
            failure = None
            while failure is None and not self._finished():
                with trio.CancelScope() as self._idle:
                    if worker.exited.is_set():
                        self._idle.cancel()
                    batch = await self._queue.take(max(1, self._spec.batch_size), self._spec.batch_delay_s)
                if self._idle.cancelled_caught:
                    if worker.exited.is_set():
                        failure = await self._death(worker, "died_idle", "the worker ended while it waited for work")
                elif batch:
                    failure = await self._answer(worker, batch)
            nursery.cancel_scope.cancel()
        return failure

    def _finished(self) -> bool:
        """Told to leave, and nothing left to do; a slot that gave up is no help with the queue."""
        return self.stopping and (self.phase is Phase.FAILED or not self._serve_out or self._queue.empty)

    async def _end_waiting_at_exit(self, worker: Worker) -> None:
        await worker.exited.wait()
        if self.phase is Phase.READY:
            self._idle.cancel()

    async def _answer(self, worker: Worker, batch: list[Job]) -> Failure | None:
        """Have the worker answer a batch.  Every job of it is finished when this ends, in whatever way."""
        if self.phase is Phase.READY:
            self._enter(Phase.DRAINING if self.stopping else Phase.BUSY)
        failure: Failure | None = Failure("drain_timeout", "the worker was stopped before it had answered")
        timeout_s = self._spec.response_timeout_s
        try:
            with trio.move_on_after(timeout_s) as scope:
                failure = await self._exchange(worker, batch)
            if scope.cancelled_caught:
                failure = Failure("response_timeout", f"no answer within response_timeout, {timeout_s:g} s")
        finally:
            if failure is not None:
                for job in batch:
                    job.finish(InternalServer("Worker died.", code=failure.code, cause=failure.cause()))
        if failure is None:
            self._batches += 1
            if self.phase is Phase.BUSY:
                self._enter(Phase.READY)
        return failure

    async def _exchange(self, worker: Worker, batch: list[Job]) -> Failure | None:
        """Send a batch, and finish its jobs with what comes back; those left over are the caller's to fail."""
        self._number += 1
        failure = await self._send(worker, batch)
        if failure is not None or not batch:
            return failure
        try:
            replies = await self._receive(worker, len(batch))
        except WorkerGone as e:
            return await self._death(worker, "crashed", str(e))
        except WireError as e:
            return Failure("bad_frame", str(e))
        if isinstance(replies, BatchFailed):
            cause = {"reason": "handler_failed", "detail": replies.detail}
            for job in batch:
                job.finish(InternalServer(replies.message, code=replies.code, cause=cause))
        else:
            for job, reply in zip(batch, replies, strict=True):
                job.finish(reply)
        return None

    async def _send(self, worker: Worker, batch: list[Job]) -> Failure | None:
        """Jobs that the worker cannot have begun are taken out of `batch`."""
        try:
            await worker.send(encode_batch(self._number, [job.request for job in batch]))
        except WorkerGone as e:
            # It never had the whole batch.  A job goes back once: one that no worker can take must not go round.
            tried_before = [job for job in batch if job.returned]
            self._queue.put_back(batch)
            batch[:] = tried_before
            return await self._death(worker, "died_idle", str(e))
        except WireError as e:  # nothing has been sent; the worker is well
            error = InternalServer(f"The batch is too large to be sent: {e}", cause={"reason": "batch_too_large"})
            for job in batch:
                job.finish(error)
            batch.clear()
        return None

    async def _receive(self, worker: Worker, jobs: int) -> list[JobReply] | BatchFailed:
        """Raises WorkerGone, and WireError for what is not the answer to the batch that was sent."""
        frame = await worker.receive()
        if frame.id != self._number:  # a surplus answer: taken for this one it would give clients each other's
            raise WireError(f"an answer to batch {frame.id} came for batch {self._number}")
        replies = decode_reply(frame)
        if not isinstance(replies, BatchFailed) and len(replies) != jobs:
            raise WireError(f"{len(replies)} replies for {jobs} jobs")
        return replies

    async def _death(self, worker: Worker, reason: str, detail: str) -> Failure:
        """What the end of a worker that is as good as dead was."""
        by_itself, end = await self._end(worker)
        by_kernel = by_itself and end.killed
        return Failure(
            "out_of_memory_kill" if by_kernel else reason,
            detail,
            code=507 if by_kernel else 500,
            exit=str(end) if by_itself else "did not end by itself",
            log_tail=worker.tail()[-LOG_TAIL_SHOWN:],
        )

    @staticmethod
    async def _end(worker: Worker) -> tuple[bool, Exit]:
        """Wait for the end of a worker, so that its last words are there: whether it came by itself, and how."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(EXIT_GRACE_S):
                await worker.exited.wait()
            by_itself = worker.exited.is_set()
            worker.kill()
            end = await worker.wait()
        return by_itself, end

    async def _recover(self, failure: Failure) -> None:
        """Wait until the next start is due, for ever when there is none."""
        was_loaded = self.phase in phases.LOADED
        self.failure, self.tried = failure, True
        now = trio.current_time()
        self._run, verdict = after_failure(
            self._run, failure, was_loaded=was_loaded, now=now, window_s=self._spec.retry_window_s
        )
        _log.warning("%s is down: %s, %s", self._label(), failure.reason, failure.exit or failure.summary)
        if isinstance(verdict, GiveUp):
            _log.warning("%s is not started again: %s", self._label(), verdict.why)
            self._enter(Phase.FAILED)
            await self._pause(math.inf)
        elif verdict > 0:
            _log.info("%s is started again in %g s", self._label(), verdict)
            self._next_try = now + verdict
            self._enter(Phase.BACKING_OFF)
            await self._pause(verdict)

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds) as self._idle:
            await trio.sleep_forever()

    def _enter(self, phase: Phase) -> None:
        phases.check(self.phase, phase)
        self.phase, self._since = phase, trio.current_time()
        self._on_change()

    def _label(self) -> str:
        return f"W-{self.id}-{self._spec.key.name}_{self._spec.key.version}"


def _as_meta(spec: PoolSpec) -> dict[str, object]:
    return {name: getattr(spec.worker, name) for name in spec.worker.__slots__}
