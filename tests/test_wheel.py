"""The wheel as a user gets it: installed into an empty environment, run from another folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
START_S = 120.0
pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that holds the built wheel and what it needs, nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True)
    (wheel,) = folder.glob("tserve-*.whl")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / "bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(pip, check=True, cwd=folder)
    return programs


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TS_", "COVERAGE"))}


def test_migrations_and_handlers_package_are_in_the_wheel(installed: Path) -> None:
    code = (
        "import pathlib, ts, tserve; from tserve.store.upgrade import find_migrations; "
        "print(find_migrations().relative_to(pathlib.Path(tserve.__file__).parent), ts.__version__)"
    )
    done = subprocess.run(
        [installed / "python", "-c", code],
        cwd=installed,
        env=_environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["_migrations", "0.12.0"]


def test_serves_the_digits_model_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """As the README has it, but for the ports: start with digits.mar, send a PNG, get class probabilities."""
    shutil.copytree(ROOT / "model_store", tmp_path / "model_store")
    config = "".join(f"{role}_address=http://127.0.0.1:0\n" for role in ("inference", "management", "metrics"))
    config += "grpc_inference_port=0\ngrpc_management_port=0\n"
    (tmp_path / "config.properties").write_text(config)
    server = subprocess.Popen(
        [installed / "tserve", "start", "--models", "digits.mar"], cwd=tmp_path, env=_environment()
    )
    try:
        urls = json.loads(_wait_for(tmp_path / ".tserve" / "endpoints.json", server))
        assert {"grpc_inference", "grpc_management"} <= urls.keys()
        image = (ROOT / "examples" / "digits" / "samples" / "7.png").read_bytes()
        request = urllib.request.Request(f"{urls['inference']}/predictions/digits", image, method="PUT")
        request.add_header("content-type", "image/png")
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            chances = json.loads(answer.read())
        assert max(chances, key=chances.get) == "7"
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.wait()


def _wait_for(path: Path, server: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + START_S
    while not path.exists():
        assert server.poll() is None, "the server ended while it started"
        assert time.monotonic() < end, "the server did not get ready"
        time.sleep(0.05)
    return path.read_text()
