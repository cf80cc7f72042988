"""The contract against the real launcher and against the fake."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from tests.fakes import FakeLauncher, Script
from tests.process.launcher_contract import LauncherContract
from tserve.runtime.launcher import Launcher
from tserve.runtime.worker import SubprocessLauncher

PLAYED = {
    "echo.py": Script(),
    "refuses.py": Script(load_report={"ok": False, "reason": "load_error"}),
    "crash_on_start.py": Script(load_dies=True, exit=3),
    "crash_on_predict.py": Script(dies_on_batch=1, exit=7),
    "garbage.py": Script(garbage_on_batch=1),
    "stuck.py": Script(batch_s=math.inf),
}


@pytest.mark.process
class TestSubprocessLauncher(LauncherContract):
    @pytest.fixture
    def launcher(self) -> Launcher:
        return SubprocessLauncher()

    @pytest.fixture
    def no_process(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))


class TestFakeLauncher(LauncherContract):
    @pytest.fixture
    def launcher(self) -> Launcher:
        return FakeLauncher(named=PLAYED)

    @pytest.fixture
    def no_process(self, launcher: FakeLauncher) -> None:
        launcher.play(Script(start_error="none left"))
