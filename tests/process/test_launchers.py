"""The contract against the real launchers and against the fake."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.fakes import FakeLauncher, Script
from tests.process.launcher_contract import LauncherContract, spec
from tserve.runtime.family import Family, adopt
from tserve.runtime.fresh import FreshLauncher
from tserve.runtime.launcher import Launcher
from tserve.runtime.zygote import ZygoteLauncher

PLAYED = {
    "echo.py": Script(),
    "refuses.py": Script(load_report={"ok": False, "reason": "load_error"}),
    "crash_on_start.py": Script(load_dies=True, exit=3),
    "crash_on_predict.py": Script(dies_on_batch=1, exit=7),
    "garbage.py": Script(garbage_on_batch=1),
    "stuck.py": Script(batch_s=math.inf),
    "hangs_up.py": Script(deaf_on_batch=1),
    "twice.py": Script(surplus_on_batch=1),
}


class _RealLauncher(LauncherContract):
    @pytest.fixture
    async def no_process(self, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
        def none_left(*arguments: object) -> None:
            raise OSError("no descriptor left")

        async with launcher.launch(spec("echo.py"), label="W-0"):
            pass  # whatever the launcher itself needs is there
        monkeypatch.setattr(socket, "socketpair", none_left)


@pytest.mark.process
class TestFreshLauncher(_RealLauncher):
    @pytest.fixture
    def launcher(self) -> Launcher:
        return FreshLauncher(Family())


@pytest.mark.process
class TestZygoteLauncher(_RealLauncher):
    @pytest.fixture
    async def launcher(self) -> AsyncIterator[Launcher]:
        adopt()
        family = Family()
        launcher = ZygoteLauncher(family, FreshLauncher(family))
        async with family.looked_after(), trio.open_nursery() as nursery:
            await nursery.start(launcher.run)
            yield launcher
            nursery.cancel_scope.cancel()


class TestFakeLauncher(LauncherContract):
    @pytest.fixture
    def launcher(self) -> Launcher:
        return FakeLauncher(named=PLAYED)

    @pytest.fixture
    def no_process(self, launcher: FakeLauncher, tmp_path: Path) -> None:
        launcher.play(Script(start_error="none left"))
