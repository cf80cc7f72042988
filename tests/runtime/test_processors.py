"""Processors: the affinity, cut to the quota of the cgroups around the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tserve.runtime.processors import processors

HERE = len(os.sched_getaffinity(0))
NO_QUOTA, HALF, HUGE = "max 100000", "50000 100000", "6400000 100000"
V1 = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (None, {}, HERE),
        ("0::/a/b", {}, HERE),
        ("0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": NO_QUOTA}, HERE),
        ("0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": HUGE}, HERE),
        ("0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": HALF}, 1),
        ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "150000 100000", "sys/fs/cgroup/a/b/cpu.max": NO_QUOTA}, 1),
        ("0::/", {"sys/fs/cgroup/cpu.max": HALF}, 1),
        ("0::/of/the/host", {"sys/fs/cgroup/cpu.max": HALF}, 1),
        ("0::/a", {"sys/fs/cgroup/a/cpu.max": "garbage"}, HERE),
        ("2:cpu,cpuacct:/a", {f"{V1}/a/cpu.cfs_quota_us": "-1", f"{V1}/a/cpu.cfs_period_us": "100000"}, HERE),
        ("2:cpu,cpuacct:/a", {f"{V1}/a/cpu.cfs_quota_us": "120000", f"{V1}/a/cpu.cfs_period_us": "100000"}, 1),
        ("2:memory:/a\n1:name=x:/a", {"sys/fs/cgroup/memory/a/cpu.max": HALF}, HERE),
    ],
)
def test_processors(tmp_path: Path, groups: str | None, files: dict[str, str], expected: int) -> None:
    if groups is not None:
        files = {**files, "proc/self/cgroup": groups}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert processors(tmp_path) == expected


def test_this_machine() -> None:
    assert 1 <= processors() <= HERE


def test_a_smaller_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert processors() == 1
    finally:
        os.sched_setaffinity(0, allowed)
