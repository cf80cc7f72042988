"""The use case of every inference route: one request through a version's queue and worker."""

from __future__ import annotations

import math
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import trio

from tserve.domain.registry import Registry
from tserve.domain.wire import JobReply, JobRequest
from tserve.errors import AnswerTimeout, InternalServer, ServiceUnavailable, StreamCut, TserveError
from tserve.metrics.recorder import Metrics
from tserve.net.timers import Timer, Timers
from tserve.net.told import told
from tserve.runtime.jobs import Job, Outcome, Purpose
from tserve.runtime.pool import NoCapacity, Pool
from tserve.runtime.reconcile import Reconciler

PIECE_BYTES = 1 << 10  # that a piece of it costs beside its body
A = TypeVar("A", bound="_Asked")
STREAM_BYTES = 64 << 20  # of a streamed answer that its client has not read: more, and the client is given up


@dataclass(frozen=True, slots=True)
class Answer:
    """What the handler answered; `rest` is there when more follows what `first` has of the body.

    `sequence` is the id of the sequence that the request belongs to, of a stateful version.
    """

    first: JobReply
    rest: Stream | None = None
    sequence: str = ""


class Stream:
    """The further parts of a streamed answer, to be iterated once, and left in any case.

    Raises StreamCut when the answer cannot be brought to its end: its status has been sent by then.
    """

    def __init__(self, inbox: _Inbox) -> None:
        self._inbox = inbox

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        try:
            part = await self._inbox.next()
        except TserveError as e:
            raise StreamCut(e) from e
        if part is None:
            raise StopAsyncIteration
        return part.body

    def leave(self) -> None:
        """Nobody reads on."""
        self._inbox.leave()

    async def given_up(self) -> None:
        """Wait until so much is unread that the answer is given up."""
        await self._inbox.overflown.wait()

    @property
    def overflown(self) -> TserveError | None:
        """What is said of an answer that was given up."""
        return self._inbox.overflow


class _Asked:
    """One job, on behalf of a client that waits for what comes back."""

    def __init__(
        self, pool: Pool, request: JobRequest, asked: str | None, purpose: Purpose, sequence: str, metrics: Metrics
    ) -> None:
        self.pool = pool
        self._metrics = metrics
        self._bytes = 0  # unread
        self.job = Job(
            request,
            self._on_done,
            on_piece=self._on_piece,
            asked_version=asked,
            purpose=purpose,
            sequence=sequence,
            ends_sequence=bool(sequence) and _header(request, pool.sequence_headers[2]).lower() == "true",
        )

    def leave(self) -> None:
        """Nobody waits any more: free the place in the queue; what a worker has in hand runs on."""
        if not self.job.done:
            self.pool.discard(self.job)
            self._measure(ok=False)  # the slowest ones, often

    def _on_piece(self, piece: JobReply) -> None:
        raise NotImplementedError

    def _on_done(self, outcome: Outcome) -> None:
        raise NotImplementedError

    def _measure(self, *, ok: bool) -> None:
        job, key = self.job, self.pool.key
        if job.purpose is not Purpose.DESCRIBE:
            self._metrics.prediction_answered(
                (key.name, key.version),
                job.asked_version,
                seconds=perf_counter() - job.queued_at,
                waited_s=job.waited_s,
                ok=ok,
            )


class _Inbox(_Asked):
    """What comes back part by part, until its client has taken it."""

    def __init__(self, *asked: Any) -> None:
        super().__init__(*asked)
        self._parts: deque[JobReply] = deque()
        self._outcome: Outcome | None = None
        self._taken = False
        self._arrived = trio.Event()
        self.overflown = trio.Event()

    def _on_piece(self, piece: JobReply) -> None:
        self._bytes += len(piece.body) + PIECE_BYTES
        if self._bytes > STREAM_BYTES:
            self._parts.clear()
            self.overflown.set()
            self.job.finish(InternalServer(f"The client left more than {STREAM_BYTES} bytes of the stream unread."))
            return
        self._parts.append(piece)
        self._arrived.set()

    def _on_done(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._measure(ok=isinstance(outcome, JobReply))
        self._arrived.set()

    @property
    def overflow(self) -> TserveError | None:
        if self.overflown.is_set() and isinstance(self._outcome, TserveError):
            return self._outcome
        return None

    @property
    def more(self) -> bool:
        """Whether anything follows what was taken."""
        return not self._taken

    async def next(self) -> JobReply | None:
        """The next part, the last one included; None after that.  Raises TserveError for a failure."""
        while not self._parts and self._outcome is None:
            self._arrived = trio.Event()
            await self._arrived.wait()
        if self._parts:
            part = self._parts.popleft()
            self._bytes -= len(part.body) + PIECE_BYTES
            return part
        if self._taken:
            return None
        self._taken = True
        if isinstance(self._outcome, TserveError):
            raise self._outcome
        return self._outcome


class _Whole(_Asked):
    """What comes back in one piece: the parts of a streamed answer are joined.  `tell` gets it, once."""

    def __init__(self, tell: Callable[[Answer | TserveError], None], *asked: Any) -> None:
        super().__init__(*asked)
        self._tell = tell
        self._parts: list[bytes] = []
        self._timer: Timer | None = None

    def limit(self, timers: Timers, seconds: float) -> None:
        """The answer must have begun within that time."""
        if seconds < math.inf and not self.job.done:
            self._timer = timers.after(seconds, partial(self._give_up, seconds))

    def leave(self) -> None:
        self._stop_timer()
        super().leave()

    def _give_up(self, seconds: float) -> None:
        self.leave()
        self._tell(AnswerTimeout(seconds))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _on_piece(self, piece: JobReply) -> None:
        self._stop_timer()
        self._bytes += len(piece.body)
        self._parts.append(piece.body)
        if self._bytes > STREAM_BYTES:
            text = f"The handler streams more than {STREAM_BYTES} bytes, and the client takes one answer."
            self.job.finish(InternalServer(text))

    def _on_done(self, outcome: Outcome) -> None:
        self._stop_timer()
        self._measure(ok=isinstance(outcome, JobReply))
        if isinstance(outcome, TserveError):
            self._tell(outcome)
            return
        if self._parts:
            outcome = replace(outcome, body=b"".join((*self._parts, outcome.body)))
        self._tell(Answer(outcome, None, self.job.sequence))


class Inference:
    def __init__(
        self, registry: Registry, reconciler: Reconciler, timers: Timers, metrics: Metrics | None = None
    ) -> None:
        self._registry = registry
        self._reconciler = reconciler
        self._timers = timers
        self._metrics = metrics or Metrics()

    def exists(self, name: str, version: str | None) -> None:
        """Raises ModelNotFound, ModelVersionNotFound."""
        self._registry.find(name, version)

    def is_stateful(self, name: str, version: str | None) -> bool:
        """Whether requests belong to sequences.  Raises ModelNotFound, ModelVersionNotFound."""
        pool = self._reconciler.pool(self._registry.find(name, version).key)
        return pool is not None and pool.stateful

    async def predict(self, name: str, version: str | None, request: JobRequest) -> Answer:
        """The handler's answer, or its beginning.

        Raises ModelNotFound, ModelVersionNotFound, ServiceUnavailable when no worker can take the request,
        AnswerTimeout when the version has a limit for that, and InternalServer for what became of it in the worker.
        Cancelling gives the request's place in the queue free; a batch already in a worker's hand runs on.
        """
        inbox = self._submit(_Inbox, name, version, request)
        limit_s = inbox.pool.client_timeout_s
        first: JobReply | None = None
        try:
            with trio.move_on_after(limit_s):
                first = await inbox.next()
        finally:
            if first is None:
                inbox.leave()
        if first is None:
            raise AnswerTimeout(limit_s)
        return Answer(first, Stream(inbox) if inbox.more else None, inbox.job.sequence)

    def begin(
        self, name: str, version: str | None, request: JobRequest, tell: Callable[[Answer | TserveError], None]
    ) -> Callable[[], None]:
        """As `predict`, without a task, for clients that take one answer: the parts of a streamed one are joined.

        `tell` is called once, perhaps before this returns, with the answer or with what `predict` raises for one that
        never comes; InternalServer stands for more than STREAM_BYTES of a stream.  What is returned is to be called
        when nobody waits any more.  Raises what `predict` raises at once.
        """
        whole = self._submit(partial(_Whole, tell), name, version, request)
        whole.limit(self._timers, whole.pool.client_timeout_s)
        return whole.leave

    async def predict_whole(self, name: str, version: str | None, request: JobRequest) -> Answer:
        """As `begin`, for a task that waits."""
        outcome: Answer | TserveError = await told(partial(self.begin, name, version, request))
        if isinstance(outcome, TserveError):
            raise outcome
        return outcome

    def _submit(self, make: Callable[..., A], name: str, version: str | None, request: JobRequest) -> A:
        """Queue a request; one of a stateful version gets its sequence's id.

        Raises ModelNotFound, ModelVersionNotFound, ServiceUnavailable.
        """
        key = self._registry.find(name, version).key
        pool = self._reconciler.pool(key)
        purpose = _purpose(request)
        if purpose is not Purpose.DESCRIBE:
            self._metrics.prediction_asked(name, version)
        sequence = ""
        try:
            if pool is None:
                raise NoCapacity("no_worker")
            if pool.stateful and purpose is not Purpose.DESCRIBE:
                request, sequence = _in_sequence(request, pool.sequence_headers)
            asked = make(pool, request, version, purpose, sequence, self._metrics)
            pool.submit(asked.job)
        except NoCapacity as e:
            self._metrics.request_refused((key.name, key.version), e.reason)
            raise ServiceUnavailable.no_worker(name, version, cause=e.cause()) from None
        return asked

    async def describe(self, name: str, version: str | None, request: JobRequest) -> JobReply:
        """What the handler says of itself (spec/management.md section 6.1).

        Raises as `predict` does, with a sentence of its own when no worker can take the request.
        """
        headers = {key: value for key, value in request.headers.items() if key.lower() != "describe"}
        asked = replace(request, headers={**headers, "describe": "True"})
        try:
            answer = await self.predict_whole(name, version, asked)
        except ServiceUnavailable as e:
            raise ServiceUnavailable.no_worker_to_describe(name, cause=e.cause) from None
        return answer.first


def _purpose(request: JobRequest) -> Purpose:
    """What handlers look at, too (spec/inference.md sections 1.2 and 13)."""
    if request.headers.get("describe") == "True":
        return Purpose.DESCRIBE
    return Purpose.EXPLAIN if request.headers.get("explain") == "True" else Purpose.PREDICT


def _in_sequence(request: JobRequest, names: Sequence[str]) -> tuple[JobRequest, str]:
    """The request with the id of its sequence under the name that handlers ask for; without one it begins its own."""
    id_name, start_name, _ = names
    sequence = _header(request, id_name)
    added = {id_name: sequence}
    if not sequence:
        sequence = f"ts-seq-{uuid.uuid4()}"
        added = {id_name: sequence, start_name: "true"}
    return replace(request, headers={**request.headers, **added}), sequence


def _header(request: JobRequest, name: str) -> str:
    return next((value for key, value in request.headers.items() if key.lower() == name.lower()), "")
