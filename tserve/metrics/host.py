"""The machine's own figures, from the kernel: processor, memory and the root disk."""

from __future__ import annotations

import os
from pathlib import Path

_MIB, _GIB = 1 << 20, 1 << 30


class Host:
    """`read` gives the processor's share since the read before, the first one since the machine's start."""

    def __init__(self, proc: Path = Path("/proc"), disk: str = "/") -> None:
        self._proc = proc
        self._disk = disk
        self._busy, self._all = 0, 0

    def read(self) -> dict[str, float]:
        """By metric (spec/server.md section 10.3), in percent, MiB, GiB.  Raises OSError, ValueError, LookupError."""
        return {**self._processor(), **self._memory(), **self._space()}

    def _processor(self) -> dict[str, float]:
        line = (self._proc / "stat").read_text().partition("\n")[0].split()[1:9]
        times = [int(word) for word in line]  # user nice system idle iowait irq softirq steal
        everything, busy = sum(times), sum(times) - times[3] - times[4]
        share = (busy - self._busy) / max(1, everything - self._all)
        self._busy, self._all = busy, everything
        return {"CPUUtilization": round(100 * max(0.0, share), 1)}

    def _memory(self) -> dict[str, float]:
        pairs = (line.partition(":") for line in (self._proc / "meminfo").read_text().splitlines())
        sizes = {name: int(value.split()[0]) << 10 for name, _, value in pairs if value.strip()}
        total, available = sizes["MemTotal"], sizes.get("MemAvailable", sizes["MemFree"])
        return {
            "MemoryAvailable": available / _MIB,
            "MemoryUsed": (total - available) / _MIB,
            "MemoryUtilization": round(100 * (total - available) / max(1, total), 1),
        }

    def _space(self) -> dict[str, float]:
        disk = os.statvfs(self._disk)
        free, used = disk.f_bavail * disk.f_frsize, (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        return {
            "DiskAvailable": free / _GIB,
            "DiskUsage": used / _GIB,
            "DiskUtilization": round(100 * used / max(1, used + free), 1),
        }
