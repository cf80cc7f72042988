"""How many processors this process may use: its affinity, cut to the CPU quota of its cgroups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def processors(root: Path = Path("/")) -> int:
    """At least 1.  `root` is where `proc` and `sys` are found."""
    quota = min(_quotas(root), default=math.inf)
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota >= allowed else max(1, math.floor(quota))


def _quotas(root: Path) -> Iterator[float]:
    """Of each group that this process is in, and of those around it; in processors."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controllers
        else:
            continue
        # In a container the path may be the host's, and only the mount itself be there.
        inside = Path(path.lstrip("/"))
        for group in {mount / inside, *(mount / above for above in inside.parents), mount}:
            with suppress(OSError, ValueError):
                yield _quota(group)


def _quota(group: Path) -> float:
    """Raises OSError for a group that says nothing, ValueError for one that sets no limit."""
    if (v2 := group / "cpu.max").exists():
        quota, period = v2.read_text().split()
    else:
        quota = (group / "cpu.cfs_quota_us").read_text()
        period = (group / "cpu.cfs_period_us").read_text()
    if int(quota) <= 0 or int(period) <= 0:
        raise ValueError(quota)
    return int(quota) / int(period)
