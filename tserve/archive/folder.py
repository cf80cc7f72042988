"""A folder of the model store into a Tree.  Runs in the intake process."""

from __future__ import annotations

import hashlib
import os
from itertools import islice
from pathlib import Path

from tserve.archive.content import opened
from tserve.archive.refusal import Refused
from tserve.archive.tree import Tree

_MARK = b"tserve folder 1\0"  # so that no listing of a folder can be the bytes of a file


def copy_folder(folder: Path, tree: Tree) -> tuple[str, int]:
    """Copy a folder; its digest (of a listing of paths, modes and file digests) and the bytes of its files.

    A folder that holds one folder and nothing else stands for the inner one (spec/management.md section 3.1).
    Raises Refused for anything but files, folders, and links to files inside the folder.
    """
    reading = _Reading(_root(folder), tree)
    return reading.digest(), reading.size


def digest_of_folder(folder: Path) -> str:
    """The digest that a copy would have."""
    return _Reading(_root(folder), None).digest()


def _root(folder: Path) -> Path:
    with os.scandir(folder) as entries:
        first = list(islice(entries, 2))
    return Path(first[0].path) if len(first) == 1 and first[0].is_dir(follow_symlinks=False) else folder


class _Reading:
    """Of a folder, into a tree if there is one."""

    def __init__(self, root: Path, tree: Tree | None) -> None:
        self._root = root
        self._tree = tree
        self.lines: list[bytes] = []
        self.size = 0

    def digest(self) -> str:
        self.level(self._root, [])
        return hashlib.sha256(_MARK + b"".join(sorted(self.lines))).hexdigest()

    def level(self, folder: Path, parts: list[str]) -> None:
        """One folder and all below it; the tree's bound on depth ends the recursion."""
        with os.scandir(folder) as entries:
            for entry in entries:
                here = [*parts, entry.name]
                if self._tree is not None:
                    self._tree.enter()
                if entry.is_dir(follow_symlinks=False):
                    if self._tree is not None:
                        self._tree.add_folder(here)
                    self._note(here, "folder")
                    self.level(Path(entry.path), here)
                else:
                    self._file(entry, here)

    def _file(self, entry: os.DirEntry[str], parts: list[str]) -> None:
        path = Path(os.path.realpath(entry.path) if entry.is_symlink() else entry.path)
        if not path.is_relative_to(self._root):
            raise Refused("unsafe_entry", f"{'/'.join(parts)!a} is a link that leads out of the folder")
        with opened(path) as file:
            status = os.fstat(file.fileno())
            hasher = hashlib.sha256()
            executable = bool(status.st_mode & 0o111)
            if self._tree is None:
                hasher = hashlib.file_digest(file, "sha256")
            else:
                self._tree.add_file(parts, file, executable=executable, hasher=hasher)
        self.size += status.st_size
        self._note(parts, hasher.hexdigest() + (" x" if executable else " -"))

    def _note(self, parts: list[str], what: str) -> None:
        self.lines.append(os.fsencode("/".join(parts)) + b"\0" + what.encode() + b"\0")
