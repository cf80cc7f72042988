"""Fakes at the two seams of the server.  A contract test holds each to the real part."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

import trio

from tserve.domain.cursors import Cursor, token_of
from tserve.domain.plan import WorkerSpec
from tserve.domain.registry import Contents, Registry
from tserve.domain.versions import Archive, Key, Version
from tserve.domain.wire import BatchFailed, Frame, JobReply, JobRequest, Kind, WireError, decode_batch, encode_reply
from tserve.errors import InternalServer
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
    """What a fake worker does.  Times are seconds of the test's clock; `math.inf` is never."""

    start_error: OSError | None = None  # no process can be started
    load_s: float = 0.0  # slow, or silent, on load
    load_report: Mapping[str, object] | None = None  # the load fails with this report; the worker leaves
    load_exit: int | None = None  # dies while it loads
    load_garbage: bool = False  # answers the load with what is no frame
    batch_s: float = 0.0  # slow, or silent, on a batch
    dies_on_batch: int | None = None  # number of the batch, from 1, at which it dies
    dies_idle_s: float = math.inf  # dies so long after it was loaded
    exit: int = 1  # the exit code of these two deaths
    garbage_on_batch: int | None = None  # number of the batch, from 1, that it answers with what is no frame
    answer: BatchFailed | None = None  # the handler's answer to all; else an echo of each request's first input
    leave_s: float = 0.0  # time it takes to leave when asked to


class FakeWorker:
    """A `Worker` that is no process but a task of the launcher's block, which plays its script.

    `batches`: the requests of each batch that reached it.
    """

    def __init__(self, pid: int, spec: WorkerSpec, script: Script, *, label: str) -> None:
        self.pid, self.spec, self.script, self.label = pid, spec, script, label
        self.exited = trio.Event()
        self.loaded = False
        self.batches: list[list[JobRequest]] = []
        self.hung_up = False
        self._exit = 0
        self._inbox, self._frames = trio.open_memory_channel[Frame](math.inf)
        self._outbox: deque[Frame | WireError] = deque()
        self._sent = trio.lowlevel.ParkingLot()
        self._life = trio.CancelScope()

    async def send(self, frame: Frame) -> None:
        await trio.lowlevel.checkpoint()
        if self.exited.is_set() or self.hung_up:
            raise WorkerGone("hung up")
        self._inbox.send_nowait(frame)

    async def receive(self) -> Frame:
        await trio.lowlevel.checkpoint()
        while not self._outbox:
            if self.exited.is_set() or self.hung_up:
                raise WorkerGone("hung up")
            await self._sent.park()
        frame = self._outbox.popleft()
        if isinstance(frame, WireError):
            raise frame
        return frame

    def hang_up(self) -> None:
        self.hung_up = True
        self._inbox.close()
        self._sent.unpark_all()

    def kill(self) -> None:
        if not self.exited.is_set():
            self._exit = KILLED
            self._life.cancel()

    async def wait(self) -> Exit:
        await self.exited.wait()
        return Exit(self._exit)

    def tail(self) -> str:
        return f"{self.label} has {len(self.batches)} batches\n"

    def memory(self) -> int:
        return 0 if self.exited.is_set() else 1 << 20

    def crash(self, code: int = 1) -> None:
        """End now, whatever the script says."""
        self._exit = code
        self._life.cancel()

    async def play(self) -> None:
        with self._life, trio.CancelScope(shield=True):
            ...


class FakeLauncher:
    """A `Launcher` of fake workers (tests/process/launcher_contract.py).

    Each launch takes the next of `scripts`; the last one is played for ever.  A script in `handlers` counts for the
    handler of that name instead.  `workers`: all that were ever started, oldest first.
    """

    def __init__(self, *scripts: Script, handlers: Mapping[str, Script] | None = None) -> None:
        self.workers: list[FakeWorker] = []
        self.failed_starts = 0
        self.scripts = list(scripts)
        self._handlers = handlers or {}
        self._pids = itertools.count(1000)
