"""All slots and the job queue of one version."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from tserve.domain.events import Report, WorkerEvent
from tserve.domain.phases import LOADED, Phase
from tserve.domain.plan import Failure, Intensity, Observed, PoolSpec, Retry, Start, Stop, plan
from tserve.domain.versions import Key
from tserve.errors import ServiceUnavailable
from tserve.metrics.recorder import Metrics
from tserve.runtime.jobs import Job, JobQueue, QueueClosed, QueueFull
from tserve.runtime.launcher import Launcher
from tserve.runtime.sequences import SequenceQueue
from tserve.runtime.serving import CLIENT_TAIL
from tserve.runtime.slot import Slot, SlotView


class NoCapacity(Exception):
    """A job cannot be taken: `reason` is no_worker, queue_full, no_job_ticket or all_failed.

    `failure` is what the workers died of.
    """

    def __init__(self, reason: str, failure: Failure | None = None) -> None:
        super().__init__(reason)
        self.reason, self.failure = reason, failure

    def cause(self) -> dict[str, object]:
        why = self.failure.cause(tail=CLIENT_TAIL) if self.failure is not None else {}
        return {"reason": self.reason, **({"workers": why} if why else {})}


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool as describe shows it."""

    slots: tuple[SlotView, ...] = ()
    pending: int = 0
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a wish: `ready`: all slots are up and the surplus is gone; else the `failure`, or neither when
    some slots are up, and `gone` when the version was unregistered meanwhile."""

    ready: bool
    failure: Failure | None = None
    gone: bool = False


def tell_nobody(event: WorkerEvent) -> None:
    pass


def no_gpu(spec: PoolSpec) -> int | None:
    return None


def _queue(spec: PoolSpec) -> JobQueue:
    if spec.sequences is None:
        return JobQueue(spec.queue_size)
    end_header = spec.worker.sequence_headers[2]
    return SequenceQueue(
        spec.queue_size, spec.sequences, per_worker=spec.most_in_batch, name=spec.key.name, end_header=end_header
    )


Place = Callable[[PoolSpec], int | None]  # the GPU of the next slot


class Pool:
    """One version's workers.  `run` owns the slots; `apply` says what is wanted of them."""

    def __init__(
        self,
        spec: PoolSpec,
        launcher: Launcher,
        slot_numbers: Iterator[int],
        *,
        report: Report = tell_nobody,
        place: Place = no_gpu,
        metrics: Metrics | None = None,
    ) -> None:
        self.key: Key = spec.key
        self.client_timeout_s = spec.client_timeout_s
        self.stateful = spec.sequences is not None
        self.sequence_headers = spec.worker.sequence_headers
        self._job_ticket = spec.job_ticket
        self._spec: PoolSpec | None = spec
        self._first_spec = spec
        self._launcher = launcher
        self._numbers = slot_numbers
        self._report = report
        self._place = place
        self._metrics = metrics or Metrics()
        self._intensity = Intensity(spec.most_restarts, spec.restart_period_s)
        self._queue = _queue(spec)
        self._slots: list[Slot] = []
        self._fresh: set[int] = set()  # slots that the last wish started, or started again
        self._changed = trio.Event()
        self._orders = trio.Event()
        self._orders.set()
        self._asked = True
        self._impatient = False
        self._drain_s = math.inf
        self._limit_is_new = False
        self.gone = trio.Event()

    # -- wishes

    def apply(self, spec: PoolSpec | None, *, drain_s: float | None = None, impatient: bool = False) -> None:
        """Want what `spec` says, nothing any more for None; surplus slots get `drain_s` for what they have in hand.

        None leaves the limit of those on their way out as it is.  Slots that gave up are started again, with
        `impatient` those that wait for their next try, too.
        """
        self._spec, self._asked = spec, True
        if drain_s is not None:
            self._drain_s, self._limit_is_new = drain_s, True
        self._impatient = self._impatient or impatient
        self._orders.set()

    async def caught_up(self) -> None:
        """Wait until the last wish has been looked at: slots are then there, though not yet up."""
        while self._orders.is_set() and not self.gone.is_set():
            await self._changed.wait()

    # -- jobs

    def submit(self, job: Job) -> None:
        """Queue a job.  Raises NoCapacity."""
        living = [slot for slot in self._slots if not slot.stopping]
        if not living:
            raise NoCapacity("no_worker")
        if all(slot.phase is Phase.FAILED for slot in living):
            raise NoCapacity("all_failed", living[-1].failure)
        if self._job_ticket and self._queue.held >= sum(slot.room for slot in living):
            raise NoCapacity("no_job_ticket")
        try:
            self._queue.put(job)
        except QueueClosed:
            raise NoCapacity("no_worker") from None
        except QueueFull:
            raise NoCapacity("queue_full") from None

    def discard(self, job: Job) -> None:
        self._queue.discard(job)

    # -- what is

    def view(self) -> PoolView:
        slots = tuple(slot.view() for slot in self._slots if not slot.stopping)
        return PoolView(slots, len(self._queue), self._queue.capacity)

    def healthy(self) -> int:
        """Slots that have not given up (spec/inference.md section 1.1)."""
        return sum(not slot.stopping and slot.phase is not Phase.FAILED for slot in self._slots)

    async def settled(self, *, patience_s: float) -> Settled:
        """Wait until what is there is what is wanted, or cannot be.

        A slot that the wish started decides by its first attempt; one that was down before is waited for no longer
        than `patience_s` (DESIGN.md section 9, synchronous scale).
        """
        deadline = math.inf
        while (verdict := self._verdict()) is None:
            if self._waits_for_fresh():
                deadline = math.inf
            elif deadline == math.inf:
                deadline = trio.current_time() + patience_s
            with trio.move_on_at(deadline) as patience:
                await self._changed.wait()
            if patience.cancelled_caught:
                return Settled(ready=False)
        return verdict

    def _verdict(self) -> Settled | None:
        if self.gone.is_set():
            return Settled(ready=False, gone=True)
        if self._orders.is_set() or self._spec is None:
            return None
        for slot in self._slots:
            # One that is ending now has not said yet what it died of.
            still = slot.phase in LOADED or slot.phase is Phase.STOPPING
            if slot.id in self._fresh and slot.tried and slot.failure is not None and not still:
                return Settled(ready=False, failure=slot.failure)
        if all(slot.phase in LOADED and not slot.stopping for slot in self._slots):
            return Settled(ready=True)
        return None

    def _waits_for_fresh(self) -> bool:
        """The wait is bounded by the slots themselves: by their startup or drain limits."""
        if self._orders.is_set() or self._spec is None:
            return True
        return any(slot.stopping or (slot.id in self._fresh and not slot.tried) for slot in self._slots)

    # -- life

    async def run(self) -> None:
        """Follow the wishes until retired and drained."""
        try:
            async with trio.open_nursery() as nursery:
                while self._spec is not None or self._slots:
                    await self._orders.wait()
                    self._follow(nursery)
        finally:
            self._refuse_queue()
            self.gone.set()
            self._notify()

    def _follow(self, nursery: trio.Nursery) -> None:
        asked, self._asked, self._orders = self._asked, False, trio.Event()
        impatient, self._impatient = self._impatient, False
        if self._spec is not None and self._spec.wanted[-1] > 0:
            self._queue.open()
        else:
            self._queue.close()
        if asked:
            self._intensity.forget()
            # A slot whose first start still runs stays decisive for those who wait for it.
            self._fresh = {slot.id for slot in self._slots if slot.id in self._fresh and not slot.tried}
        observed = [Observed(slot.id, slot.phase, slot.stopping) for slot in self._slots]
        by_id = {slot.id: slot for slot in self._slots}
        serve_out = self._spec is None or self._spec.wanted[-1] == 0
        for action in plan(self._spec, observed, asked=asked, impatient=impatient):
            match action:
                case Start():
                    self._start_slot(nursery)
                case Retry(slot=number):
                    self._fresh.add(number)
                    by_id[number].retry()
                case Stop(slot=number):
                    by_id[number].stop(drain_s=self._drain_s, serve_out=serve_out)
        if self._limit_is_new:  # also for what is on its way out
            self._limit_is_new = False
            for slot in self._slots:
                if slot.stopping:
                    slot.stop(drain_s=self._drain_s, serve_out=serve_out)
        self._on_change()

    def _start_slot(self, nursery: trio.Nursery) -> None:
        spec = self._spec or self._first_spec
        slot = Slot(
            next(self._numbers),
            spec,
            self._queue,
            self._launcher,
            self._on_change,
            intensity=self._intensity,
            report=self._report,
            gpu_id=self._place(spec),
            metrics=self._metrics,
        )
        self._slots.append(slot)
        self._fresh.add(slot.id)
        nursery.start_soon(self._run_slot, slot)

    async def _run_slot(self, slot: Slot) -> None:
        try:
            await slot.run()
        finally:
            self._slots.remove(slot)
            self._orders.set()
            self._on_change()

    def _on_change(self) -> None:
        self._check_queue()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _check_queue(self) -> None:
        """Jobs that no worker will come for are refused at once, not left waiting."""
        if all(slot.phase is Phase.FAILED for slot in self._slots) and not self._queue.empty:
            self._refuse_queue()

    def _refuse_queue(self) -> None:
        failure = self._slots[-1].failure if self._slots else None
        cause = NoCapacity("all_failed" if failure else "no_worker", failure).cause()
        for job in self._queue.clear():
            job.finish(ServiceUnavailable.no_worker(self.key.name, job.asked_version, cause=cause))
