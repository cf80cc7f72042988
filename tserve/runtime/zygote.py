"""Workers forked from the zygote (tserve/child/zygote.py): torch is imported once, and its pages are shared.

The zygote is started again when it dies; running workers are the server's own children and live on.  Where it
cannot be had, and for versions with an interpreter or an environment of their own, workers start in fresh
interpreters.  One that imports nothing and forks nothing still ends the groups of the workers when the server dies.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import trio

from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import CONTROL_BYTES
from tserve.runtime.family import Family
from tserve.runtime.fresh import FreshLauncher, environ_without, spawn
from tserve.runtime.process import ChildProcess
from tserve.runtime.worker import ProcessWorker, Wires, living, wires

START_LIMIT_S = 120.0  # torch on a cold disk
BARREN = 2  # so many zygotes in a row that came up and forked nothing: it is not for want of luck
FORK_LIMIT_S = 10.0
RETRY_S, RETRY_LIMIT_S = 10.0, 600.0  # between tries to start a zygote that does not come up; it doubles
_log = logging.getLogger("tserve.runtime")


class ZygoteGone(Exception):
    """The zygote ended before it had forked."""


class ZygoteLauncher:
    """Forks workers from a zygote (tserve.runtime.launcher.Launcher).  `run` must be running.

    `forks=False` has the zygote watch only; workers then start in fresh interpreters.  `hidden_env` names, as that of
    a WorkerSpec does, the variables that the zygote itself does not get: what it had, its workers would still show
    in /proc.  Workers that others are hidden from start in fresh interpreters.
    """

    def __init__(
        self, family: Family, fresh: FreshLauncher, *, forks: bool = True, hidden_env: tuple[str, ...] = ()
    ) -> None:
        self._family = family
        self._fresh = fresh
        self._forks = forks
        self._hidden_env = hidden_env
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
        pause_s, barren = RETRY_S, 0
        while True:
            forked = await self._one_zygote()
            barren = 0 if forked or not self._forks else barren + 1
            if forked is None or barren >= BARREN:
                _log.warning("workers start in fresh interpreters; the next try for a zygote is in %g s", pause_s)
                self._become(None, broken=True)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_LIMIT_S)
            else:
                pause_s = RETRY_S
            self._become(None)

    async def _one_zygote(self) -> int | None:
        """From the start of a zygote to its end: how many workers it forked, None when it did not come up."""
        try:
            duty = "fork" if self._forks else "watch"
            async with _zygote(self._family, duty, environ_without(self._hidden_env)) as zygote:
                came_up = await zygote.ready()
                if came_up:
                    self._become(zygote)
                    await zygote.process.exited.wait()
        except OSError as e:
            _log.warning("no zygote could be started: %s", e)
            return None
        end = await zygote.process.wait()
        if came_up:
            _log.warning("the zygote ended by %s, after %d forks", end, zygote.forked)
            return zygote.forked
        _log.warning("the zygote did not come up, it ended by %s: %s", end, zygote.process.tail())
        return None

    def _become(self, zygote: _Zygote | None, *, broken: bool = False) -> None:
        self._zygote, self._broken = zygote, broken
        self._changed.set()
        self._changed = trio.Event()

    @contextlib.asynccontextmanager
    async def launch(self, spec: WorkerSpec, *, label: str) -> AsyncIterator[ProcessWorker]:
        self.warm()
        own = not self._forks or spec.interpreter is not None or spec.hidden_env != self._hidden_env
        worker = None if own else await self._fork(spec, label)
        if worker is None:
            async with self._fresh.launch(spec, label=label) as fresh:
                yield fresh
        else:
            async with living(worker, self._family.poller):
                yield worker

    async def _fork(self, spec: WorkerSpec, label: str) -> ProcessWorker | None:
        """A worker from the zygote that there is or that is about to be; None when there is none to be had."""
        for _ in range(BARREN):
            zygote = await self._usable()
            if zygote is None:
                break
            with contextlib.suppress(ZygoteGone):
                async with zygote.turn:
                    with wires() as ends:  # not sooner: those that wait would hold descriptors
                        pid, pidfd = await zygote.fork(ends)
                        return ProcessWorker(pid, pidfd, ends, spec, label=label, family=self._family)
            await zygote.process.exited.wait()
        return None

    async def _usable(self) -> _Zygote | None:
        while not self._broken:
            if self._zygote is not None and not self._zygote.process.exited.is_set():
                return self._zygote
            await self._changed.wait()
        return None


class _Zygote:
    """A running zygote, and the conversation with it; `turn` is for one `fork` at a time."""

    def __init__(self, process: ChildProcess, control: socket.socket, family: Family) -> None:
        self.process = process
        self._control = control
        self._channel = trio.socket.from_stdlib_socket(control)
        self._family = family
        self._is_up = False
        self.turn = trio.Lock()
        self.forked = 0

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
            return await self._tell_all()
        return False

    async def _tell_all(self) -> bool:
        """The groups there are, now that it reads: what it was told before may have been more than a socket holds."""
        try:
            await self._channel.send(b'{"forget_all": true}')
            for group in list(self._family.groups):
                if group in self._family.groups:
                    await self._channel.send(json.dumps({"watch": group}).encode())
        except OSError:
            return False
        self._is_up = True
        return True

    def tell(self, what: str, group: int) -> None:
        try:
            self._control.send(json.dumps({what: group}).encode())
        except OSError:
            if self._is_up:
                self.process.kill()  # it does not read, or is gone; the next one is told all

    async def fork(self, ends: Wires) -> tuple[int, int]:
        """The pid and pidfd of a worker on those wires.  Raises OSError, ZygoteGone."""
        # A cancelled caller waits for the answer, too: nobody else would take in what was forked.
        with self._family.expecting(), trio.CancelScope(shield=True):
            with trio.move_on_after(FORK_LIMIT_S):
                pid, pidfd = await self._ask(ends)
                self._family.add(pid, watched=True)
                self.forked += 1
                return pid, pidfd
        self.process.kill()  # it hangs
        raise ZygoteGone

    async def _ask(self, ends: Wires) -> tuple[int, int]:
        given = array.array("i", [ends.theirs.fileno(), ends.write_end]).tobytes()
        try:
            await self._channel.sendmsg([b'{"fork": true}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)])
        except OSError as e:
            raise ZygoteGone from e
        message, descriptors = await self._receive()
        if "unfit" in message:
            _log.warning("the zygote cannot be forked any more: %s", message["unfit"])
            self.process.kill()
            raise ZygoteGone
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
async def _zygote(family: Family, duty: str, environ: Mapping[str, str]) -> AsyncIterator[_Zygote]:
    """Start a zygote, and end it with the block.  Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            ours.setblocking(False)
            read_end, write_end = os.pipe()
            try:
                given = theirs.fileno()
                pid, pidfd = spawn(
                    "zygote",
                    [str(given), str(os.getpid()), duty],
                    output=write_end,
                    given=[given],
                    interpreter=None,
                    session=False,
                    environ=environ,
                )
            except OSError:
                os.close(read_end)
                raise
            finally:
                os.close(write_end)
        log = logging.getLogger("tserve.zygote")
        process = ChildProcess(pid, pidfd, read_end, label="zygote", log=log, family=family, grace_s=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.follow)
            zygote = _Zygote(process, ours, family)
            family.watcher = zygote.tell
            for group in family.groups:
                zygote.tell("watch", group)
            try:
                yield zygote
            finally:
                family.watcher = None
                process.kill()
