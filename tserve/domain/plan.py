"""Decisions of the machine as pure functions: which slots to start and stop, and when to try again.

Rules: spec/management.md sections 4.1 (scaling) and 5.4 (retries), DESIGN.md section 5.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tserve.domain.phases import Phase
from tserve.domain.versions import Key

FULL_TAIL = 64 << 10
MOST_WORKERS = 1024  # of one version; more is a slip of the keyboard, and would end the host


# Names of the headers with a sequence's id, start and end (spec/inference.md section 1.2).
SEQUENCE_HEADERS = ("ts_request_sequence_id", "ts_request_sequence_start", "ts_request_sequence_end")


@dataclass(frozen=True, slots=True)
class SequenceLimits:
    """How many sequences may live at once, how many requests of one may wait, and when one ends by itself (seconds)."""

    most: int
    most_waiting: int
    max_idle_s: float
    timeout_s: float  # from its first request; inf for none


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is told at load; plain data, sent as one frame."""

    model_name: str
    model_dir: str
    handler: str
    batch_size: int
    runtime: str = "python"
    manifest: Mapping[str, object] | None = None
    config_file: str | None = None
    decode_input: bool = True
    limit_max_image_pixels: bool = True
    max_response_size: int = 6553500
    asynchronous: bool = False  # the handler is a coroutine; many batches may be in its hand at once
    sequence_headers: Sequence[str] = SEQUENCE_HEADERS
    interpreter: str | None = None  # another Python than the server's
    requirements: str = ""  # file of packages that the worker needs installed, in model_dir; empty for none
    metrics_config: str = ""  # path of the file with the metrics that handlers look up
    hidden_env: tuple[str, ...] = ()  # environment variables that the worker does not get
    envelope: str = ""  # of ts.torch_handler.request_envelope, around the handler; empty for none
    gpu_id: int | None = None
    threads: int | None = None  # of OpenMP, MKL and torch; None leaves them alone
    memory_limit: int = 0  # bytes; 0 here and below: no limit
    process_limit: int = 0  # processes of the worker's session
    file_limit: int = 0  # open descriptors
    kill_grace_s: float = 2.0  # from asking the worker to leave to SIGKILL; SIGTERM comes half-way


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Desired state of one version as the machine needs it: numbers clamped, durations in float seconds."""

    key: Key
    worker: WorkerSpec
    min_workers: int
    max_workers: int
    batch_size: int = 1
    batch_delay_s: float = 0.1
    response_timeout_s: float = 120.0
    startup_timeout_s: float = 120.0
    retry_window_s: float = 300.0
    queue_size: int = 100
    client_timeout_s: float = math.inf  # until an answer must have begun
    job_ticket: bool = False  # take a request only when a worker is free for it
    continuous: bool = False  # requests join and leave the batch between two calls of the handler
    sequences: SequenceLimits | None = None  # requests of one sequence go to one worker, in order
    gpus: int = 0  # devices it may use; 0 is the processor
    device_ids: tuple[int, ...] | None = None  # of these only those
    parallel_level: int = 0  # devices that one worker takes; 0 here: one
    most_restarts: int = 0  # of all workers within `restart_period_s`; 0: no limit
    restart_period_s: float = 60.0

    @property
    def most_in_batch(self) -> int:
        """Jobs that one call of the handler gets at most (spec/inference.md section 9.3, the last but two)."""
        return max(1, self.batch_size) * (2 if self.continuous and self.sequences is not None else 1)

    @property
    def wanted(self) -> range:
        """How many slots there may be: from min to max; none as soon as min is 0, whatever max says."""
        if self.min_workers == 0:
            return range(1)
        fewest = min(max(0, self.min_workers), MOST_WORKERS)
        return range(fewest, min(max(fewest, self.max_workers), MOST_WORKERS) + 1)


@dataclass(frozen=True, slots=True)
class Observed:
    """One slot as the plan sees it."""

    slot: int
    phase: Phase
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Add a slot."""


@dataclass(frozen=True, slots=True)
class Stop:
    slot: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Start a slot that gave up again."""

    slot: int


Action = Start | Stop | Retry


def plan(spec: PoolSpec | None, slots: Sequence[Observed], *, asked: bool, impatient: bool = False) -> list[Action]:
    """What to do so that `slots` (oldest first) come to what `spec` wants; None wants none.

    `asked` says that a client asked for this state just now: that gives slots that gave up another try, with
    `impatient` also those that wait for their next one.
    Surplus slots are stopped from the newest backwards; a slot on its way out counts as gone.
    """
    wanted = spec.wanted if spec is not None else range(1)
    living = [slot for slot in slots if not slot.stopping]
    surplus = living[wanted[-1] :]
    actions: list[Action] = [Stop(slot.slot) for slot in reversed(surplus)]
    kept = living[: wanted[-1]]
    if asked:
        down = {Phase.FAILED, Phase.BACKING_OFF} if impatient else {Phase.FAILED}
        actions += [Retry(slot.slot) for slot in kept if slot.phase in down]
    actions += [Start()] * (wanted[0] - len(kept))
    return actions


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker is down.

    `reason` is a code of docs/errors.md, `detail` a sentence or a traceback, `code` the status clients get
    (507 for memory, else 500), `exit` the process's end in words, `log_tail` its last 64 KiB of output, `hopeless`
    that another try cannot help, `file` what of the archive is at fault, `at` epoch seconds.
    """

    reason: str
    detail: str = ""
    code: int = 500
    exit: str | None = None
    log_tail: str = ""
    hopeless: bool = False
    file: str = ""
    at: float = field(default_factory=time.time, compare=False)

    @property
    def summary(self) -> str:
        """The last line of the detail: of a traceback, the one that names the error."""
        return self.detail.strip().rpartition("\n")[2]

    def cause(self, *, tail: int = FULL_TAIL) -> dict[str, object]:
        """For the `tserve` member of an error object, with the last `tail` characters of output; no empty parts."""
        parts = {
            "reason": self.reason,
            "detail": self.detail,
            "file": self.file,
            "exit": self.exit,
            "log_tail": self.log_tail[-tail:],
        }
        return {name: value for name, value in parts.items() if value}


BACKOFF_S = (1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597)
SETTLED_S = 10.0  # a worker that was ready for so long, or that answered a batch, did not fail "in a row"


@dataclass(frozen=True, slots=True)
class FailureRun:
    """Failures in a row: how many, when the first came, and whether a worker had been loaded before it."""

    count: int = 0
    since: float = 0.0
    was_loaded: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    why: str


def after_failure(
    run: FailureRun, failure: Failure, *, was_loaded: bool, now: float, window_s: float
) -> tuple[FailureRun, float | GiveUp]:
    """The run with this failure added, and the delay in seconds before the next start, or to give up.

    The first restart after a loaded worker is immediate; then upstream's table 1, 1, 2, 3, 5, 8 … runs.  Retries
    go on while less than `window_s` has passed since the first failure of the run.
    """
    run = replace(run, count=run.count + 1) if run.count else FailureRun(1, now, was_loaded)
    if failure.hopeless:
        return run, GiveUp("trying again cannot help")
    if run.count > 1 and now - run.since >= window_s:
        return run, GiveUp(f"still failing {now - run.since:.0f} s after the first failure (limit {window_s:.0f} s)")
    step = run.count - (2 if run.was_loaded else 1)
    return run, 0.0 if step < 0 else float(BACKOFF_S[min(step, len(BACKOFF_S) - 1)])


class Intensity:
    """Restarts of one version, all slots together: more than `most` within `period_s` seconds are too many.

    As supervisors of other systems have it: what dies again and again, though each start works, is left down.
    """

    def __init__(self, most: int, period_s: float) -> None:
        self._most, self._period_s = most, period_s
        self._times: deque[float] = deque()

    def one_more(self, now: float) -> GiveUp | None:
        """Count a restart, or refuse it."""
        while self._times and now - self._times[0] >= self._period_s:
            self._times.popleft()
        if 0 < self._most <= len(self._times):
            return GiveUp(
                f"{len(self._times)} restarts of this version within {self._period_s:g} s (max_worker_restarts)"
            )
        self._times.append(now)
        return None

    def forget(self) -> None:
        self._times.clear()
