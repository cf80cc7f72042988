"""Workers forked from the zygote (tserve/child/zygote.py): torch is imported once, and its pages are shared.

The zygote is started again when it dies; running workers are the server's own children and live on.  Where it
cannot be had, and for versions with an interpreter of their own, workers start in fresh interpreters.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import trio

from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import CONTROL_BYTES
from tserve.runtime.family import Family
from tserve.runtime.fresh import FreshLauncher, spawn
from tserve.runtime.process import ChildProcess
from tserve.runtime.worker import ProcessWorker, Wires, living, wires

START_LIMIT_S = 120.0  # torch on a cold disk
FORK_LIMIT_S = 10.0
RETRY_S, RETRY_LIMIT_S = 10.0, 600.0  # between tries to start a zygote that does not come up; it doubles
_log = logging.getLogger("tserve.runtime")


class ZygoteGone(Exception):
    """The zygote ended before it had forked."""


class ZygoteLauncher:
    """Forks workers from a zygote (tserve.runtime.launcher.Launcher).  `run` must be running."""

    def __init__(self, family: Family, fresh: FreshLauncher) -> None:
        self._family = family
        self._fresh = fresh
        self._zygote: _Zygote | None = None
        self._broken = False  # the last one did not come up
        self._wanted = trio.Event()
        self._changed = trio.Event()

    @property
    def pid(self) -> int | None:
        """Of the zygote, once it can fork."""
        return self._zygote.process.pid if self._zygote is not None else None

    def warm(self) -> None:
        """Have a zygote from now on, rather than from the first launch on."""
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a zygote from when it is wanted, until cancelled."""
        task_status.started()
        await self._wanted.wait()
        pause_s = RETRY_S
        while True:
            if await self._one_zygote():
                pause_s = RETRY_S
                self._become(None)
            else:
                self._become(None, broken=True)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_LIMIT_S)

    async def _one_zygote(self) -> bool:
        """From the start of a zygote to its end: whether it came up."""
        try:
            async with _zygote(self._family) as zygote:
                came_up = await zygote.ready()
                if came_up:
                    self._become(zygote)
                    await zygote.process.exited.wait()
        except OSError as e:
            _log.warning("no zygote could be started: %s", e)
            return False
        if came_up:
            _log.warning("the zygote ended by %s and is started again", await zygote.process.wait())
        else:
            _log.warning("the zygote did not come up; workers start in fresh interpreters: %s", zygote.process.tail())
        return came_up

    def _become(self, zygote: _Zygote | None, *, broken: bool = False) -> None:
        self._zygote, self._broken = zygote, broken
        self._changed.set()
        self._changed = trio.Event()

    @contextlib.asynccontextmanager
    async def launch(self, spec: WorkerSpec, *, label: str) -> AsyncIterator[ProcessWorker]:
        worker = None if spec.interpreter is not None else await self._fork(spec, label)
        if worker is None:
            async with self._fresh.launch(spec, label=label) as fresh:
                yield fresh
        else:
            async with living(worker):
                yield worker

    async def _fork(self, spec: WorkerSpec, label: str) -> ProcessWorker | None:
        """A worker from the zygote that there is or that is about to be; None when there is none to be had."""
        self.warm()
        while not self._broken:
            if self._zygote is None:
                await self._changed.wait()
                continue
            with contextlib.suppress(ZygoteGone), wires() as ends:
                pid, pidfd = await self._zygote.fork(ends)
                return ProcessWorker(pid, pidfd, ends, spec, label=label, family=self._family)
            await trio.lowlevel.checkpoint()
        return None


class _Zygote:
    """A running zygote, and the conversation with it."""

    def __init__(self, process: ChildProcess, control: socket.socket, family: Family) -> None:
        self.process = process
        self._control = control
        self._channel = trio.socket.from_stdlib_socket(control)
        self._family = family
        self._turn = trio.Lock()
        self._number = 0

    async def ready(self) -> bool:
        """Wait until it has imported what workers need."""
        with trio.move_on_after(START_LIMIT_S):
            try:
                message, _ = await self._receive()
            except ZygoteGone:
                return False
            if message["threads"] != 1:
                _log.warning("the zygote has %d threads; it must have one to be forked", message["threads"])
                return False
            _log.info("the zygote is ready, pid %d, after %s s", self.process.pid, message["took_s"])
            self._family.watcher = self._tell
            for group in self._family.groups:
                self._tell("watch", group)
            return True
        return False

    def _tell(self, what: str, group: int) -> None:
        """Best effort: a zygote that does not read is about to be replaced."""
        with contextlib.suppress(OSError):
            self._control.send(json.dumps({what: group}).encode())

    async def fork(self, ends: Wires) -> tuple[int, int]:
        """The pid and pidfd of a worker on those wires.  Raises OSError, ZygoteGone."""
        async with self._turn:
            # A cancelled caller waits for the answer, too: nobody else would take in what was forked.
            with self._family.expecting(), trio.CancelScope(shield=True):
                with trio.move_on_after(FORK_LIMIT_S):
                    pid, pidfd = await self._ask(ends)
                    self._family.add(pid, watched=True)
                    return pid, pidfd
            self.process.kill()  # it hangs
            raise ZygoteGone

    async def _ask(self, ends: Wires) -> tuple[int, int]:
        self._number += 1
        given = array.array("i", [ends.theirs.fileno(), ends.write_end]).tobytes()
        try:
            await self._channel.sendmsg(
                [json.dumps({"fork": self._number}).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)]
            )
        except OSError as e:
            raise ZygoteGone from e
        message, descriptors = await self._receive()
        if "error" in message:
            raise OSError(message["error"])
        if not descriptors:  # it is there, but hung up on; the family reaps it
            raise OSError(errno.EMFILE, "no descriptor left for the worker's pidfd")
        return int(message["pid"]), descriptors[0]

    async def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            data, ancillary, *_ = await self._channel.recvmsg(
                CONTROL_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
        except OSError as e:
            raise ZygoteGone from e
        if not data:
            raise ZygoteGone
        descriptors = array.array("i")
        for _, _, payload in ancillary:
            descriptors.frombytes(payload)
        return json.loads(data), list(descriptors)


@contextlib.asynccontextmanager
async def _zygote(family: Family) -> AsyncIterator[_Zygote]:
    """Start a zygote, and end it with the block.  Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            ours.setblocking(False)
            read_end, write_end = os.pipe()
            try:
                given = theirs.fileno()
                arguments = [str(given), str(os.getpid())]
                pid, pidfd = spawn("zygote", arguments, output=write_end, given=given, interpreter=None, session=False)
            except OSError:
                os.close(read_end)
                raise
            finally:
                os.close(write_end)
        log = logging.getLogger("tserve.zygote")
        process = ChildProcess(pid, pidfd, read_end, label="zygote", log=log, family=family, grace_s=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.follow)
            try:
                yield _Zygote(process, ours, family)
            finally:
                family.watcher = None
                process.kill()
