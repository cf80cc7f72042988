"""What the kernel tells of processes: their state, children, open files and memory."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path


def state(pid: int) -> str:
    """One letter as ps has it, `Z` for a zombie; empty when there is no such process."""
    with suppress(OSError):
        # The name stands in brackets, and may have any characters in it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def zombies(pid: int) -> list[int]:
    """Ended children that their parent has not reaped."""
    return [child for child in children(pid) if state(child) == "Z"]


def tree(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for each in found:
        found += children(each)
    return found


def open_files(pid: int) -> Counter[str]:
    """Open descriptors by kind: `socket`, `pipe`, `anon_inode`, or the path of a file."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            kinds[re.sub(r":.*", "", str(entry.readlink()))] += 1
    return kinds


def rss_mib(pid: int) -> float:
    return _kib(Path(f"/proc/{pid}/status"), "VmRSS") / 1024


def pss_mib(pids: list[int]) -> float:
    """The processes' share of memory: what several of them map counts in parts."""
    return sum(_kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in pids) / 1024


def _kib(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path} says nothing of {name}"
    return int(found[1])
