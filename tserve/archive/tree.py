"""The folder an archive is unpacked into: every name and every byte of a hostile archive is checked here.

Nothing but folders and regular files is ever made in it, so no entry can lead out of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tserve.archive.refusal import Refused

if TYPE_CHECKING:
    from hashlib import _Hash
    from typing import IO

CHUNK = 1 << 20
MAX_ENTRIES = 100_000  # far above any model; each entry costs an inode and an fsync
MAX_PATH = 1024  # bytes below the folder: leaves room for the state folder's own path under the system's 4096
MAX_DEPTH = 32  # removing a tree holds one descriptor open per level


def split_name(name: str) -> list[str]:
    """The parts of an entry's name; leading slashes and single dots fall away.

    Raises Refused for a name with a parent part or a NUL.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise Refused("unsafe_entry", f"entry {name[:80]!a} leads out of the archive")
    return parts


class Tree:
    """`most_bytes` bounds what the files may hold together; None for a source that cannot inflate (a folder)."""

    def __init__(self, root: Path, *, most_bytes: int | None) -> None:
        root.mkdir()
        self._root = root
        self._most = most_bytes
        self._bytes = 0
        self._entries = 0
        self._folders = {root}

    def expect(self, *, entries: int, size: int) -> None:
        """Refuse by what the archive says of itself, before a byte is written."""
        if entries > MAX_ENTRIES:
            raise Refused("too_many_entries", f"more than {MAX_ENTRIES} entries")
        if self._most is not None and size > self._most:
            raise Refused("too_large", f"would unpack to more than {self._most} bytes")

    def spend(self, size: int) -> None:
        """Count bytes that came out of the archive.  Raises Refused past the bound."""
        self._bytes += size
        if self._most is not None and self._bytes > self._most:
            raise Refused("too_large", f"unpacks to more than {self._most} bytes")

    def add_folder(self, parts: Sequence[str]) -> None:
        self._make_folder(self._claim(parts))

    def add_file(
        self, parts: Sequence[str], content: IO[bytes], *, executable: bool, hasher: _Hash | None = None
    ) -> None:
        """Write a file, over an earlier entry of the same name as the recorded server does."""
        path = self._claim(parts)
        self._make_folder(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o777 if executable else 0o666), "wb") as out:
            while chunk := content.read(CHUNK):
                self.spend(len(chunk))
                if hasher is not None:
                    hasher.update(chunk)
                out.write(chunk)

    def sync(self) -> None:
        """Bring all files and folders to the disk, the folder around the tree too.

        At the end and not file by file: the first call then commits most of the journal for all of them.
        """
        for folder, _, files in os.walk(self._root, topdown=False):
            for name in files:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        _fsync(self._root.parent)

    def _claim(self, parts: Sequence[str]) -> Path:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise Refused("too_many_entries", f"more than {MAX_ENTRIES} entries")
        below = "/".join(parts)
        if not parts or len(parts) > MAX_DEPTH or len(os.fsencode(below)) > MAX_PATH:
            raise Refused("unsafe_entry", f"entry name {below[:80]!a} is empty, too long or too deep")
        return self._root / below

    def _make_folder(self, path: Path) -> None:
        if path not in self._folders:
            path.mkdir(parents=True, exist_ok=True)
            self._folders.add(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
