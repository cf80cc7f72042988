"""What a handler may leave behind that would reach the next request: put back after each batch.

A handler that changes the folder, closes what it prints to or replaces it harms its own request only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path

_OURS = 64  # lowest number of the descriptors kept here: out of the way of handlers that close a few


class Surroundings:
    """The working folder and the standard streams as they are when this is made, after the model was loaded."""

    def __init__(self) -> None:
        self._folder = _folder()
        self._streams = sys.stdout, sys.stderr
        self._kept = {fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OURS) for fd in range(3)}
        self._files = {fd: _identity(fd) for fd in range(3)}

    def restore(self) -> None:
        with contextlib.suppress(OSError):  # the folder is gone: nothing of ours
            if self._folder is not None and _folder() != self._folder:
                os.chdir(self._folder)
        for fd, file in self._files.items():
            if _identity(fd) != file:
                os.dup2(self._kept[fd], fd)
        if (sys.stdout, sys.stderr) != self._streams or any(stream.closed for stream in self._streams):
            self._streams = tuple(  # type: ignore[assignment]
                stream if not stream.closed else open(fd, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
                for fd, stream in zip((1, 2), self._streams, strict=True)
            )
            sys.stdout, sys.stderr = self._streams


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
