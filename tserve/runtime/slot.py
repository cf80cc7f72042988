"""A slot: the place that users see by its id, and in it one worker after another.

Structure: `_life` is the scope of the whole slot, its deadline is the end of a drain; `_idle` is the scope of
whatever may be given up at once (waiting for a batch, a back-off).  What a worker has in hand is answered on
every way out, see tserve/runtime/serving.py.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from tserve.domain import phases
from tserve.domain.events import Happening, Report, WorkerEvent
from tserve.domain.phases import Phase
from tserve.domain.plan import SETTLED_S, Failure, FailureRun, GiveUp, Intensity, PoolSpec, WorkerSpec, after_failure
from tserve.domain.wire import Frame, Kind, WireError
from tserve.metrics.recorder import Metrics
from tserve.runtime import autopsy
from tserve.runtime.jobs import JobQueue
from tserve.runtime.launcher import Exit, Launcher, LaunchFailed, Worker, WorkerGone
from tserve.runtime.serving import AsynchronousServing, Serving

PROCESS_CHECK_S = 0.25
REASON_LIMIT, DETAIL_LIMIT = 1 << 10, 16 << 10  # of what a worker says of a failed load
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
    gpu_id: int | None


class Slot:
    """One place for a worker of a version.  `run` owns it; the other methods only give orders.

    `intensity` is the version's; `gpu_id` the device that every worker in here is given.
    """

    def __init__(
        self,
        number: int,
        spec: PoolSpec,
        queue: JobQueue,
        launcher: Launcher,
        on_change: Callable[[], None],
        *,
        intensity: Intensity,
        report: Report,
        gpu_id: int | None = None,
        metrics: Metrics | None = None,
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
        self._intensity = intensity
        self._report = report
        self._gpu_id = gpu_id
        self._metrics = metrics or Metrics()
        self._where = (spec.key.name, spec.key.version)
        self._worker_spec = replace(spec.worker, gpu_id=gpu_id)
        self._serve_out = False
        self._drain_s = math.inf
        self._life = trio.CancelScope()
        self._idle = trio.CancelScope()
        self._since = trio.current_time()
        self._next_try = math.inf
        self._restarts = 0
        self._pid = -1
        self._last_pid = -1
        self._end: dict[str, object] = {}  # of the last worker: exit, and reason and detail when it was forced
        self._worker: Worker | None = None
        self._was_loaded = False
        self._launched_at = 0.0
        self._verdict: Failure | None = None  # why this server killed it, as opposed to what its death looks like
        self._run = FailureRun()
        self._serving: Serving | None = None

    # -- orders

    def stop(self, *, drain_s: float, serve_out: bool) -> None:
        """Leave: after what is in hand, with `serve_out` also what waits in the queue, but within `drain_s`.

        A second order replaces the first one's time limit.
        """
        self.stopping = True
        self._serve_out = serve_out
        self._drain_s = drain_s
        self._life.deadline = trio.current_time() + drain_s
        if drain_s <= 0:
            self._life.cancel()
        elif self.phase is Phase.BUSY:
            self._enter(Phase.DRAINING)
            if not serve_out:
                self._idle.cancel()  # an asynchronous worker looks out for more while it has something in hand
        elif not (serve_out and self.phase in (Phase.STARTING, Phase.LOADING) and not self._queue.empty):
            self._idle.cancel()

    def retry(self) -> None:
        """Start again now, after giving up or while waiting to."""
        self.tried = False
        self._run = FailureRun()
        self._idle.cancel()

    @property
    def room(self) -> int:
        """Jobs that its worker could begin at once."""
        return self._serving.room if self._serving is not None and not self.stopping else 0

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
            gpu_id=self._gpu_id,
        )

    # -- life

    async def run(self) -> None:
        """Live until stopped."""
        failure: Failure | None = None
        try:
            with self._life:
                while not self.finished:
                    failure = await self._guarded()
                    if failure is None or self.stopping:
                        self.failure = failure or self.failure
                        break
                    died, failure = failure, None
                    await self._recover(died)
                    self._restarts += 1
        finally:
            self._end_phase()
            self._enter(Phase.STOPPED)
            self._tell(Happening.STOPPED, self._end, failure)
            self._metrics.worker_gone(self._label())

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
        self._was_loaded, self._verdict = False, None
        self._launched_at = trio.current_time()
        outcome: Failure | None = None
        with trio.CancelScope() as self._idle:
            try:
                async with self._launcher.launch(self._worker_spec, label=self._label()) as worker:
                    self._worker, self._pid, self._last_pid = worker, worker.pid, worker.pid
                    try:
                        outcome = await self._load_and_serve(worker)
                    finally:
                        self._end_phase()
                        if outcome is not None:
                            worker.kill()  # it failed; there is nothing that it could still finish
            except OSError as e:
                outcome = Failure("start_failed", f"no process could be started: {e}")
            except LaunchFailed as e:
                outcome = e.failure
            finally:
                if self._worker is not None:
                    hurried = trio.current_effective_deadline() == -math.inf
                    with trio.CancelScope(shield=True):  # it has ended
                        end = await self._worker.wait()
                    self._note_end(end, asked=outcome is None, hurried=hurried)
                self._worker, self._pid, self._serving = None, -1, None
                self._queue.release(self.id)
        return outcome

    def _note_end(self, end: Exit, *, asked: bool, hurried: bool) -> None:
        """How the worker left, and which limit it overran when it was asked to and did not."""
        grace_s = self._spec.worker.kill_grace_s
        self._end = {"exit": str(end)}
        if end.unkillable:
            self._end |= {"reason": "unkillable", "detail": "the kernel does not let the process end"}
        elif not asked or not end.killed or end.out_of_memory is not False:
            pass
        elif self._life.cancel_called:
            self._end |= {"reason": "drain_timeout", "detail": f"stopped after {self._drain_s:g} s to drain"}
        elif not hurried:  # else the server has no time either
            self._end |= {"reason": "kill_grace", "detail": f"did not leave within worker_kill_grace, {grace_s:g} s"}
            _log.warning("%s %s and was killed", self._label(), self._end["detail"])

    async def _load_and_serve(self, worker: Worker) -> Failure | None:
        self._enter(Phase.LOADING)
        async with trio.open_nursery() as nursery:
            if self._spec.worker.process_limit > 0:
                nursery.start_soon(self._count_processes, worker, self._spec.worker.process_limit)
            failure = await self._load(worker)
            if failure is None:
                loaded_at = trio.current_time()
                self.tried = self._was_loaded = True
                serves = AsynchronousServing if self._worker_spec.asynchronous else Serving
                self._serving = serves(worker, self._queue, self._spec, self, self._metrics)
                self._enter(Phase.READY)
                _log.info("%s is ready, pid %d", self._label(), worker.pid)
                took_s = loaded_at - self._launched_at
                self._metrics.worker_loaded(self._where, self._label(), took_s)
                self._tell(Happening.READY, {"load_s": round(took_s, 3)})
                failure = await self._serving.run()
                if self._serving.answered or trio.current_time() - loaded_at >= SETTLED_S:
                    self._run = FailureRun()
            nursery.cancel_scope.cancel()
        return failure

    async def _count_processes(self, worker: Worker, limit: int) -> None:
        """The kernel's own limit counts a user's processes, and none of root's."""
        while (count := await worker.processes(most=limit)) <= limit:  # noqa: ASYNC110 - nothing tells of a fork
            await trio.sleep(PROCESS_CHECK_S)
        self._verdict = Failure("process_limit", f"{count} processes, worker_process_limit is {limit}")
        worker.kill()

    async def _load(self, worker: Worker) -> Failure | None:
        timeout_s = self._spec.startup_timeout_s
        with trio.move_on_after(timeout_s):
            try:
                await worker.send(Frame(Kind.LOAD, 0, _as_meta(self._worker_spec)))
                answer = await worker.receive()
                report = answer.meta
                if answer.kind is not Kind.LOADED:
                    raise WireError("the answer to a load is of another kind")
            except (WorkerGone, WireError) as e:
                return await self.death(worker, "died_loading", str(e))
            if report.get("ok") is True:
                return None
            self._end_phase()
            await autopsy.last_words(worker)
            return Failure(
                str(report.get("reason"))[:REASON_LIMIT],
                str(report.get("detail"))[-DETAIL_LIMIT:],
                code=507 if report.get("code") == 507 else 500,
                log_tail=worker.tail(),
                hopeless=report.get("hopeless") is True,
                file=str(report.get("file") or "")[:REASON_LIMIT],
            )
        detail = f"the model was not loaded within startup_timeout, {timeout_s:g} s"
        return await self.unresponsive(worker, "startup_timeout", detail)

    # -- what serving needs (tserve.runtime.serving.Host)

    @property
    def finished(self) -> bool:
        """Told to leave, and nothing left to do; a slot that gave up is no help with the queue."""
        return self.stopping and (self.phase is Phase.FAILED or not self._serve_out or self._queue.empty)

    def idle(self) -> trio.CancelScope:
        self._idle = trio.CancelScope()
        return self._idle

    def stop_idling(self) -> None:
        self._idle.cancel()

    def at_work(self, busy: bool) -> None:
        if busy and self.phase is Phase.READY:
            self._enter(Phase.DRAINING if self.stopping else Phase.BUSY)
        elif not busy and self.phase is Phase.BUSY:
            self._enter(Phase.READY)

    def limit(self) -> str:
        return f"the time to drain, {self._drain_s:g} s" if self._drain_s < math.inf else "the server's time"

    async def death(
        self, worker: Worker, reason: str, detail: str, *, grace_s: float = autopsy.EXIT_GRACE_S
    ) -> Failure:
        self._end_phase()
        return await autopsy.of_death(
            worker,
            Failure(reason, detail),
            model_dir=self._worker_spec.model_dir,
            verdict=self._verdict,
            grace_s=grace_s,
        )

    async def unresponsive(self, worker: Worker, reason: str, detail: str) -> Failure:
        self._end_phase()
        return await autopsy.of_silence(worker, reason, detail, model_dir=self._worker_spec.model_dir)

    async def _recover(self, failure: Failure) -> None:
        """Wait until the next start is due, for ever when there is none."""
        self.failure, self.tried, self._end = failure, True, {}
        now = trio.current_time()
        self._run, verdict = after_failure(
            self._run, failure, was_loaded=self._was_loaded, now=now, window_s=self._spec.retry_window_s
        )
        if not isinstance(verdict, GiveUp):
            verdict = self._intensity.one_more(now) or verdict
        _log.warning("%s is down: %s, %s", self._label(), failure.reason, failure.exit or failure.summary)
        if isinstance(verdict, GiveUp):
            _log.warning("%s is not started again: %s", self._label(), verdict.why)
            self._tell(Happening.GAVE_UP, {"why": verdict.why}, failure)
            self._enter(Phase.FAILED)
            await self._pause(math.inf)
            return
        self._metrics.worker_restarts(self._where, failure.reason)
        self._tell(Happening.DIED, {"next_try_s": verdict}, failure)
        if verdict > 0:
            _log.info("%s is started again in %g s", self._label(), verdict)
            self._next_try = now + verdict
            self._enter(Phase.BACKING_OFF)
            await self._pause(verdict)

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds) as self._idle:
            await trio.sleep_forever()

    def _tell(self, kind: Happening, detail: dict[str, object], failure: Failure | None = None) -> None:
        cause = failure.cause() if failure is not None else {}
        tail = str(cause.pop("log_tail", ""))
        event = WorkerEvent(time.time(), self._spec.key, self.id, self._last_pid, kind, {**cause, **detail}, tail)
        self._report(event)

    def _end_phase(self) -> None:
        """The process, if there is one, is of no use from now on."""
        if self.phase is Phase.LOADING or self.phase in phases.LOADED:
            self._enter(Phase.STOPPING)

    def _enter(self, phase: Phase) -> None:
        phases.check(self.phase, phase)
        self.phase, self._since = phase, trio.current_time()
        self._on_change()

    def _label(self) -> str:
        return f"W-{self.id}-{self._spec.key.name}_{self._spec.key.version}"


def _as_meta(spec: WorkerSpec) -> dict[str, object]:
    return {name: getattr(spec, name) for name in spec.__slots__}
