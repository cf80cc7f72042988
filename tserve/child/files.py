"""The model folder as users know it: its files by name, and which of them an error came from."""

from __future__ import annotations

import contextlib
import difflib
import io
import linecache
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import FrameType

from tserve.domain.plan import WorkerSpec

MANIFEST = "MAR-INF/MANIFEST.json"
_SHOWN = 20
_LONGEST = 4096  # a longer text is no path
_QUOTES = 500  # of one message


def handler_folder(spec: WorkerSpec) -> list[str]:
    """The folder that a handler with a function names beside its module, absolute; none, or this one."""
    path, function, _ = spec.handler.partition(":")
    folder, slash, _ = path.rpartition("/")
    return [os.path.normpath(Path(spec.model_dir, folder or slash))] if function and slash and "\0" not in path else []


class ModelFiles:
    """Names are relative to the model folder; an empty one means none."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._root = Path(spec.model_dir).absolute()
        self._folders = {f"{self._root}/", f"{self._root.resolve()}/"}
        model = (spec.manifest or {}).get("model")
        self._manifest = model if isinstance(model, dict) else {}
        self._handler = spec.handler
        self._handler_folder = handler_folder(spec)
        self.installed = spec.requirements  # the file whose packages the worker has

    def named(self, key: str) -> str:
        """What the manifest says of the model: `handler`, `modelFile`, `serializedFile` …"""
        value = self._manifest.get(key)
        return value if isinstance(value, str) else ""

    def handler_file(self) -> str:
        """The handler's file, when the archive has it."""
        folders = [str(self._root), *filter(self.name_of, self._handler_folder)]
        return next((self.name_of(path) for path in self._handlers_in(folders) if self.has(self.name_of(path))), "")

    def handler_outside(self) -> str:
        """The path of the handler's file in the folder that the handler names, when that has it."""
        with contextlib.suppress(OSError):  # too long for a name
            return next((str(path) for path in self._handlers_in(self._handler_folder) if path.is_file()), "")
        return ""

    def _handlers_in(self, folders: Iterable[str]) -> Iterator[Path]:
        stem = self._handler.partition(":")[0].rsplit("/", 1)[-1].removesuffix(".py").replace(".", "/")
        for folder in folders:
            yield from (Path(folder, f"{stem}.py"), Path(folder, stem, "__init__.py"))

    def namer_of_handler(self) -> str:
        """The manifest, unless it was the call or the configuration that named the handler."""
        return MANIFEST if self.has(MANIFEST) and self.named("handler") in ("", self._handler) else ""

    def has(self, name: str) -> bool:
        try:
            return bool(name) and (self._root / name).is_file()
        except (OSError, ValueError):  # too long for a name
            return False

    def start_of(self, name: str, size: int = -1) -> bytes:
        """The first `size` bytes, all by default; none of what cannot be read."""
        try:
            with (self._root / name).open("rb") as file:
                return file.read(size)
        except (OSError, ValueError):
            return b""

    def name_of(self, path: object) -> str:
        """The name of what a path leads to inside the folder, there or not; a relative one counts from the folder."""
        if not isinstance(path, (str, Path)) or not 0 < len(str(path)) < _LONGEST:
            return ""
        full = os.path.normpath(self._root / path)
        folder = next((folder for folder in self._folders if full.startswith(folder)), None)
        return "" if folder is None else full.removeprefix(folder).encode("utf-8", "replace").decode()

    def place(self, error: BaseException) -> str:
        """`handler.py:12`: the innermost line of the archive's own code that an error came through."""
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            if name := self.name_of(frame.f_code.co_filename):
                return f"{name}:{line}"
        return ""

    def in_hand(self, error: BaseException) -> str:
        """The data file that code was busy with when it failed, by the lines and variables on the way to the error."""
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            if name := self.quoted_in(linecache.getline(frame.f_code.co_filename, line)):
                return name
            for path in _paths_in(frame):
                if self._is_data(name := self.name_of(path)):
                    return name
        return ""

    def quoted_in(self, text: str) -> str:
        """The data file whose name a message, or a line of code, quotes."""
        found = islice(re.finditer(r"""['"]([^'"\n]+)['"]""", text), _QUOTES)
        names = (self.name_of(quoted[1]) for quoted in found)
        return next((name for name in names if self._is_data(name)), "")

    def _is_data(self, name: str) -> bool:
        return not name.endswith((".py", ".pyc")) and self.has(name)

    def modules(self) -> list[str]:
        """Dotted names of what the folder has to import."""
        stems = (name.removesuffix(".py").removesuffix("/__init__") for name in self.names() if name.endswith(".py"))
        return [stem.replace("/", ".") for stem in stems]

    def names(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self._root):
            folders[:] = sorted(set(folders) - {"__pycache__", "MAR-INF"})
            yield from (self.name_of(Path(folder, name)) for name in sorted(files))

    def contents(self) -> str:
        """To end a sentence about what is missing."""
        return f"the archive has {listed(self.names(), none='no files')}"


def listed(names: Iterable[str], *, none: str) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or none) + more


def meant(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for the known name that is nearest, if one is near; of dotted names the last part counts."""
    names = [each for each in known if each != name]
    near = [each for each in names if each.rpartition(".")[2] == name.rpartition(".")[2]]
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else ""


def _paths_in(frame: FrameType) -> Iterator[str]:
    for value in list(frame.f_locals.values()):
        try:
            path = getattr(value, "name", None) if isinstance(value, io.IOBase) else value
            if isinstance(path, (str, Path)):
                yield str(path)
        except BaseException:  # a variable of the model's own may be anything, and its __class__ may raise
            continue
