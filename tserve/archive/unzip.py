"""A zip archive into a Tree.  Runs in the intake process.

Entry names are UTF-8 as for the recorded server, with or without the flag that says so.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from io import BufferedReader

from tserve.archive.refusal import Refused
from tserve.archive.tree import Tree, split_name

_LOCAL = struct.Struct("<26xHH")  # of an entry's own header: the lengths of its name and of its extra field
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
)


def unzip(file: BufferedReader, tree: Tree) -> None:
    """Raises Refused for a damaged archive and for entries that are unsafe, encrypted or past the tree's bounds."""
    try:
        with zipfile.ZipFile(file, metadata_encoding="utf-8") as archive:
            entries = archive.infolist()
            tree.expect(entries=len(entries), size=sum(entry.file_size for entry in entries))
            _check_places(file, entries, archive.start_dir)
            for entry in entries:
                tree.enter()
                _unzip_entry(archive, entry, tree)
    except _DAMAGE as error:
        raise Refused("damaged", f"the zip archive cannot be read: {error}") from error


def _check_places(file: BufferedReader, entries: Sequence[zipfile.ZipInfo], end: int) -> None:
    """Raises Refused where entries share bytes: that is how a small archive becomes large, or has two readings."""
    for entry in sorted(entries, key=lambda entry: entry.header_offset, reverse=True):
        header = os.pread(file.fileno(), _LOCAL.size, entry.header_offset) if entry.header_offset >= 0 else b""
        if len(header) < _LOCAL.size:
            raise zipfile.BadZipFile(f"entry {entry.filename!a} lies outside of the file")
        name, extra = _LOCAL.unpack(header)
        if entry.header_offset + _LOCAL.size + name + extra + entry.compress_size > end:
            raise Refused("overlapping_entries", f"entry {entry.filename!a} shares bytes with another one")
        end = entry.header_offset


def _unzip_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, tree: Tree) -> None:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Refused("unsafe_entry", f"entry {entry.filename!a} is a link or a special file")
    if entry.flag_bits & 0x1:
        raise Refused("encrypted", f"entry {entry.filename!a} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused("unknown_compression", f"entry {entry.filename!a} has compression {entry.compress_type}")
    parts = split_name(entry.orig_filename)  # the library cuts the other one at a NUL
    if not entry.is_dir():
        with archive.open(entry) as content:
            written = tree.add_file(parts, content, executable=bool(mode & 0o111))
        if written != entry.file_size:
            raise zipfile.BadZipFile(f"entry {entry.filename!a} has {written} bytes and says {entry.file_size}")
    elif parts:
        tree.add_folder(parts)
