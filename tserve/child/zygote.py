"""The zygote: has imported torch and `ts`, runs no user code, and forks a worker from itself when the server asks.

It computes nothing and starts no thread, since neither a pool of threads nor an accelerator's context survives a
fork (asserted before each).  It also knows the process groups of all workers, and ends them when the server dies:
a worker's parent-death signal does not reach what the worker started.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from tserve.child.limits import blas_setters
from tserve.child.main import End, die_with, line_buffered, outlived_by, work
from tserve.domain.wire import CONTROL_BYTES

_PID = struct.Struct("i")
_SERVER_DIED = signal.SIGUSR1  # asked for; SIGTERM is what others send
# Read by libraries when they are loaded: a zygote must not start their threads, nor touch an accelerator.
_WHILE_IMPORTING = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
_IMPORTED = (
    "torch",
    "yaml",
    "ts.context",
    "ts.metrics.metric_cache_yaml_impl",
    "ts.torch_handler.base_handler",
    "ts.utils.util",
)


@dataclass(frozen=True, slots=True)
class Forked:
    """What a forked worker was given."""

    channel: int
    output: int


def main(argv: list[str]) -> None:
    """`argv`: the control socket's descriptor, the server's pid, and `fork` or `watch`, which has nothing imported.

    Returns in a worker, too, when that is done.
    """
    end = End()  # before anything that is imported registers what a worker has to do at its end
    descriptor, server, duty = int(argv[0]), int(argv[1]), argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line_buffered()
    with socket.socket(fileno=descriptor) as control:
        zygote = _Zygote(control)
        signal.signal(_SERVER_DIED, zygote.on_servers_death)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # comes with the server's death to a zygote that is stopped
        if not outlived_by(server, _SERVER_DIED):
            zygote.leave()
        began = time.monotonic()
        if duty == "fork":
            _import_everything()
        gc.collect()
        gc.disable()
        gc.freeze()
        zygote.say({"took_s": round(time.monotonic() - began, 3), "threads": _threads()})
        given = zygote.serve()
    if given is not None:
        _become_worker(given, server, end)


def _import_everything() -> None:
    """What nearly every handler needs; a machine without torch gets the rest."""
    before = {name: os.environ.get(name) for name in _WHILE_IMPORTING}
    os.environ.update(_WHILE_IMPORTING)
    for name in _IMPORTED:
        try:
            importlib.import_module(name)
        except ImportError as e:
            print(f"workers start without {name}: {e}", file=sys.stderr)
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    blas_setters()


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._groups: set[int] = set()

    def say(self, message: dict[str, Any], *descriptors: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next receive tells
            socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)

    def on_servers_death(self, number: int, frame: FrameType | None) -> None:
        """It comes with the end of the server's first thread, when getppid() may still say that the server is there."""
        if os.getpid() == self._pid:  # and not one that is about to become a worker
            self.leave()

    def leave(self) -> NoReturn:
        """End the groups that the server has told of, and this process."""
        self._control.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # what it was told while it could not read
            while (message := self._receive()[0]) is not None:
                self._note(message)
        self._end_groups()
        os._exit(0)

    def _note(self, message: dict[str, Any]) -> None:
        match message:
            case {"watch": int(group)}:
                self._groups.add(group)
            case {"forget": int(group)}:
                self._groups.discard(group)
            case {"forget_all": True}:
                self._groups.clear()

    def serve(self) -> Forked | None:
        """Fork when asked: returns in each worker with what it was given, in the zygote when the server is gone."""
        while True:
            message, descriptors = self._receive()
            if message is None:
                self._end_groups()
                return None
            if "fork" not in message:
                self._note(message)
                continue
            given = self._fork(*descriptors)
            if given is not None:
                return given

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        try:
            data, ancillary, *_ = self._control.recvmsg(
                CONTROL_BYTES, socket.CMSG_SPACE(2 * _PID.size), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None, []
        descriptors = array.array("i")
        for _, _, payload in ancillary:
            descriptors.frombytes(payload)
        return json.loads(data) if data else None, list(descriptors)

    def _end_groups(self) -> None:
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    def _fork(self, channel: int, output: int) -> Forked | None:
        try:
            if (threads := _threads()) != 1:
                self.say({"unfit": f"it has {threads} threads"})
            elif self._fork_worker() == 0:
                return Forked(channel, output)
        except OSError as e:
            self.say({"error": str(e)})
        os.close(channel)
        os.close(output)
        return None

    def _fork_worker(self) -> int:
        """Tell the server of a new worker; 0 in that.  Raises OSError."""
        pid = _fork_twice()
        if pid != 0:
            self._groups.add(pid)
            pidfd = os.pidfd_open(pid)
            self.say({"pid": pid}, pidfd)
            os.close(pidfd)
        return pid


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names are counted, no paths wanted


def _fork_twice() -> int:
    """The pid of a process whose parent is gone, so that the server adopts it; 0 in that process.  Raises OSError."""
    read_end, write_end = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            _fork_again(write_end)
            return 0
        os.close(write_end)
        write_end = -1
        answer = os.read(read_end, _PID.size)
        os.waitpid(between, 0)
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    if len(answer) < _PID.size:
        raise OSError("no process could be forked")
    pid: int = _PID.unpack(answer)[0]
    return pid


def _fork_again(write_end: int) -> None:
    """Returns in the grandchild, once its parent is gone."""
    between = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os._exit(1)
    if pid:
        os.write(write_end, _PID.pack(pid))
        os._exit(0)
    while os.getppid() == between:
        os.sched_yield()  # it ends at once


def _become_worker(given: Forked, server: int, end: End) -> None:
    """From a forked zygote to what a fresh interpreter would be."""
    os.setsid()
    signal.signal(_SERVER_DIED, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    die_with(server)
    for stream in (1, 2):
        os.dup2(given.output, stream)
    os.close(given.output)
    gc.enable()
    _reseed()
    work(socket.socket(fileno=given.channel), end)


def _reseed() -> None:
    """Random numbers must differ between forks; Python's own generator sees to that itself."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()
    if torch is not None:
        torch.default_generator.seed()
