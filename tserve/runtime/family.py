"""The server's descendants: which process groups it has to end, and what it adopts from workers that died.

The server is the reaper of everything below it, so that forked workers are its children and what a dead worker
leaves behind comes to it instead of to process 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import trio

from tserve.net.poller import Poller
from tserve.runtime.memory_kills import MemoryKills

UNKILLABLE_S = 5.0  # a process that hangs in the kernel is waited for no longer after SIGKILL
_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """Become the parent of every orphan below this process.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children_of(pid: int) -> list[int]:
    """The children of a process, adopted ones included; empty once it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_bytes().split())
    return found


def count_descendants(pids: Sequence[int], *, most: int) -> int:
    """Processes and those below them, ended ones that nobody has reaped included; counted just past `most` at most."""
    seen, waiting = len(pids), list(pids)
    while waiting and seen <= most:
        found = children_of(waiting.pop())
        seen += len(found)
        waiting += found
    return seen


class TakeMetrics(Protocol):
    def __call__(self, lines: Sequence[object], *, lost: int) -> None: ...


def _take_none(lines: Sequence[object], *, lost: int) -> None:
    """For those who have no use for them."""


class Family:
    """The process groups of the workers that run, by the pid of their leader.

    `watcher` is told of each group that comes and goes; it is what ends them when the server cannot (the zygote).
    `take_metrics` gets the lines of metrics that workers emit, and how many were lost on the way.
    `poller` watches their sockets.
    """

    def __init__(self, take_metrics: TakeMetrics | None = None, *, poller: Poller | None = None) -> None:
        self.take_metrics = take_metrics or _take_none
        self.poller = poller
        self.groups: set[int] = set()
        self.memory_kills = MemoryKills()
        self.counting = trio.CapacityLimiter(1)
        self.watcher: Callable[[str, int], None] | None = None
        self._unnamed = 0  # forks under way: children that are here, but not known by their pid yet

    # -- who belongs to it

    def add(self, pid: int, *, watched: bool = False) -> None:
        """`watched` says that the watcher knows."""
        self.groups.add(pid)
        self.memory_kills.forget()
        if self.watcher is not None and not watched:
            self.watcher("watch", pid)

    def remove(self, pid: int) -> None:
        """To be called while the leader's pid cannot be another's yet: before it is reaped."""
        self.groups.discard(pid)
        if self.watcher is not None:
            self.watcher("forget", pid)

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """A child is on its way here whose pid is not known: nothing is taken for an orphan meanwhile."""
        self._unnamed += 1
        try:
            yield
        finally:
            self._unnamed -= 1
            self.reap()

    @staticmethod
    def members(group: int) -> list[int]:
        """Adopted processes of a worker's group, dead ones included, the leader left out."""
        return [pid for pid in _children(lambda pid: os.getpgid(pid) == group) if pid != group]

    # -- orphans

    def orphans(self) -> list[int]:
        """Adopted processes: what workers started and did not outlive, in their groups or out of them.

        Workers lead sessions of their own, so that what they start is never in the server's, as its own children are.
        """
        if self._unnamed:
            return []
        session = os.getsid(0)
        return [pid for pid in _children(lambda pid: os.getsid(pid) != session) if pid not in self.groups]

    def reap(self) -> None:
        """Let those orphans go that have ended."""
        for pid in self.orphans():
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)

    @contextlib.asynccontextmanager
    async def looked_after(self) -> AsyncIterator[None]:
        """Reap orphans as they end; when the block, and with it the last worker, has ended, end those that are left."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._reap_as_they_end)
            try:
                yield
            finally:
                await self._end_orphans()
                nursery.cancel_scope.cancel()

    async def _reap_as_they_end(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGCHLD) as deaths:
            task_status.started()
            async for _ in deaths:
                self.reap()

    async def _end_orphans(self) -> None:
        """Until there are none: the end of one may bring its own children here."""
        with trio.CancelScope(shield=True), trio.move_on_after(UNKILLABLE_S):
            while found := self.orphans():
                for pid in found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.reap()
                await trio.sleep(0.002)


def _children(condition: Callable[[int], bool]) -> list[int]:
    """This process's children of which it is true; one may be gone before it is asked about."""
    found = []
    for pid in children_of(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            if condition(pid):
                found.append(pid)
    return found
