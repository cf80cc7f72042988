"""The source file, opened once: what is hashed is what is unpacked.  Runs in the intake process."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from tserve.archive.refusal import Refused

ZIP_MAGIC = b"PK\x03\x04"
GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Raises Refused when the path is no regular file, or when the file was written to inside the block."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in its place must not block us
    descriptor = os.open(path, flags)
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        os.close(descriptor)
        raise Refused("unsafe_entry", f"{path.name!a} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        yield file
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise Refused("changed_while_reading", f"{path.name!a} was written to meanwhile")


def first_bytes(file: BufferedReader) -> bytes:
    return os.pread(file.fileno(), len(ZIP_MAGIC), 0)
