"""What a handler may leave behind that would reach the next request: put back after each batch.

A handler that changes the folder, closes what it prints to, replaces it or leaves an alarm harms its own request only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import Any

_OURS = 64  # lowest number of the descriptors kept here: out of the way of handlers that close a few
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Surroundings:
    """The working folder, the standard streams and the timers as they are when this is made, after the model was
    loaded.  Streams that the model's code has closed by then are there again, for what it prints later on."""

    def __init__(self) -> None:
        _open_closed()
        self._folder = _folder()
        self._streams = [sys.stdout, sys.stderr]
        self._kept = {fd: _kept(fd) for fd in range(3)}
        self._files = {fd: _identity(fd) for fd in range(3)}
        self._timers = [timer for timer in _TIMERS if signal.getitimer(timer)[0] == 0]
        self._restore_streams()

    def restore(self) -> None:
        for timer in self._timers:
            signal.setitimer(timer, 0)
        with contextlib.suppress(OSError):  # the folder is gone: nothing of ours
            if self._folder is not None and _folder() != self._folder:
                os.chdir(self._folder)
        for fd, file in self._files.items():
            if _identity(fd) != file:
                os.dup2(self._kept[fd], fd)
        self._restore_streams()

    def _restore_streams(self) -> None:
        for place, stream in enumerate(self._streams):
            if _is_closed(stream):
                self._streams[place] = open(  # noqa: SIM115
                    place + 1, "w", buffering=1, errors="backslashreplace", closefd=False
                )
        sys.stdout, sys.stderr = self._streams


def _open_closed() -> None:
    """Give the standard descriptors that are closed a file again, so that no other one gets their numbers."""
    for fd, other in ((0, None), (1, 2), (2, 1)):
        if _identity(fd) is None:
            source = os.open(os.devnull, os.O_RDWR) if other is None or _identity(other) is None else os.dup(other)
            if source != fd:
                os.dup2(source, fd)
                os.close(source)


def _kept(fd: int) -> int:
    """A copy out of the way, or anywhere where the limit of open files is below that."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OURS)
    except OSError:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _is_closed(stream: Any) -> bool:
    """Anything may stand there, None included."""
    try:
        return stream.closed is True
    except Exception:
        return False


def _folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # removed under the worker
        return None


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
