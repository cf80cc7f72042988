"""A worker as a child process with one socket to talk over (tserve.runtime.launcher.Worker)."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import trio

from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import BODY_LIMIT, METRICS, METRICS_LOST, Decoder, Frame, Kind, WireError
from tserve.net.poller import Poller
from tserve.runtime.family import Family
from tserve.runtime.launcher import WorkerGone
from tserve.runtime.process import ChildProcess

_CHUNK = 1 << 18
_log = logging.getLogger("tserve.model")


@dataclass(frozen=True, slots=True)
class Wires:
    """Both ends of what connects a worker: its socket, and the pipe of what it prints."""

    ours: socket.socket
    theirs: socket.socket
    read_end: int
    write_end: int


@contextlib.contextmanager
def wires() -> Iterator[Wires]:
    """The worker's ends are closed at the end of the block, ours only when it fails.  Raises OSError."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        near, far = socket.socketpair()
        ours.enter_context(near)
        theirs.enter_context(far)
        read_end, write_end = os.pipe()
        ours.callback(os.close, read_end)
        theirs.callback(os.close, write_end)
        near.setblocking(False)
        yield Wires(near, far, read_end, write_end)
        ours.pop_all()


class ProcessWorker(ChildProcess):
    """Its socket is watched all the time, so that a worker which leaves or says what it should not is noticed."""

    def __init__(self, pid: int, pidfd: int, wires: Wires, spec: WorkerSpec, *, label: str, family: Family) -> None:
        output = wires.read_end
        super().__init__(pid, pidfd, output, label=label, log=_log, family=family, grace_s=spec.kill_grace_s)
        self.ailing = trio.Event()
        self.on_frame: Callable[[Frame], None] | None = None
        self._channel = wires.ours
        # A worker keeps max_response_size per request; a stateful version's batches can have twice their size.
        self._decoder = Decoder(body_limit=min(BODY_LIMIT, 2 * spec.batch_size * (spec.max_response_size + 1024)))
        self._owed = 0  # frames that the worker has been asked for and has not sent
        self._frames: deque[Frame] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._over: WorkerGone | WireError | None = None
        self._poller: Poller | None = None

    async def send(self, frame: Frame) -> None:
        """Not through a socket of Trio, which gives way to all other tasks: the wait for the answer does that."""
        view = memoryview(frame.encode())
        self._owed += frame.kind is not Kind.GONE  # every other kind is answered by one frame, pieces aside
        try:
            while view:
                try:
                    view = view[self._channel.send(view) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._channel)
        except (OSError, trio.ClosedResourceError) as e:
            raise WorkerGone(str(e)) from e

    async def receive(self) -> Frame:
        while not self._frames:
            if self._over is not None:
                raise type(self._over)(str(self._over))
            await self._arrived.park()
        return self._frames.popleft()

    def hang_up(self) -> None:
        if self._channel.fileno() >= 0:
            self._fall_silent(WorkerGone("the server hung up"))
            trio.lowlevel.notify_closing(self._channel)  # for who waits to send
            self._channel.close()

    def listen(self, poller: Poller) -> None:
        """Take in frames from now on, until the worker has no more to say."""
        self._poller = poller
        poller.watch(self._channel.fileno(), self)

    def on_ready(self, events: int) -> None:
        """For the Poller."""
        try:
            data = self._channel.recv(_CHUNK)
            if data:
                self._take(data)
            else:
                self._fall_silent()
        except BlockingIOError:
            pass
        except WireError as e:
            self._fall_silent(e)
        except OSError as e:
            self._fall_silent(WorkerGone(str(e)))

    def let_go(self) -> None:
        self.hang_up()

    def _fall_silent(self, why: WorkerGone | WireError | None = None) -> None:
        """Nothing more will come.  The socket stays open until `hang_up`."""
        if self._over is not None:
            return
        if why is None:
            why = WorkerGone("hung up")
            try:
                self._decoder.end()
            except WireError as e:  # half a frame is what a death amid a frame leaves
                why = WorkerGone(str(e))
        self._over = why
        if self._poller is not None and self._channel.fileno() >= 0:
            self._poller.forget(self._channel.fileno())
        self.ailing.set()
        self._arrived.unpark_all()

    def _take(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if METRICS in frame.meta:
                self._take_metrics(frame.meta)
            if frame.kind is Kind.METRICS:
                continue
            if self._owed <= 0:
                raise WireError(f"a frame that nobody asked for, {frame.kind.name} {frame.id}")
            self._owed -= frame.kind is not Kind.PIECE
            if self.on_frame is not None:
                self.on_frame(frame)
            self._frames.append(frame)
            self._arrived.unpark_all()

    def _take_metrics(self, meta: dict[str, Any]) -> None:
        lines, lost = meta[METRICS], meta.get(METRICS_LOST, 0)
        if isinstance(lines, list) and isinstance(lost, int):
            self.take_metrics(lines, lost)

    def left(self) -> None:
        """What it wrote before its end is in the socket's buffer; what its children write is not waited for."""
        try:
            while self._over is None and (data := self._channel.recv(_CHUNK)):
                self._take(data)
        except WireError as e:
            self._fall_silent(e)
        except OSError:  # nothing more is there
            pass
        self._fall_silent()

    async def end(self) -> None:
        """Ask the worker to leave, then end its group; bounded, and not to be cut short."""
        at_once = trio.current_effective_deadline() == float("-inf")
        self.hang_up()
        with trio.CancelScope(shield=True):
            if not at_once:
                with trio.move_on_after(self._grace_s / 2):
                    await self.exited.wait()
                if not self.exited.is_set():
                    self.signal_group(signal.SIGTERM)
                with trio.move_on_after(self._grace_s / 2):
                    await self.exited.wait()
            if at_once or not self.exited.is_set():
                self.kill()
            await self.wait()


@contextlib.asynccontextmanager
async def living(worker: ProcessWorker, poller: Poller | None) -> AsyncIterator[ProcessWorker]:
    """Own a worker's tasks; leaving the block ends it and all of its group.

    Without a poller that watches all of them its socket has one of its own.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.follow)
        if poller is None:
            poller = Poller()
            nursery.start_soon(poller.run)
        worker.listen(poller)
        try:
            yield worker
        finally:
            await worker.end()
            nursery.cancel_scope.cancel()
