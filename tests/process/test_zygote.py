"""The zygote: what a forked worker has and has not of it, and what becomes of both when one of them dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.process.launcher_contract import HANDLERS, ask, load, spec
from tserve.domain.plan import WorkerSpec
from tserve.runtime import zygote
from tserve.runtime.family import Family, adopt
from tserve.runtime.fresh import FreshLauncher
from tserve.runtime.launcher import Worker
from tserve.runtime.zygote import ZygoteLauncher

pytestmark = pytest.mark.process


@asynccontextmanager
async def zygotes() -> AsyncIterator[ZygoteLauncher]:
    adopt()
    family = Family()
    launcher = ZygoteLauncher(family, FreshLauncher(family))
    with trio.fail_after(60):
        async with family.looked_after(), trio.open_nursery() as nursery:
            await nursery.start(launcher.run)
            yield launcher
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def loaded(launcher: ZygoteLauncher, handler: str = "echo.py") -> AsyncIterator[Worker]:
    async with launcher.launch(spec(handler), label="W-1") as worker:
        assert (await load(worker, handler)).meta == {"ok": True}
        yield worker


async def look(launcher: ZygoteLauncher) -> dict[str, object]:
    async with loaded(launcher, "shows_itself.py") as worker:
        (shown,) = await ask(worker, b"")
    found: dict[str, object] = json.loads(shown)
    return found


async def until_up(launcher: ZygoteLauncher) -> int:
    """The zygote's pid; a launch is the event to wait for."""
    async with launcher.launch(spec("echo.py"), label="W-0"):
        assert launcher.pid is not None
        return launcher.pid


async def test_a_forked_worker_is_what_a_fresh_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment, arguments, signals and paths; but for what the zygote is there for, the imported torch."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    async with zygotes() as launcher:
        forked = await look(launcher)
        fresh = WorkerSpec("m", str(HANDLERS), "shows_itself.py", 1, interpreter=sys.executable)
        async with launcher.launch(fresh, label="W-2") as worker:
            await load(worker, "shows_itself.py")
            (shown,) = await ask(worker, b"")
    unforked = json.loads(shown)
    assert (forked.pop("torch"), unforked.pop("torch")) == (True, False)
    assert forked.pop("random") != unforked.pop("random")
    assert forked == unforked
    assert forked["threads"] == 1
    assert forked["environ"]["CUDA_VISIBLE_DEVICES"] == "3"  # type: ignore[index]
    assert "OMP_NUM_THREADS" not in forked["environ"]  # type: ignore[operator]


async def test_two_forks_draw_different_random_numbers() -> None:
    async with zygotes() as launcher:
        one, two = await look(launcher), await look(launcher)
    assert len(one["random"]) == 3  # type: ignore[arg-type]
    assert not set(one["random"]) & set(two["random"])  # type: ignore[call-overload]


async def test_a_worker_shares_its_memory_with_the_zygote() -> None:
    async with zygotes() as launcher, loaded(launcher) as worker:
        rolled = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()  # noqa: ASYNC240 - no disk
        kib = {line.split(":")[0]: int(line.split()[1]) for line in rolled.splitlines()[1:]}
        assert kib["Private_Dirty"] < kib["Rss"] / 4


async def test_workers_outlive_their_zygote_and_another_one_comes() -> None:
    async with zygotes() as launcher, loaded(launcher) as worker:
        first = launcher.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert await ask(worker, b"still here") == [b"still here"]
        while launcher.pid == first:  # noqa: ASYNC110 - its end has no event out here
            await trio.sleep(0.01)
        async with loaded(launcher) as another:
            assert await ask(another, b"new") == [b"new"]
        assert launcher.pid not in (None, first)


async def test_a_zygote_that_is_asked_to_end_takes_no_worker_along() -> None:
    async with zygotes() as launcher, loaded(launcher) as worker:
        first = launcher.pid
        assert first is not None
        os.kill(first, signal.SIGTERM)
        while launcher.pid == first:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert await ask(worker, b"still here") == [b"still here"]


async def test_a_zygote_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "FORK_LIMIT_S", 0.2)
    async with zygotes() as launcher:
        first = await until_up(launcher)
        os.kill(first, signal.SIGSTOP)
        assert await until_up(launcher) != first


async def test_a_zygote_that_dies_before_it_forks_is_done_without_after_a_while() -> None:
    """Else every start would wait for ever, and torch would be imported again and again."""
    async with zygotes() as launcher, trio.open_nursery() as nursery:
        nursery.start_soon(_kill_each, launcher)
        launcher.warm()
        while not launcher._broken:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert (await look(launcher))["torch"] is False
        nursery.cancel_scope.cancel()


async def _kill_each(launcher: ZygoteLauncher) -> None:
    killed = None
    while True:
        if launcher.pid not in (None, killed):
            killed = launcher.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
        await trio.sleep(0.001)


async def test_exit_hooks_of_what_the_zygote_imported_run_in_the_worker(tmp_path: Path) -> None:
    """A temporary folder goes, a buffered log is written."""
    async with zygotes() as launcher:
        async with loaded(launcher, "leaves_things.py") as worker:
            (made,) = await ask(worker, str(tmp_path).encode())
            folder = trio.Path(made.decode())
            assert await folder.is_dir()
        assert not await folder.exists()
    assert await trio.Path(tmp_path, "log.txt").read_text() == "said\n"


async def test_without_a_zygote_workers_start_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(zygote, "spawn", _refuse)
    caplog.set_level(logging.WARNING)
    async with zygotes() as launcher:
        assert (await look(launcher))["torch"] is False
        assert launcher.pid is None
    assert "no zygote could be started" in caplog.text


def _refuse(*arguments: object, **named: object) -> None:
    raise OSError("not today")


async def test_a_zygote_that_does_not_come_up_in_time_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "START_LIMIT_S", 0.0)
    async with zygotes() as launcher:
        assert (await look(launcher))["torch"] is False


async def test_many_starts_at_once() -> None:
    async with zygotes() as launcher, trio.open_nursery() as nursery:
        seen: list[bytes] = []

        async def one(number: int) -> None:
            async with loaded(launcher) as worker:
                seen.extend(await ask(worker, str(number).encode()))

        for number in range(12):
            nursery.start_soon(one, number)
    assert sorted(seen) == sorted(str(number).encode() for number in range(12))


async def test_a_cancelled_start_leaves_no_process() -> None:
    """At any moment of it; what has been forked by then is ended and reaped."""
    async with zygotes() as launcher:
        await until_up(launcher)
        had = _children()
        for number in range(30):
            with trio.move_on_after(number / 1000):
                async with loaded(launcher):
                    pass
        while _children() != had:  # noqa: ASYNC110
            await trio.sleep(0.01)


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
