"""A child process that leads its own group: what it prints, how it ends, and that nothing of its group stays."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import trio

from tserve.runtime.family import UNKILLABLE_S, Family, count_descendants
from tserve.runtime.launcher import Exit

OUTPUT_GRACE_S = 0.5  # what a dead process's children keep open is read no longer than this
TAIL_BYTES = 64 << 10
LINES_AT_ONCE, LINES_PER_S = 10_000, 1_000  # of one process; the log of what prints more has gaps, its tail has none
METRICS_AT_ONCE, METRICS_PER_S = 2_000, 10_000  # of one process; what is over that is lost
_METRICS = b"[METRICS]"  # begins a line for the server (spec/inference.md section 12)
_LINE_BYTES = 16 << 10  # a longer line is logged in pieces
_LINES_PER_STEP = 100  # logged between two checkpoints
_PAGE = os.sysconf("SC_PAGE_SIZE")


class ChildProcess:
    """Owns the pidfd and the read end of the output; `follow` must run until it returns.

    `exited` is set as soon as the leader has ended; `wait` returns once its output is read, its group is gone and it
    is reaped.  `grace_s` is what the rest of its group gets between SIGTERM and SIGKILL.
    """

    def __init__(
        self, pid: int, pidfd: int, output: int, *, label: str, log: logging.Logger, family: Family, grace_s: float
    ) -> None:
        self.pid = pid
        self.exited = trio.Event()
        self._pidfd = pidfd
        self._output = output
        self._label = label
        self._log = log
        self._family = family
        self._grace_s = grace_s
        self._tail = bytearray()
        self._line = b""  # the last one, of which more may come
        self._swallowing = False  # it is one with a metric, too long to be kept
        self._exit: Exit | None = None
        self._killed = False  # by this server
        self._reaped = False
        self._living = trio.CancelScope()
        self._ended = trio.Event()
        self._lines = float(LINES_AT_ONCE)  # that may be logged now
        self._counted_at = trio.current_time()
        self._left_out = 0
        self._metrics = float(METRICS_AT_ONCE)  # that may be taken now
        self._metrics_counted_at = self._counted_at

    def signal_group(self, number: int) -> None:
        # Until it is reaped the leader's number cannot be given to another group.
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        if not self._killed:
            self._killed = True
            self._living.deadline = trio.current_time() + UNKILLABLE_S
        self.signal_group(signal.SIGKILL)

    def abort(self) -> None:
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGABRT)

    async def wait(self) -> Exit:
        await self._ended.wait()
        return self._exit or Exit(255)  # a bug in here, which its own task has raised

    def tail(self) -> str:
        last = b"" if self._line.startswith(_METRICS) else self._line
        return bytes(self._tail + last)[-TAIL_BYTES:].decode("utf-8", "replace")

    def memory(self) -> int:
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0

    async def processes(self, *, most: int) -> int:
        adopted = self._family.members(self.pid)
        count = partial(count_descendants, [self.pid, *adopted], most=most)
        return await trio.to_thread.run_sync(count, limiter=self._family.counting)

    async def follow(self) -> None:
        """Copy the output, see the end, end with it what is left of the group, and reap; not to be cut short.

        A process that SIGKILL does not end is left to the family after a while: the kernel holds it.
        """
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read_output)
                    with self._living:
                        await trio.lowlevel.wait_readable(self._pidfd)
                    self._exit = self._read_exit()
                    self.exited.set()
                    self.left()
                    await self._end_group()
                    nursery.cancel_scope.deadline = trio.current_time() + OUTPUT_GRACE_S
                self._family.remove(self.pid)
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222
            finally:
                self._reaped = True
                os.close(self._pidfd)
                self._ended.set()

    def _read_exit(self) -> Exit:
        """Without reaping: until that is done the number of its group is its own."""
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is None:
            self._log.error("%s, pid %d, does not end after SIGKILL", self._label, self.pid)
            return Exit(128 + signal.SIGKILL, out_of_memory=False, unkillable=True)
        if ended.si_code == os.CLD_EXITED:
            return Exit(ended.si_status)
        killed = ended.si_status == signal.SIGKILL and not self._killed
        return Exit(128 + ended.si_status, self._family.memory_kills.explain() if killed else False)

    def left(self) -> None:
        """Called once the leader has ended, before its group is."""

    async def _end_group(self) -> None:
        """SIGTERM, grace, SIGKILL for what the leader started; its zombie keeps the group's number meanwhile."""
        if not self._killed and self._family.members(self.pid):
            self.signal_group(signal.SIGTERM)
            with trio.move_on_after(self._grace_s):
                await self._members_gone()
        self.kill()
        with trio.move_on_after(UNKILLABLE_S):
            await self._members_gone()

    async def _members_gone(self) -> None:
        while members := self._family.members(self.pid):
            with _watched(members[0]) as pidfd:
                await trio.lowlevel.wait_readable(pidfd)
            with contextlib.suppress(ChildProcessError):  # the family may have been quicker
                os.waitid(os.P_PID, members[0], os.WEXITED | os.WNOHANG)  # noqa: ASYNC222

    async def _read_output(self) -> None:
        """Copy the output to the log, line by line, and keep its tail; lines with metrics are not for people."""
        try:
            async with trio.lowlevel.FdStream(self._output) as pipe:
                async for chunk in pipe:
                    *lines, self._line = (self._line + chunk).split(b"\n")
                    if lines and self._swallowing:
                        del lines[0]
                        self._swallowing = False
                    lines = self._without_metrics(lines)
                    self._tail += b"".join(line + b"\n" for line in lines)
                    if self._swallowing:
                        self._line = b""
                    elif len(self._line) <= _LINE_BYTES:
                        pass
                    elif self._line.startswith(_METRICS):
                        self._swallowing, self._line = True, b""
                        self.take_metrics([], lost=1)
                    else:
                        self._tail += self._line
                        lines.append(self._line)
                        self._line = b""
                    del self._tail[:-TAIL_BYTES]
                    await self._log_lines(lines)
        finally:
            self._log_gap()
            if self._line and not self._line.startswith(_METRICS):  # the last words may lack a newline
                self._log_line(self._line)

    def _without_metrics(self, lines: list[bytes]) -> list[bytes]:
        """Processes that a handler has forked emit metrics as lines of output; so does who prints them by hand."""
        metrics = [line for line in lines if line.startswith(_METRICS)]
        if not metrics:
            return lines
        self.take_metrics([line[len(_METRICS) :].decode("utf-8", "replace") for line in metrics])
        return [line for line in lines if not line.startswith(_METRICS)]

    def take_metrics(self, lines: Sequence[object], lost: int = 0) -> None:
        """Hand on lines of metrics, as many as one process may have: reading them costs the server time."""
        now = trio.current_time()
        room = self._metrics + METRICS_PER_S * (now - self._metrics_counted_at)
        self._metrics, self._metrics_counted_at = min(METRICS_AT_ONCE, room), now
        taken = lines[: int(self._metrics)]
        self._metrics -= len(taken)
        self._family.take_metrics(taken, lost=lost + len(lines) - len(taken))

    async def _log_lines(self, lines: list[bytes]) -> None:
        """No more of them than one process may have: whoever prints without end must not keep the others waiting."""
        now = trio.current_time()
        self._lines = min(LINES_AT_ONCE, self._lines + LINES_PER_S * (now - self._counted_at))
        self._counted_at = now
        allowed = int(self._lines)
        if allowed and self._left_out:
            self._log_gap()
        for number, line in enumerate(lines[:allowed]):
            self._log_line(line)
            if number % _LINES_PER_STEP == _LINES_PER_STEP - 1:
                await trio.lowlevel.checkpoint()
        self._lines -= min(allowed, len(lines))
        self._left_out += len(lines[allowed:])

    def _log_gap(self) -> None:
        if self._left_out:
            self._log.warning("%s %d lines left out here", self._label, self._left_out)
            self._left_out = 0

    def _log_line(self, line: bytes) -> None:
        self._log.info("%s %s", self._label, line.decode("utf-8", "replace"))


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[int]:
    """Only for a child of this process that nobody has reaped."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)
