"""Schemathesis explores a running server by its documents: no bug, no undocumented status, header, type or member.

TSERVE_SCHEMATHESIS_EXAMPLES is the number of requests per operation; `tox run -e openapi` has 500 of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import explore_hooks
from tests.e2e.archives import write
from tests.e2e.server import Server, running

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

EXAMPLES = int(os.environ.get("TSERVE_SCHEMATHESIS_EXAMPLES", "3"))
THOROUGH = 100  # from so many on each boundary of each parameter is tried as well
CHECKS = [
    "status_code_conformance",
    "response_schema_conformance",
    "only_errors_that_are_told",
    "content_types_that_are_told",
    "no_member_is_untold",
]


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It has the models that the hooks name."""
    folder = tmp_path_factory.mktemp("explored")
    store = folder / "store"
    store.mkdir()
    write(store, "my_model.mar", name="my_model")
    write(store, "my_model2.mar", name="my_model", version="2.0")
    write(store, "other.mar", name="other")
    config = ["worker_start=fresh", "ts_open_inference_protocol=true"]
    with running(Server(folder / "server", store, config)) as server:
        assert server.register("my_model.mar", initial_workers=1, synchronous=True).status == 200
        yield server


@pytest.mark.parametrize("role", ["inference", "metrics", "management"])  # the last one changes what the others meet
def test_explore(server: Server, role: str, tmp_path: Path) -> None:
    phases = "examples,coverage,fuzzing" if EXAMPLES >= THOROUGH else "examples,fuzzing"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.urls[role]}/tserve/openapi.json"]
    command += ["--phases", phases, "--max-examples", str(EXAMPLES), "--checks", ",".join(CHECKS), "--seed", "1"]
    command += ["--request-timeout", "20", "--warnings", "off", "--no-color", "--generation-database", "none"]
    if EXAMPLES >= THOROUGH:
        command += ["--continue-on-failure"]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "SCHEMATHESIS_HOOKS": explore_hooks.__name__,
    }
    explored = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    print(explored.stdout, explored.stderr)
    assert explored.returncode == 0
    selected = re.search(r"Selected: (\d+)/(\d+)\n +Tested: (\d+)", explored.stdout)
    assert selected is not None
    assert len(set(selected.groups())) == 1
    assert "Traceback" not in server.log()
    server.check_whole()
