"""Workers as child processes: a fresh interpreter each, one socket pair, one pipe for what it prints.

The process leads its own session and group and dies with the server (tserve/child/main.py).  It is spawned from
the main thread: with a parent-death signal, a child of a pooled thread dies when that thread does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import BODY_LIMIT, Decoder, Frame, WireError
from tserve.runtime.launcher import Exit, WorkerGone

LEAVE_GRACE_S = 2.0  # a worker that was asked to leave is killed after this
OUTPUT_GRACE_S = 0.5  # what a dead worker's children keep open is read no longer than this
TAIL_BYTES = 64 << 10
_LINE_BYTES = 16 << 10  # a longer line is logged in pieces
_CHUNK = 1 << 18
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ROOT = str(Path(__file__).resolve().parents[2])
# Appended, not put first: nothing in the package's parent folder may hide what is installed.  -P keeps the
# working folder, a model's, out of the path until the worker puts it there itself.
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from tserve.child.main import main; main(sys.argv[1:])"
_log = logging.getLogger("tserve.model")


class SubprocessWorker:
    """See tserve.runtime.launcher.Worker."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: socket.socket, *, label: str, answer_limit: int
    ) -> None:
        self.pid = process.pid
        self.exited = trio.Event()
        self._ended = trio.Event()  # exited, and its output is read
        self._process = process
        self._channel = trio.socket.from_stdlib_socket(channel)
        self._decoder = Decoder(body_limit=answer_limit)
        self._frames: deque[Frame] = deque()
        self._reading = trio.CancelScope()
        self._tail = bytearray()
        self._label = label

    async def send(self, frame: Frame) -> None:
        view = memoryview(frame.encode())
        try:
            while view:
                view = view[await self._channel.send(view) :]
        except (OSError, trio.ClosedResourceError) as e:
            raise WorkerGone(str(e)) from e

    async def receive(self) -> Frame:
        while not self._frames:
            try:
                data = await self._read()
            except (OSError, trio.ClosedResourceError) as e:
                raise WorkerGone(str(e)) from e
            if not data:
                try:
                    self._decoder.end()
                except WireError as e:  # half a frame is what a death amid a frame leaves
                    raise WorkerGone(str(e)) from e
                raise WorkerGone("hung up")
            self._frames.extend(self._decoder.feed(data))
        return self._frames.popleft()

    async def _read(self) -> bytes:
        """Bytes from the worker, empty at its end, also when a child of it still holds the socket."""
        with trio.CancelScope() as self._reading:
            if self.exited.is_set():
                self._reading.cancel()
            return await self._channel.recv(_CHUNK)
        # The process is gone; what it wrote before is in the socket's buffer.
        try:
            return os.read(self._channel.fileno(), _CHUNK)
        except BlockingIOError:
            return b""

    def hang_up(self) -> None:
        self._channel.close()

    def kill(self) -> None:
        # Until it is reaped, in wait(), the leader's number cannot be given to another group.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> Exit:
        await self._ended.wait()
        code = self._process.returncode
        return Exit(code if code >= 0 else 128 - code)

    def tail(self) -> str:
        return self._tail.decode("utf-8", "replace")

    def memory(self) -> int:
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0

    async def follow(self, pidfd: int, output: int) -> None:
        """Reap the process when it ends, and end with it what is left of its group; copy its output till then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_output, output)
            await trio.lowlevel.wait_readable(pidfd)
            self.kill()
            self._process.wait()
            self.exited.set()
            self._reading.cancel()
            nursery.cancel_scope.deadline = trio.current_time() + OUTPUT_GRACE_S
        self._ended.set()

    async def _read_output(self, descriptor: int) -> None:
        """Copy the worker's output to the model log, line by line, and keep its tail."""
        line = b""
        try:
            async with trio.lowlevel.FdStream(descriptor) as pipe:
                async for chunk in pipe:
                    self._tail += chunk
                    del self._tail[:-TAIL_BYTES]
                    *lines, line = (line + chunk).split(b"\n")
                    if len(line) > _LINE_BYTES:
                        lines.append(line)
                        line = b""
                    for each in lines:
                        self._log_line(each)
        finally:
            if line:  # the last words may lack a newline
                self._log_line(line)

    def _log_line(self, line: bytes) -> None:
        _log.info("%s %s", self._label, line.decode("utf-8", "replace"))

    async def end(self) -> None:
        """Ask the worker to leave, then kill its group; bounded, and not to be cut short."""
        at_once = trio.current_effective_deadline() == float("-inf")
        self._channel.close()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(0 if at_once else LEAVE_GRACE_S):
                await self.exited.wait()
            self.kill()
            await self.exited.wait()


class SubprocessLauncher:
    """Starts every worker in a fresh interpreter (tserve.runtime.launcher.Launcher)."""

    @contextlib.asynccontextmanager
    async def launch(self, spec: WorkerSpec, *, label: str) -> AsyncIterator[SubprocessWorker]:
        process, pidfd, ours, output = self._spawn()
        # A worker keeps max_response_size per request, and says so in a few words where it has to refuse one.
        limit = min(BODY_LIMIT, spec.batch_size * (spec.max_response_size + 1024))
        worker = SubprocessWorker(process, ours, label=label, answer_limit=limit)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, worker, pidfd, output)
                try:
                    yield worker
                finally:
                    await worker.end()
        finally:
            os.close(pidfd)

    @staticmethod
    async def _follow(worker: SubprocessWorker, pidfd: int, output: int) -> None:
        # Goes on to the end of the process, which worker.end() brings about, whoever is cancelled.
        with trio.CancelScope(shield=True):
            await worker.follow(pidfd, output)

    @staticmethod
    def _spawn() -> tuple[subprocess.Popen[bytes], int, socket.socket, int]:
        """The process, its pidfd, our end of its socket and of its output.  Raises OSError and leaves nothing."""
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as given:
            ours, theirs = socket.socketpair()
            kept.enter_context(ours)
            given.enter_context(theirs)
            read_end, write_end = os.pipe()
            kept.callback(os.close, read_end)
            given.callback(os.close, write_end)
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, _ROOT, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
            kept.callback(process.wait)
            kept.callback(process.kill)
            pidfd = os.pidfd_open(process.pid)
            ours.setblocking(False)
            kept.pop_all()
        return process, pidfd, ours, read_end
