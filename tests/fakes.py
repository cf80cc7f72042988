"""Fakes at the two seams of the server.  A contract test holds each to the real part."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import trio

from tserve.domain import history
from tserve.domain.actor import Actor
from tserve.domain.cursors import Cursor, token_of
from tserve.domain.history import Event, PastEvent
from tserve.domain.plan import PoolSpec, WorkerSpec
from tserve.domain.registry import Contents, Registry
from tserve.domain.versions import Archive, Key, Version
from tserve.domain.wire import (
    STREAM_NEXT,
    Frame,
    HandlerFailed,
    Input,
    JobReply,
    JobRequest,
    Kind,
    WireError,
    decode_batch,
    encode_reply,
)
from tserve.errors import InternalServer, TserveError
from tserve.runtime.jobs import Job, Outcome
from tserve.runtime.launcher import Exit, WorkerGone

LEAVE_GRACE_S = 2.0  # as long as tserve.runtime.worker gives
KILLED = 128 + signal.SIGKILL


class MemoryStore:
    """A `Store` that keeps nothing (tests/store/contract.py).

    `fails_with`: raised by each change while it is set; `loses_events_with`: likewise by writes of history only.
    `changes`: what was acknowledged, as (kind, key, address).
    """

    _EVENTS: ClassVar = {
        "add_version": "register",
        "replace_version": "scale",
        "set_default": "set_default",
        "remove_version": "unregister",
    }

    def __init__(self) -> None:
        self.fails_with: InternalServer | None = None
        self.changes: list[tuple[str, Key, str]] = []
        self.loses_events_with: InternalServer | None = None
        self._past: list[PastEvent] = []
        self._events_made = 0
        self._registry = Registry()
        self._cursors: dict[str, Cursor] = {}
        self._cursors_made = 0

    async def load(self) -> Contents:
        await trio.lowlevel.checkpoint()
        return Contents(
            versions=tuple(self._registry),
            defaults=tuple(version.key for version in self._registry.defaults()),
            archives=tuple(
                self._registry.archive(digest) for digest in sorted({version.digest for version in self._registry})
            ),
        )

    async def add_version(self, version: Version, archive: Archive, *, actor: Actor) -> int:
        await self._may_change()
        self._registry.check_free(version.key)
        self._registry.add(version, archive)
        return self._record("add_version", version.key, actor, None, _document(version))

    async def replace_version(self, version: Version, *, actor: Actor) -> int:
        await self._may_change()
        held = self._registry.find(version.key.name, version.key.version)
        self._registry.replace(replace(held, min_workers=version.min_workers, max_workers=version.max_workers))
        before, after = ({"min_workers": v.min_workers, "max_workers": v.max_workers} for v in (held, version))
        return self._record("replace_version", version.key, actor, before, after)

    async def set_default(self, key: Key, *, actor: Actor) -> int:
        await self._may_change()
        self._registry.find(key.name, key.version)
        before, after = ({"default_version": v} for v in (self._registry.find(key.name).key.version, key.version))
        self._registry.set_default(key)
        return self._record("set_default", key, actor, before, after)

    async def remove_version(self, key: Key, *, actor: Actor) -> int:
        await self._may_change()
        held = self._registry.find(key.name, key.version)
        self._registry.check_removable(key)
        self._registry.remove(key)
        return self._record("remove_version", key, actor, _document(held), None)

    async def load_cursors(self, *, now: float) -> list[Cursor]:
        await trio.lowlevel.checkpoint()
        return sorted((c for c in self._cursors.values() if c.expires_at > now), key=lambda c: c.token)

    async def put_cursor(self, after_name: str, *, now: float, expires_at: float, most: int) -> Cursor:
        await self._may_change()
        self._cursors = {name: cursor for name, cursor in self._cursors.items() if cursor.expires_at > now}
        held = self._cursors.get(after_name)
        if held is None:
            self._cursors_made += 1
            cursor = Cursor(token_of(self._cursors_made), after_name, expires_at)
        else:
            cursor = replace(held, expires_at=max(held.expires_at, expires_at))
        self._cursors[after_name] = cursor
        others = sorted((c for c in self._cursors.values() if c != cursor), key=lambda c: (c.expires_at, c.token))
        for dropped in others[: max(0, len(self._cursors) - most)]:
            del self._cursors[dropped.after_name]
        return cursor

    async def _may_change(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails_with is not None:
            raise self.fails_with

    def _record(
        self,
        kind: str,
        key: Key,
        actor: Actor,
        before: Mapping[str, object] | None,
        after: Mapping[str, object] | None,
    ) -> int:
        self.changes.append((kind, key, actor.address))
        self._add_event(Event(time.time(), self._EVENTS[kind], key, actor=actor), before, after)
        return len(self.changes)

    async def add_events(self, new: Sequence[Event]) -> None:
        await self._may_add_events()
        for event in new:
            self._add_event(event)

    async def prune_events(self, *, now: float) -> None:
        await self._may_add_events()
        self._prune(now)

    async def events(self, model: str, version: str | None, *, before: int | None, limit: int) -> list[PastEvent]:
        await trio.lowlevel.checkpoint()
        chosen = [
            past
            for past in reversed(self._past)
            if past.event.key.name == model
            and (version is None or past.event.key.version == version)
            and (before is None or past.number < before)
        ]
        return chosen[:limit]

    async def _may_add_events(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.loses_events_with is not None:
            raise self.loses_events_with

    def _add_event(
        self, event: Event, before: Mapping[str, object] | None = None, after: Mapping[str, object] | None = None
    ) -> None:
        self._events_made += 1
        self._past.append(PastEvent(self._events_made, event, before, after))
        if self._events_made % history.PRUNED_EVERY == 0:
            self._prune(event.at)

    def _prune(self, now: float) -> None:
        young = [past for past in self._past if past.event.at >= now - history.LIFE_S]
        self._past = _newest(young, history.MOST_OF_A_MODEL, history.MOST_EVENTS)
        tailed = _newest(
            [past for past in self._past if past.event.log_tail], history.MOST_TAILS_OF_A_MODEL, history.MOST_TAILS
        )
        keep = {past.number for past in tailed}
        self._past = [
            past
            if past.number in keep or not past.event.log_tail
            else replace(past, event=replace(past.event, log_tail=""))
            for past in self._past
        ]


def _document(version: Version) -> dict[str, object]:
    return {field.name: getattr(version, field.name) for field in fields(Version) if field.name != "key"}


def _newest(events: Sequence[PastEvent], most_of_a_model: int, most: int) -> list[PastEvent]:
    """The newest events of each model and of all, oldest first."""
    counts: Counter[str] = Counter()
    kept: list[PastEvent] = []
    for place, past in enumerate(reversed(events)):
        name = past.event.key.name
        counts[name] += 1
        if counts[name] <= most_of_a_model and place < most:
            kept.append(past)
    return kept[::-1]


@dataclass(frozen=True)
class Script:
    """What a fake worker does.  Times are seconds of the test's clock; `math.inf` is never.

    Batches are counted from 1, and so are the numbers that name one.
    """

    start_error: str | None = None  # no process can be started
    load_s: float = 0.0  # slow, or silent, on load
    load_report: Mapping[str, object] | None = None  # the load fails with this report, and the worker leaves
    load_dies: bool = False  # dies while it loads
    load_garbage: bool = False  # answers the load with what is no frame
    batch_s: float = 0.0  # slow, or silent, on a batch
    dies_on_batch: int | None = None
    deaf_on_batch: int | None = None  # hangs up, but does not end
    dies_before_batch: int | None = None  # dies when it is about to be sent that batch
    dies_after_batch: bool = False  # dies as soon as it has answered
    garbage_on_batch: int | None = None  # answers it with what is no frame
    dies_idle_s: float = math.inf  # dies when it has had no work for so long
    surplus_on_batch: int | None = None  # answers it twice
    off_on_batch: int | None = None  # answers it with another's number
    exit: int = 1  # the exit code of all these deaths
    answer: HandlerFailed | list[JobReply] | None = None  # to every batch; else an echo of each request's first input
    pieces: int = 0  # that it sends before each answer, `piece_s` apart
    piece_s: float = 0.0
    streams_on: bool = False  # also when nobody waits for it
    takes_its_time: bool = False  # as many seconds for a batch as its first input says, all at once
    rounds: int = 0  # a job's answers say that more follows until it has been in so many batches
    hangs_up_idle_s: float = math.inf  # closes its socket, and lives, when it has had no work for so long
    ignores_abort: bool = False
    processes: int = 1
    leave_s: float = 0.0  # time it takes to leave when it is asked to


class FakeWorker:
    """A `Worker` that is no process but a task in the launcher's block, which plays its script.

    `batches`: the inputs of each batch that reached it.  `killed`: ended by `kill`.
    """

    def __init__(self, pid: int, spec: WorkerSpec, script: Script, *, label: str) -> None:
        self.pid, self.spec, self.script, self.label = pid, spec, script, label
        self.exited = trio.Event()
        self.ailing = trio.Event()
        self.on_frame: Callable[[Frame], None] | None = None
        self.killed = False
        self.aborted = False
        self.loaded = False
        self.told: dict[str, Any] = {}  # the spec as it came with the load
        self._owed = 0
        self.batches: list[list[bytes]] = []
        self.gone: list[int] = []  # batches that nobody waits for any more, as it was told
        self._rounds: Counter[str] = Counter()
        self._exit = 0
        self._to_worker, self._inbox = trio.open_memory_channel[Frame](math.inf)
        self._outbox: deque[Frame | WireError] = deque()
        self._sent = trio.lowlevel.ParkingLot()
        self._hung_up = False
        self._life = trio.CancelScope(shield=True)

    async def send(self, frame: Frame) -> None:
        await trio.lowlevel.checkpoint()
        if frame.kind is Kind.BATCH and len(self.batches) + 1 == self.script.dies_before_batch:
            self.crash(self.script.exit)
            raise WorkerGone("hung up")
        if self.exited.is_set() or self._hung_up:
            raise WorkerGone("hung up")
        if frame.kind is Kind.GONE:
            self.gone.append(frame.id)
            return
        self._owed += 1
        self._to_worker.send_nowait(frame)

    async def receive(self) -> Frame:
        await trio.lowlevel.checkpoint()
        while not self._outbox:
            if self.exited.is_set() or self._hung_up:
                raise WorkerGone("hung up")
            await self._sent.park()
        if isinstance(self._outbox[0], WireError):  # it does not get better
            raise self._outbox[0]
        frame = self._outbox.popleft()
        assert isinstance(frame, Frame)
        if self.on_frame is not None:
            self.on_frame(frame)
        return frame

    def hang_up(self) -> None:
        self._hung_up = True
        self._to_worker.close()
        self._fall_ill()

    def _fall_ill(self) -> None:
        self.ailing.set()
        self._sent.unpark_all()

    def abort(self) -> None:
        if not self._life.cancel_called and not self.exited.is_set():
            self.aborted = True
            if not self.script.ignores_abort:
                self.crash(128 + signal.SIGABRT)

    def kill(self) -> None:
        if not self._life.cancel_called and not self.exited.is_set():
            self.killed = True
            self.crash(KILLED)

    def crash(self, code: int) -> None:
        """End now with an exit code, whatever the script says."""
        self._exit = code
        self._life.cancel()

    async def wait(self) -> Exit:
        await self.exited.wait()
        return Exit(self._exit, False if self.killed else None)

    def tail(self) -> str:
        return f"{'last words' if self.exited.is_set() else 'words'} of {self.label}\n"

    def memory(self) -> int:
        return 0 if self.exited.is_set() else 1 << 20

    async def processes(self, *, most: int) -> int:
        await trio.lowlevel.checkpoint()
        return min(most + 1, self.script.processes)

    async def play(self) -> None:
        """From the start of the process to its end."""
        try:
            with self._life:
                async with trio.open_nursery() as self._at_once:
                    self._exit = await self._work()
                    self._at_once.cancel_scope.cancel()
        finally:
            self.exited.set()
            self._fall_ill()

    async def _work(self) -> int:
        while True:
            frame = None
            with contextlib.suppress(trio.EndOfChannel), trio.move_on_after(self._idle_s()) as patience:
                frame = await self._inbox.receive()
            if patience.cancelled_caught and self.script.dies_idle_s > self.script.hangs_up_idle_s:
                self.hang_up()
                await trio.sleep_forever()
            if patience.cancelled_caught:
                return self.script.exit
            if frame is None:
                await trio.sleep(self.script.leave_s)
                return 0
            if frame.kind is Kind.BATCH and self.script.takes_its_time:
                self._at_once.start_soon(self._batch, frame)
                continue
            code = await (self._load(frame) if frame.kind is Kind.LOAD else self._batch(frame))
            if code is not None:
                return code

    def _idle_s(self) -> float:
        return min(self.script.dies_idle_s, self.script.hangs_up_idle_s) if self.loaded else math.inf

    async def _load(self, frame: Frame) -> int | None:
        self.told = frame.meta
        await trio.sleep(self.script.load_s)
        if self.script.load_dies:
            return self.script.exit
        if self.script.load_garbage:
            self._say(WireError("not a frame"))
            return None
        self.loaded = self.script.load_report is None
        self._say(Frame(Kind.LOADED, frame.id, {"ok": True, **(self.script.load_report or {})}))
        return None if self.loaded else 1

    async def _batch(self, frame: Frame) -> int | None:
        requests = decode_batch(frame)
        self.batches.append([_first_input(request) for request in requests])
        nth, first = len(self.batches), self.batches[-1][0]
        await trio.sleep(float(first) if self.script.takes_its_time else self.script.batch_s)
        if nth == self.script.dies_on_batch:
            return self.script.exit
        if nth == self.script.deaf_on_batch:
            self.hang_up()
            await trio.sleep_forever()
        if nth == self.script.garbage_on_batch:
            self._say(WireError("not a frame"))
            return None
        for piece in range(self.script.pieces):
            parts = [JobReply(200, "", {STREAM_NEXT: "true"}, b"%d|" % piece) for _ in requests]
            if frame.id in self.gone and not self.script.streams_on:
                self._say(encode_reply(frame.id, HandlerFailed(503, "Prediction failed", "nobody is there")))
                return None
            self._say(encode_reply(frame.id, parts, kind=Kind.PIECE))
            await trio.sleep(self.script.piece_s)
        echo = [JobReply(200, "", self._more(request), _first_input(request)) for request in requests]
        for _ in range(2 if nth == self.script.surplus_on_batch else 1):
            number = frame.id - (nth == self.script.off_on_batch)
            self._say(encode_reply(number, echo if self.script.answer is None else self.script.answer))
        return self.script.exit if self.script.dies_after_batch else None

    def _more(self, request: JobRequest) -> dict[str, str]:
        self._rounds[request.request_id] += 1
        if not self.script.rounds:
            return {}
        return {STREAM_NEXT: "true" if self._rounds[request.request_id] < self.script.rounds else "false"}

    def _say(self, frame: Frame | WireError) -> None:
        if isinstance(frame, Frame) and self._owed == 0:
            frame = WireError("a frame that nobody asked for")
        self._owed -= not (isinstance(frame, Frame) and frame.kind is Kind.PIECE)
        self._outbox.append(frame)
        if isinstance(frame, WireError):
            self.ailing.set()
        self._sent.unpark_all()


def _first_input(request: JobRequest) -> bytes:
    return request.inputs[0].value if request.inputs else b""


class FakeLauncher:
    """A `Launcher` of fake workers (tests/process/launcher_contract.py).

    Each launch takes the next of `scripts`, the last one again and again.  A script in `named` counts for the handler,
    or the label, of that name instead.  `workers`: all that were ever started, oldest first; `asked`: how often one was
    asked for.
    """

    def __init__(self, *scripts: Script, named: Mapping[str, Script] | None = None) -> None:
        self.workers: list[FakeWorker] = []
        self.asked = 0
        self._scripts = deque(scripts or [Script()])
        self._named = dict(named or {})

    @property
    def alive(self) -> list[FakeWorker]:
        return [worker for worker in self.workers if not worker.exited.is_set()]

    def play(self, *scripts: Script) -> None:
        """What the launches from now on take, whatever their names."""
        self._scripts, self._named = deque(scripts), {}

    @contextlib.asynccontextmanager
    async def launch(self, spec: WorkerSpec, *, label: str) -> AsyncIterator[FakeWorker]:
        script = self._script(spec.handler, label)
        self.asked += 1
        if script.start_error is not None:
            raise OSError(script.start_error)
        worker = FakeWorker(1000 + self.asked, spec, script, label=label)
        self.workers.append(worker)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.play)
            try:
                yield worker
            finally:
                at_once = trio.current_effective_deadline() == -math.inf
                worker.hang_up()
                with trio.CancelScope(shield=True):
                    with trio.move_on_after(0 if at_once else LEAVE_GRACE_S):
                        await worker.exited.wait()
                    worker.kill()
                    await worker.exited.wait()

    def _script(self, *names: str) -> Script:
        for name in names:
            if name in self._named:
                return self._named[name]
        return self._scripts.popleft() if len(self._scripts) > 1 else self._scripts[0]


def pool_spec(fewest: int = 1, most: int | None = None, **settings: Any) -> PoolSpec:
    """What tests want of the version m:1.0; `settings` are fields of PoolSpec."""
    worker = WorkerSpec("m", "model_dir", "handler.py", settings.get("batch_size", 1))
    return replace(PoolSpec(Key("m", "1.0"), worker, fewest, fewest if most is None else most), **settings)


class Asked(Job):
    """A job whose outcomes are kept.  `text` is its only input; `answered` is set with the first outcome."""

    __slots__ = ("answered", "at", "outcomes", "pieces", "text")

    def __init__(self, text: str = "", **fields: Any) -> None:
        request = JobRequest(f"id-{text}", {}, (Input("body", "", text.encode()),))
        super().__init__(request, self._keep, on_piece=self._keep_piece, **fields)
        self.text = text
        self.pieces: list[tuple[float, bytes]] = []
        self.outcomes: list[Outcome] = []
        self.at = math.nan  # the time of the first outcome
        self.answered = trio.Event()

    def _keep(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.at = trio.current_time()
        self.answered.set()

    def _keep_piece(self, piece: JobReply) -> None:
        self.pieces.append((trio.current_time(), piece.body))

    @property
    def outcome(self) -> Outcome:
        """The one outcome that a job has."""
        (outcome,) = self.outcomes
        return outcome

    @property
    def body(self) -> str:
        """The answer, which has to be a success."""
        assert isinstance(self.outcome, JobReply), self.outcome
        return self.outcome.body.decode()

    @property
    def error(self) -> TserveError:
        """The answer, which has to be an error."""
        assert isinstance(self.outcome, TserveError), self.outcome
        return self.outcome
