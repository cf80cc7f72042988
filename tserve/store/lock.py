"""One server per state folder: a lock that the kernel gives back however the holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tserve.errors import StateLocked, StateUnusable

LOCK_FILE: Final = "lock"


@contextmanager
def hold_state(state_dir: Path) -> Iterator[None]:
    """Make the folder if need be (mode 0700) and be its only user until the end of the block.

    Raises StateLocked, with the holder's process id if it is known, and StateUnusable.  The file stays behind:
    removing it would let two servers hold two files of one name.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(state_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StateUnusable(f"The state folder {state_dir} cannot be used: {error.strerror}.") from error
    try:
        _take(lock, state_dir)
        yield
    finally:
        os.close(lock)


def _take(lock: int, state_dir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        holder = f"process {pid}" if pid.isdigit() else "another process"
        raise StateLocked(
            f"The state folder {state_dir} is in use by {holder}. "
            "Stop that server, or give this one a folder of its own."
        ) from error
    except OSError as error:
        raise StateUnusable(f"The state folder {state_dir} cannot be locked: {error.strerror}.") from error
