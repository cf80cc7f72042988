"""A plain or gzip tarball into a Tree, without the first part of each name.  Runs in the intake process."""

from __future__ import annotations

import gzip
import struct
import tarfile
import zlib
from io import BufferedReader
from typing import TYPE_CHECKING

from tserve.archive.content import GZIP_MAGIC, ZIP_MAGIC, first_bytes
from tserve.archive.refusal import Refused
from tserve.archive.tree import CHUNK, Tree, split_name

if TYPE_CHECKING:
    from typing import Self

_DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)


_INVALID: type[Exception] = tarfile.InvalidHeaderError  # type: ignore[attr-defined]
_TRUNCATED: type[Exception] = tarfile.TruncatedHeaderError  # type: ignore[attr-defined]


_MAX_EXTENDED = 1 << 20  # bytes of a long name or of records: the library searches them in the square of their length


class _Header(tarfile.TarInfo):
    """The library takes a broken header behind the first one for the end of the archive; here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size > _MAX_EXTENDED and not header.isreg():
            raise ValueError(f"an extended header of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            header = super().fromtarfile(tarfile)
        except (_INVALID, _TRUNCATED) as error:
            raise ValueError(str(error)) from error
        if header.size < 0:  # would walk backwards, for ever
            raise ValueError("negative size")
        return header


def untar(file: BufferedReader, tree: Tree) -> None:
    """Raises Refused for what is no tarball or a damaged one, and for entries that are unsafe or past the bounds."""
    magic = first_bytes(file)
    if magic == ZIP_MAGIC:  # a file that can be read both ways would have one digest and two contents
        raise Refused("not_an_archive", "a zip archive whose name does not end in .mar")
    packed = magic.startswith(GZIP_MAGIC)
    content = gzip.GzipFile(fileobj=file) if packed else file
    try:
        with tarfile.open(fileobj=content, mode="r:", tarinfo=_Header) as archive:
            while (entry := archive.next()) is not None:
                tree.enter()
                if packed:
                    tree.check_stream(content.tell())
                _untar_entry(archive, entry, tree)
                archive.members.clear()  # type: ignore[attr-defined]  # or every header stays in memory
        while packed and (rest := content.read(CHUNK)):  # to the end, where the checksum is
            tree.spend(len(rest))
    except _DAMAGE as error:
        raise Refused("not_an_archive", f"the file cannot be read as a tarball: {error}") from error


def _untar_entry(archive: tarfile.TarFile, entry: tarfile.TarInfo, tree: Tree) -> None:
    split_name(entry.name)  # a parent part is refused even where it would be cut off
    name = entry.name + "/" if entry.isdir() else entry.name  # the library has taken the slash off a folder
    parts = split_name(name.partition("/")[2] if "/" in name else name)
    if entry.isdir():
        if parts:
            tree.add_folder(parts)
        return
    content = archive.extractfile(entry) if entry.isreg() else None
    if content is None:
        raise Refused("unsafe_entry", f"entry {entry.name!a} is a link or a special file")
    with content:
        tree.add_file(parts, content, executable=bool(entry.mode & 0o111))
