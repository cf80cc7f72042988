"""What workers start and leave behind: ended with their group, or adopted, reaped, and ended with the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.process.launcher_contract import HANDLERS, ask, load, send
from tserve.domain.plan import WorkerSpec
from tserve.runtime.family import Family, adopt, count_descendants
from tserve.runtime.fresh import FreshLauncher
from tserve.runtime.launcher import Exit, Worker
from tserve.runtime.memory_kills import MemoryKills

pytestmark = pytest.mark.process


@asynccontextmanager
async def families() -> AsyncIterator[Family]:
    """A family that is looked after until the block ends."""
    adopt()
    family = Family()
    with trio.fail_after(30):
        async with family.looked_after():
            yield family


@asynccontextmanager
async def loaded(family: Family, handler: str, *, kill_grace_s: float = 2.0) -> AsyncIterator[Worker]:
    spec = WorkerSpec("m", str(HANDLERS), handler, 1, kill_grace_s=kill_grace_s)
    async with FreshLauncher(family).launch(spec, label="W-1") as worker:
        assert (await load(worker, handler)).meta == {"ok": True}
        yield worker


def state(pid: int) -> str:
    """The kernel's letter for it, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


async def gone(pid: int) -> None:
    while state(pid):  # noqa: ASYNC110 - it is nobody's child by then
        await trio.sleep(0.01)


@pytest.mark.parametrize("wish", ["polite", "deaf"])
async def test_the_group_is_asked_then_killed(wish: str, tmp_path: Path) -> None:
    """A process of the worker gets SIGTERM and time to act on it; one that does not leave is killed."""
    said = tmp_path / "said"
    async with families() as family:
        async with loaded(family, "starts_helper.py", kill_grace_s=0.5) as worker:
            (answer,) = await ask(worker, f"{wish} {said}".encode())
            helper = int(answer)
            assert state(helper) in "SR"
        assert state(helper) == "", "neither it nor its zombie"
    assert said.read_text() == "asked to leave"


async def test_a_killed_worker_takes_its_group_along_at_once(tmp_path: Path) -> None:
    said = tmp_path / "said"
    async with families() as family, loaded(family, "starts_helper.py", kill_grace_s=60.0) as worker:
        (answer,) = await ask(worker, f"deaf {said}".encode())
        worker.kill()
        await worker.wait()
        assert state(int(answer)) == ""
    assert not said.exists()


async def test_an_orphan_out_of_the_group_is_reaped_when_it_ends() -> None:
    async with families() as family:
        async with loaded(family, "forks.py") as worker:
            await send(worker, b"away dies")
            await worker.wait()
            orphan = int(worker.tail().rpartition("child ")[2])
        assert family.orphans() == [orphan]
        os.kill(orphan, signal.SIGKILL)
        await gone(orphan)
        assert family.orphans() == []


async def test_orphans_end_with_the_server() -> None:
    async with families() as family, loaded(family, "forks.py") as worker:
        await send(worker, b"away dies")
        await worker.wait()
        orphan = int(worker.tail().rpartition("child ")[2])
        assert state(orphan)
    assert state(orphan) == ""


async def test_a_child_that_is_expected_is_no_orphan() -> None:
    async with families() as family, loaded(family, "forks.py") as worker:
        await send(worker, b"away dies")
        await worker.wait()
        with family.expecting():
            assert family.orphans() == []
        assert len(family.orphans()) == 1


async def test_orphans_of_orphans_end_with_the_server() -> None:
    """The end of one brings its own children here, which could not be seen before."""
    async with families() as family, loaded(family, "forks.py") as worker:
        await send(worker, b"chain dies")
        await worker.wait()
        orphans = [int(word) for word in worker.tail().rpartition("child ")[2].split()]
        assert len(orphans) == 2
        assert all(map(state, orphans))
    assert not any(map(state, orphans))


async def test_a_process_that_the_kernel_holds_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracer that stops it amid its exit stands in for a driver that hangs."""
    monkeypatch.setattr("tserve.runtime.process.UNKILLABLE_S", 0.2)
    tracer = None
    try:
        async with families() as family:
            async with loaded(family, "echo.py") as worker:
                command = [sys.executable, "-c", TRACER, str(worker.pid)]
                tracer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: ASYNC220
                assert tracer.stdout is not None
                if tracer.stdout.readline() != b"0\n":
                    pytest.skip("tracing is not allowed here")
                worker.kill()
                end = await worker.wait()
                assert (end, end.unkillable) == (Exit(137), True)
            assert state(worker.pid)
            tracer.communicate(b"")
            await gone(worker.pid)
    finally:
        if tracer is not None:
            tracer.kill()
            tracer.communicate()


TRACER = """
import ctypes, sys
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
SEIZE, STOP_AT_EXIT = 0x4206, 0x40
print(ptrace(SEIZE, int(sys.argv[1]), 0, STOP_AT_EXIT), flush=True)
sys.stdin.read()
"""


async def test_processes_that_hide_behind_a_dead_parent_are_counted() -> None:
    async with families() as family, loaded(family, "forks.py") as worker:
        await ask(worker, b"twice lives")
        assert count_descendants([worker.pid], most=10) == 1
        assert await worker.processes(most=10) == 2


async def test_processes_are_counted_with_what_they_started(tmp_path: Path) -> None:
    async with families() as family, loaded(family, "starts_helper.py") as worker:
        assert await worker.processes(most=10) == 1
        for number in range(3):
            await ask(worker, f"polite {tmp_path / str(number)}".encode())
        assert await worker.processes(most=10) == 4
        assert count_descendants([worker.pid], most=1) > 1


def test_kills_for_want_of_memory_are_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "memory.events"
    counts.write_text("low 0\noom 3\noom_kill 3\n")
    monkeypatch.setattr("tserve.runtime.memory_kills._files", lambda: iter([tmp_path / "none", counts]))
    kills = MemoryKills()
    assert kills.explain() is False
    counts.write_text("low 0\noom 5\noom_kill 5\n")
    assert [kills.explain() for _ in range(3)] == [True, True, False], "each explains one death"
    counts.write_text("oom_kill 6\n")
    kills.forget()
    assert kills.explain() is False, "it was no worker of ours"
    counts.unlink()
    assert kills.explain() is None


def test_a_kernel_that_counts_no_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tserve.runtime.memory_kills._files", lambda: iter([tmp_path / "none"]))
    assert MemoryKills().explain() is None
