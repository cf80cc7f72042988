"""The files of `log` mode: lines gather in memory, and are written by whoever calls `flush`, in a thread.

`ts_metrics.log` and `model_metrics.log`, set aside at midnight and at 100 MB, five of each kept (spec/server.md
sections 10.5 and 11).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from tserve.metrics.families import Family, Labels

MOST_WAITING = 100_000  # lines; of more, while the disk is slow, the oldest are lost
MOST_ENDS = 10_000
LARGEST = 100_000_000
KEPT = 5
_log = logging.getLogger("tserve.metrics")


class MetricsFiles:
    """`server` and `models` take values, from one thread; `flush` writes, from another."""

    def __init__(self, folder: Path, *, largest: int = LARGEST) -> None:
        self.server = LogFile(folder / "ts_metrics.log", largest=largest)
        self.models = LogFile(folder / "model_metrics.log", largest=largest)

    def flush(self) -> None:
        """Write what has gathered.  Blocks; the files are there afterwards, if they can be."""
        self.server.flush()
        self.models.flush()


class LogFile:
    def __init__(self, path: Path, *, largest: int = LARGEST) -> None:
        self._path = path
        self._largest = largest
        self._lines: deque[tuple[float, str]] = deque(maxlen=MOST_WAITING)
        self._ends: dict[tuple[str, Labels], tuple[str, str]] = {}
        self._warned = False

    def add(self, family: Family, labels: Labels, value: float, request_ids: Iterable[str] = ()) -> None:
        """One value as one line; all but the value and the time is made once."""
        ends = self._ends.get((family.name, labels))
        if ends is None:
            if len(self._ends) >= MOST_ENDS:
                self._ends.clear()
            ends = self._ends[family.name, labels] = _ends(family, labels)
        now, ids = time.time(), ",".join(request_ids)
        if ids:
            ids = f"requestID:{_one_line(ids)},"
        self._lines.append((now, f"{ends[0]}{value}{ends[1]}{ids}timestamp:{int(now)}"))

    def flush(self) -> None:
        """A disk that is full, or gone, costs the lines and one warning."""
        taken = [self._lines.popleft() for _ in range(len(self._lines))]
        if not taken and self._path.exists():
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room()
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{_stamp(at)} - {line}\n" for at, line in taken)
            self._warned = False
        except OSError as error:
            if not self._warned:
                _log.warning("metrics cannot be written to %s: %s", self._path, error)
            self._warned = True

    def _make_room(self) -> None:
        """Begin another file where this one is of an earlier day, or large."""
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return
        of_today = time.localtime(now.st_mtime)[:3] == time.localtime()[:3]
        if now.st_size == 0 or (of_today and now.st_size < self._largest):
            return
        older = [self._path.with_name(f"{self._path.name}.{number}") for number in range(1, KEPT + 1)]
        for place, name in reversed(list(zip(older, [self._path, *older[:-1]], strict=True))):
            if name.exists():
                name.replace(place)


def _ends(family: Family, labels: Labels) -> tuple[str, str]:
    """What stands before the value, and behind it.  The host has a place of its own, and is no dimension."""
    hostname, shown = "", []
    for name, value in zip(family.labels, labels, strict=True):
        if name.lower() == "hostname":
            hostname = value
        else:
            shown.append(f"{name}:{value}")
    return _one_line(f"{family.name}.{family.unit}:"), _one_line(f"|#{','.join(shown)}|#hostname:{hostname},")


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _stamp(at: float) -> str:
    """`2026-11-22T10:32:03,234`."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(at))},{int(at * 1000) % 1000:03d}"
