"""The folder an archive is unpacked into: every name and every byte of a hostile archive is checked here.

Nothing but folders and regular files is ever made in it, so no entry can lead out of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tserve.archive.quota import Quota
from tserve.archive.refusal import Refused

if TYPE_CHECKING:
    from hashlib import _Hash
    from typing import IO

CHUNK = 1 << 20
MAX_PATH = 1024  # bytes below the folder: leaves room for the state folder's own path under the system's 4096
MAX_NAME = 255  # bytes of a file's or folder's name, as most file systems have it
MAX_DEPTH = 32  # removing a tree holds one descriptor open per level
# A drive, the root of one or a share, and a parent part with a backslash on one side of it.
_ELSEWHERE = re.compile(r"[A-Za-z]:([\\/]|$)|\\|(.*[\\/])?\.\.\\|.*\\\.\.([\\/]|$)", re.DOTALL)
_HEADERS = 4 << 10  # bytes for each entry of a tarball: a header, a long name, what else there is to say of it
_CLASH = (FileExistsError, NotADirectoryError, IsADirectoryError)


def split_name(name: str) -> list[str]:
    """The parts of an entry's name; leading slashes and single dots fall away.

    Raises Refused for a name with a parent part or a NUL, and for what would lead elsewhere on another system: a
    drive, a share, a parent part between backslashes.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name or _ELSEWHERE.match(name):
        raise Refused("unsafe_entry", f"entry {name[:80]!a} leads out of the archive")
    return parts


class Tree:
    """`packed` are the bytes of what is unpacked, which bound what it may become; None for a folder."""

    def __init__(self, root: Path, quota: Quota, *, packed: int | None) -> None:
        root.mkdir()
        self._root = root
        self._quota = quota
        self._most, self._setting = quota.most_bytes(packed)
        self._bytes = 0
        self._entries = 0
        self._folders = {root}

    def expect(self, *, entries: int, size: int) -> None:
        """Refuse by what the archive says of itself, before a byte is written."""
        if entries > self._quota.entries:
            raise self._too_many()
        if size > self._most:
            raise self._too_large()
        self._quota.check_free(self._root, size)

    def check_stream(self, position: int) -> None:
        """Refuse what comes out of a packed stream and is no content, if it is more than all headers could have."""
        if position > self._most + self._quota.entries * _HEADERS:
            raise self._too_large()

    def enter(self) -> None:
        """Count an entry, whatever it is, or a folder that none stands for.  Raises Refused past the bounds."""
        self._entries += 1
        if self._entries > self._quota.entries:
            raise self._too_many()
        self._quota.check_free(self._root, 0)

    def add_folder(self, parts: Sequence[str]) -> None:
        path = self._path(parts)
        self._make_parents(path)
        self._make_folder(path)

    def add_file(
        self, parts: Sequence[str], content: IO[bytes], *, executable: bool, hasher: _Hash | None = None
    ) -> int:
        """Write a file, over an earlier entry of the same name as the recorded server does; how many bytes it has.

        Of its mode only the right to be run is taken.
        """
        written = 0
        path = self._path(parts)
        self._make_parents(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o777 if executable else 0o666)
        except _CLASH as error:
            raise _both(parts) from error
        with os.fdopen(descriptor, "wb") as out:
            while chunk := content.read(CHUNK):
                self.spend(len(chunk))
                if hasher is not None:
                    hasher.update(chunk)
                written += out.write(chunk)
        return written

    def spend(self, size: int) -> None:
        """Count bytes that came out of the archive, before they are written.  Raises Refused past the bound."""
        self._bytes += size
        if self._bytes > self._most:
            raise self._too_large()
        self._quota.check_free(self._root, size)

    def _too_many(self) -> Refused:
        return Refused("too_many_entries", f"it has more entries than max_archive_entries={self._quota.entries}")

    def _too_large(self) -> Refused:
        return Refused("too_large", f"it unpacks to more than {self._most} bytes ({self._setting})")

    def sync(self) -> None:
        """Bring all files and folders to the disk, the folder around the tree too.

        At the end and not file by file: the first call then commits most of the journal for all of them.
        """
        for folder, _, files in os.walk(self._root, topdown=False):
            for name in files:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        _fsync(self._root.parent)

    def _path(self, parts: Sequence[str]) -> Path:
        below = "/".join(parts)
        names = [len(os.fsencode(part)) for part in parts]
        if not parts or len(parts) > MAX_DEPTH or max(names) > MAX_NAME or len(os.fsencode(below)) > MAX_PATH:
            raise Refused("unsafe_entry", f"entry name {below[:80]!a} is empty, too long or too deep")
        return self._root / below

    def _make_parents(self, path: Path) -> None:
        """Those of one file can be thirty, and take more room than it."""
        if path.parent not in self._folders:
            self._make_parents(path.parent)
            self.enter()
            self._make_folder(path.parent)

    def _make_folder(self, path: Path) -> None:
        try:
            path.mkdir(exist_ok=True)
        except _CLASH as error:
            raise _both(path.relative_to(self._root).parts) from error
        self._folders.add(path)


def _both(parts: Sequence[str]) -> Refused:
    return Refused("unsafe_entry", f"entry {'/'.join(parts)[:80]!a} would be a file and a folder")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
