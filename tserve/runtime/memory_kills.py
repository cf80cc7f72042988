"""Whether a SIGKILL was the kernel's, for want of memory: it counts those kills, per cgroup and for the host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def _files() -> Iterator[Path]:
    """Where the count may stand, the nearest first: this cgroup (v2, v1), the one mounted here, the host."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield Path("/sys/fs/cgroup" + path, "memory.events")
        elif "memory" in controllers.split(","):
            yield Path("/sys/fs/cgroup/memory" + path, "memory.oom_control")
    yield Path("/sys/fs/cgroup/memory.events")
    yield Path("/sys/fs/cgroup/memory/memory.oom_control")
    yield Path("/proc/vmstat")


def _read(path: Path) -> int | None:
    try:
        found = _COUNT.search(path.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


class MemoryKills:
    """Tells kills apart as they come; each one that the kernel counts explains one death."""

    def __init__(self) -> None:
        try:
            self._file = next((path for path in _files() if _read(path) is not None), None)
        except OSError:
            self._file = None
        self._explained = self._count() or 0

    def _count(self) -> int | None:
        return _read(self._file) if self._file is not None else None

    def forget(self) -> None:
        """What was killed until now was none of ours: to be called when a worker starts."""
        self._explained = self._count() or self._explained

    def explain(self) -> bool | None:
        """Whether a death by SIGKILL that was just seen was the kernel's doing; None where it does not count."""
        count = self._count()
        if count is None:
            return None
        if count <= self._explained:
            return False
        self._explained += 1
        return True
