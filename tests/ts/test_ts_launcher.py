"""`ts.launcher`: a real server started, used and stopped as TorchServe's test tools do it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

import ts
from ts import launcher

pytestmark = pytest.mark.e2e

ROOT = Path(ts.__file__).parent.parent
HANDLER = "def handle(data, context):\n    return data and ['answered' for _ in data]\n"
ROLES = ("inference", "management", "metrics")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the server runs, with one archive in its store and ports that the system chooses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "store").mkdir()
    with zipfile.ZipFile(tmp_path / "store" / "answers.mar", "w") as archive:
        archive.writestr("handler.py", HANDLER)
        manifest = {"runtime": "python", "model": {"modelName": "answers", "handler": "handler.py"}}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    lines = [f"{role}_address=http://127.0.0.1:0" for role in ROLES]
    (tmp_path / "config.properties").write_text("\n".join([*lines, "enable_grpc=false", "worker_start=fresh"]))
    yield tmp_path
    launcher.stop()


def start(folder: Path, **options: object) -> SimpleQueue[str | None]:
    given = {"model_store": str(folder / "store"), "snapshot_file": str(folder / "config.properties")}
    return launcher.start(**given | options)  # type: ignore[arg-type]


def drained(lines: SimpleQueue[str | None]) -> list[str]:
    return list(iter(lambda: lines.get(timeout=30), None))  # type: ignore[arg-type]


def address(role: str) -> str:
    assert launcher._running is not None
    return launcher._running.addresses[role]


def test_start_register_predict_and_stop(folder: Path) -> None:
    lines = start(folder, no_config_snapshots=True, disable_token=True, enable_model_api=True)
    management, inference = address("management"), address("inference")
    answer = launcher.register_model("answers", "answers.mar")
    assert (answer.status_code, answer.ok) == (200, True)
    assert "registered" in answer.json()["status"]
    with urllib.request.urlopen(f"{inference}/predictions/answers", data=b"x", timeout=30) as predicted:
        assert predicted.read() == b"answered"
    refused = launcher.register_model_with_params([("url", "nothing.mar"), ("model_name", "n")])
    assert (refused.status_code, refused.ok) == (404, False)
    assert "nothing.mar" in refused.text
    assert refused.headers["content-type"].startswith("application/json")
    launcher.stop()
    log = drained(lines)
    assert any("ready: " in line for line in log)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{management}/models", timeout=30)
    assert not (folder / ".tserve").exists()


def test_a_second_start_replaces_the_server_and_keeps_its_models(folder: Path) -> None:
    first = start(folder, models="answers.mar")
    before = address("management")
    second = start(folder)
    assert drained(first)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{before}/models", timeout=30)
    with urllib.request.urlopen(f"{address('management')}/models", timeout=30) as listed:
        assert [model["modelName"] for model in json.load(listed)["models"]] == ["answers"]
    assert second is not first


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        start(folder, model_store=str(folder / "nowhere"))
    launcher.stop()


def test_without_a_server_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(launcher._DEFAULT, "management", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="refused"):
        launcher.register_model("answers", "answers.mar")


def test_the_server_ends_with_the_program(folder: Path) -> None:
    program = (
        "from ts import launcher\n"
        f"launcher.start({str(folder / 'store')!r}, {str(folder / 'config.properties')!r}, no_config_snapshots=True)\n"
        "print('address', launcher._running.addresses['management'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, timeout=120, check=True
    )
    (found,) = (line.split()[1] for line in done.stdout.splitlines() if line.startswith("address "))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{found}/models", timeout=30)
