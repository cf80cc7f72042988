"""The machine's own figures: of a made-up one to the digit, and of this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tserve.metrics.catalogue import DEFAULT
from tserve.metrics.host import Host

MEMINFO = "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 1048576 kB\nHugePages_Total: 0\nOdd:\n"


def stat(path: Path, *times: int) -> None:
    (path / "stat").write_text(f"cpu  {' '.join(map(str, times))}\ncpu0 1 1 1 1\nintr 5\n")


def test_a_made_up_machine(tmp_path: Path) -> None:
    """Waiting for a disk is idle; guests' time is in the users' already."""
    host = Host(proc=tmp_path, disk=str(tmp_path))
    (tmp_path / "meminfo").write_text(MEMINFO)
    stat(tmp_path, 10, 10, 10, 60, 10, 0, 0, 0, 99, 99)
    first = host.read()
    assert first["CPUUtilization"] == 30
    assert first["MemoryAvailable"] == 1024
    assert first["MemoryUsed"] == 3072
    assert first["MemoryUtilization"] == 75
    stat(tmp_path, 20, 20, 20, 65, 15, 10, 5, 5, 0, 0)
    assert host.read()["CPUUtilization"] == 83.3
    assert host.read()["CPUUtilization"] == 0


def test_without_an_estimate_of_available_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 2048 kB\nMemFree: 1024 kB\n")
    stat(tmp_path, 1, 1, 1, 1, 1, 1, 1, 1)
    assert Host(proc=tmp_path).read()["MemoryAvailable"] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("stat", "cpu 1 2"), ("stat", ""), ("stat", "cpu a b c d e f g h"), ("meminfo", ""), ("meminfo", "MemTotal: x")],
)
def test_what_cannot_be_read(name: str, content: str, tmp_path: Path) -> None:
    """One of the errors that `read` names."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    stat(tmp_path, 1, 1, 1, 1, 1, 1, 1, 1)
    (tmp_path / name).write_text(content)
    with pytest.raises((OSError, ValueError, LookupError)):
        Host(proc=tmp_path).read()
    with pytest.raises(OSError, match="No such file"):
        Host(proc=tmp_path / "none").read()


def test_this_machine() -> None:
    readings = Host().read()
    assert readings.keys() == {
        name
        for name, definition in DEFAULT.server.items()
        if definition.unit in ("Percent", "Megabytes", "Gigabytes") and "DeviceId" not in definition.labels
    }
    assert all(0 <= readings[name] <= 100 for name in readings if name.endswith("Utilization"))
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 20)
    assert readings["MemoryAvailable"] + readings["MemoryUsed"] == pytest.approx(memory_mib, rel=0.05)
    assert readings["DiskAvailable"] > 0 < readings["DiskUsage"]
