"""Fakes at the two seams of the server.  A contract test holds each to the real part."""

from __future__ import annotations

import contextlib
import math
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import trio

from tserve.domain.cursors import Cursor, token_of
from tserve.domain.plan import PoolSpec, WorkerSpec
from tserve.domain.registry import Contents, Registry
from tserve.domain.versions import Archive, Key, Version
from tserve.domain.wire import (
    BatchFailed,
    Frame,
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

    `fails_with`: raised by each change while it is set.  `changes`: what was acknowledged, as (kind, key, actor).
    """

    def __init__(self) -> None:
        self.fails_with: InternalServer | None = None
        self.changes: list[tuple[str, Key, str]] = []
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

    async def add_version(self, version: Version, archive: Archive, *, actor: str) -> int:
        await self._may_change()
        self._registry.check_free(version.key)
        self._registry.add(version, archive)
        return self._record("add_version", version.key, actor)

    async def replace_version(self, version: Version, *, actor: str) -> int:
        await self._may_change()
        held = self._registry.find(version.key.name, version.key.version)
        self._registry.replace(replace(held, min_workers=version.min_workers, max_workers=version.max_workers))
        return self._record("replace_version", version.key, actor)

    async def set_default(self, key: Key, *, actor: str) -> int:
        await self._may_change()
        self._registry.find(key.name, key.version)
        self._registry.set_default(key)
        return self._record("set_default", key, actor)

    async def remove_version(self, key: Key, *, actor: str) -> int:
        await self._may_change()
        self._registry.find(key.name, key.version)
        self._registry.check_removable(key)
        self._registry.remove(key)
        return self._record("remove_version", key, actor)

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

    def _record(self, kind: str, key: Key, actor: str) -> int:
        self.changes.append((kind, key, actor))
        return len(self.changes)


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
    exit: int = 1  # the exit code of all these deaths
    answer: BatchFailed | list[JobReply] | None = None  # to every batch; else an echo of each request's first input
    leave_s: float = 0.0  # time it takes to leave when it is asked to


class FakeWorker:
    """A `Worker` that is no process but a task in the launcher's block, which plays its script.

    `batches`: the inputs of each batch that reached it.  `killed`: ended by `kill`.
    """

    def __init__(self, pid: int, spec: WorkerSpec, script: Script, *, label: str) -> None:
        self.pid, self.spec, self.script, self.label = pid, spec, script, label
        self.exited = trio.Event()
        self.killed = False
        self.loaded = False
        self.batches: list[list[bytes]] = []
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
        self._to_worker.send_nowait(frame)

    async def receive(self) -> Frame:
        await trio.lowlevel.checkpoint()
        while not self._outbox:
            if self.exited.is_set() or self._hung_up:
                raise WorkerGone("hung up")
            await self._sent.park()
        frame = self._outbox.popleft()
        if isinstance(frame, WireError):
            raise frame
        return frame

    def hang_up(self) -> None:
        self._hung_up = True
        self._to_worker.close()
        self._sent.unpark_all()

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
        return Exit(self._exit)

    def tail(self) -> str:
        return f"{'last words' if self.exited.is_set() else 'words'} of {self.label}\n"

    def memory(self) -> int:
        return 0 if self.exited.is_set() else 1 << 20

    async def play(self) -> None:
        """From the start of the process to its end."""
        try:
            with self._life:
                self._exit = await self._work()
        finally:
            self.exited.set()
            self._sent.unpark_all()

    async def _work(self) -> int:
        while True:
            frame = None
            with contextlib.suppress(trio.EndOfChannel), trio.move_on_after(self._idle_s()) as patience:
                frame = await self._inbox.receive()
            if patience.cancelled_caught:
                return self.script.exit
            if frame is None:
                await trio.sleep(self.script.leave_s)
                return 0
            code = await (self._load(frame) if frame.kind is Kind.LOAD else self._batch(frame))
            if code is not None:
                return code

    def _idle_s(self) -> float:
        return self.script.dies_idle_s if self.loaded else math.inf

    async def _load(self, frame: Frame) -> int | None:
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
        await trio.sleep(self.script.batch_s)
        if len(self.batches) == self.script.dies_on_batch:
            return self.script.exit
        if len(self.batches) == self.script.deaf_on_batch:
            self.hang_up()
            await trio.sleep_forever()
        if len(self.batches) == self.script.garbage_on_batch:
            self._say(WireError("not a frame"))
            return None
        echo = [JobReply(200, "", {}, _first_input(request)) for request in requests]
        for _ in range(2 if len(self.batches) == self.script.surplus_on_batch else 1):
            self._say(encode_reply(frame.id, echo if self.script.answer is None else self.script.answer))
        return self.script.exit if self.script.dies_after_batch else None

    def _say(self, frame: Frame | WireError) -> None:
        self._outbox.append(frame)
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

    __slots__ = ("answered", "at", "outcomes", "text")

    def __init__(self, text: str = "", *, asked_version: str | None = None) -> None:
        request = JobRequest(f"id-{text}", {}, (Input("body", "", text.encode()),))
        super().__init__(request, self._keep, asked_version=asked_version)
        self.text = text
        self.outcomes: list[Outcome] = []
        self.at = math.nan  # the time of the first outcome
        self.answered = trio.Event()

    def _keep(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.at = trio.current_time()
        self.answered.set()

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
