"""Models that bring requirements, over the real server: real virtual environments, real pip, no network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import MakeServer
from tests.e2e.server import Server, eventually, names_in, processes_of, target
from tests.wheels import stuck_package, wheel, wheel_name

pytestmark = pytest.mark.e2e
ON = "install_py_dep_per_model=true"
SAYS = """
import os, sys
try:
    import tiny
    VERSION = tiny.VERSION
except ImportError:
    VERSION = "none"

def handle(data, context):
    seen = ",".join(sorted({"MY_SECRET", "MY_NAME"} & set(os.environ)))
    return data and [f"{VERSION} {sys.prefix} {seen}" for _ in data]
"""


def write(store: Path, file: str, requirements: str, *, config: str = "", **files: bytes | str) -> None:
    """An archive; names of further `files` have `__` for `/`, and a wheel is named by its package and version."""
    model = {"modelName": file.removesuffix(".mar"), "handler": "handler.py", "requirementsFile": "requirements.txt"}
    if config:
        model["configFile"] = "model-config.yaml"
    with zipfile.ZipFile(store / file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        archive.writestr("handler.py", SAYS)
        archive.writestr("requirements.txt", f"--no-index\n{requirements}\n")
        archive.writestr("model-config.yaml", config)
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)


def with_wheel(store: Path, file: str, version: str, **how: Any) -> None:
    name = wheel_name("tiny", version)
    write(store, file, f"./wheels/{name}", **{f"wheels__{name}": wheel("tiny", version)}, **how)


def stuck(store: Path, file: str, mark: Path) -> None:
    """Its installation never ends; `mark` is there once it runs."""
    files = {f"stuck__{name}": text for name, text in stuck_package(str(mark)).items()}
    write(store, file, "./stuck", **files)


def environments(server: Server) -> list[str]:
    return names_in(server.state / "environments")


def nothing_is_left(server: Server) -> None:
    assert server.models() == {}
    assert environments(server) == []
    server.check_whole()
    assert not [line for line in processes_of(server.mark).values() if "-m pip" in line or "child.environment" in line]


def test_versions_of_a_package_side_by_side_and_over_a_restart(store: Path, make_server: MakeServer) -> None:
    """Made when they are registered, made again when they are lost, gone when nobody needs them."""
    for file, version in (("old.mar", "1.0"), ("new.mar", "2.0")):
        with_wheel(store, file, version, config="useVenv: true\n" if version == "2.0" else "")
    server = make_server(ON)
    server.start()
    for name in ("old", "new"):
        answer = server.register(f"{name}.mar", initial_workers=1, synchronous=True)
        assert answer.status == 200, answer
    assert [server.predict(name).body.split()[0] for name in ("old", "new")] == [b"1.0", b"2.0"]
    assert len(environments(server)) == 2
    server.kill()
    shutil.rmtree(server.state / "environments")
    server.start()
    eventually("workers are up", lambda: server.ready_workers("old") and server.ready_workers("new"))
    assert [server.predict(name).body.split()[0] for name in ("old", "new")] == [b"1.0", b"2.0"]
    assert server.unregister("old").status == 200
    assert [Path(server.predict("new").body.split()[1].decode()).name] == environments(server)
    (server.state / "environments" / "leftover").mkdir()
    server.restart("term")
    assert len(environments(server)) == 1
    assert server.unregister("new").status == 200
    assert environments(server) == []


def test_one_environment_for_equal_requirements(store: Path, make_server: MakeServer) -> None:
    for file in ("a.mar", "b.mar"):
        write(store, file, "trio>=0.20")
    server = make_server(ON)
    server.start()
    for name in ("a", "b"):
        assert server.register(f"{name}.mar", initial_workers=1, synchronous=True).status == 200
    assert len({server.predict(name).body for name in ("a", "b")}) == 1
    assert server.log().count("is made for") == 1
    assert server.unregister("a").status == 200
    assert len(environments(server)) == 1
    assert server.predict("b").status == 200


def test_without_the_key_nothing_is_installed(store: Path, make_server: MakeServer) -> None:
    with_wheel(store, "a.mar", "1.0", config="useVenv: true\n")
    server = make_server()
    server.start()
    assert server.register("a.mar", initial_workers=1, synchronous=True).status == 200
    assert server.predict("a").body.split()[0] == b"none"
    assert not (server.state / "environments").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_installed_is_refused(store: Path, make_server: MakeServer, workers: int) -> None:
    """Also where the answer would be 202; spec/management.md section 1.4."""
    write(store, "a.mar", "no-such-package==7")
    server = make_server(ON)
    server.start()
    answer = server.register("a.mar", initial_workers=workers)
    assert (answer.status, answer.json["type"]) == (400, "ModelException")
    assert answer.text == "Custom pip package installation failed for model a"
    assert answer.json["tserve"]["reason"] == "dependencies_failed"
    assert answer.json["tserve"]["file"] == "requirements.txt"
    assert "No matching distribution found for no-such-package==7" in answer.json["tserve"]["detail"]
    nothing_is_left(server)


def test_what_cannot_be_made_again_is_why_a_worker_is_down(
    store: Path, make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it can."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / wheel_name("tiny", "1.0")).write_bytes(wheel("tiny", "1.0"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    write(store, "a.mar", "tiny")
    server = make_server(ON)
    server.start()
    assert server.register("a.mar", initial_workers=1, synchronous=True).status == 200
    assert server.stop() == 0
    wheels.rename(tmp_path / "away")
    shutil.rmtree(server.state / "environments")
    server.start()

    def failure() -> dict[str, Any]:
        found: dict[str, Any] = server.describe("a")[0]["workers"][0]["tserve"].get("lastFailure") or {}
        return found

    assert eventually("pip has failed", failure)["reason"] == "dependencies_failed"
    assert "No matching distribution found for tiny" in failure()["detail"]
    (tmp_path / "away").rename(wheels)
    eventually("the worker is up", lambda: server.ready_workers("a"))
    assert server.predict("a").body.split()[0] == b"1.0"


def test_an_environment_that_cannot_be_made(store: Path, make_server: MakeServer) -> None:
    write(store, "a.mar", "")
    server = make_server(ON)
    server.start()
    (server.state / "environments").write_text("in the way")
    answer = server.register("a.mar")
    assert (answer.status, answer.json["type"]) == (400, "ModelException")
    assert answer.text == "Virtual environment creation failed for model a"
    assert answer.json["tserve"]["reason"] == "environment_failed"
    assert server.models() == {}


def test_pip_that_takes_too_long(store: Path, make_server: MakeServer, tmp_path: Path) -> None:
    stuck(store, "a.mar", tmp_path / "runs")
    server = make_server(ON, "environment_timeout=6")
    server.start()
    answer = server.register("a.mar")
    assert (tmp_path / "runs").exists()
    assert answer.status == 400
    assert answer.json["tserve"]["detail"].endswith("not installed within environment_timeout, 6 s")
    nothing_is_left(server)


def test_a_version_that_is_there_is_not_installed_again(store: Path, make_server: MakeServer, tmp_path: Path) -> None:
    with_wheel(store, "a.mar", "1.0")
    stuck(store, "b.mar", tmp_path / "runs")
    server = make_server(ON)
    server.start()
    assert server.register("a.mar").status == 200
    assert server.register("b.mar", model_name="a").status == 409
    assert not (tmp_path / "runs").exists()


def begin(server: Server, url: str, mark: Path) -> socket.socket:
    """A registration under way: its connection."""
    address = urlsplit(server.urls["management"])
    connection = socket.create_connection((address.hostname, address.port or 0))
    connection.sendall(f"POST {target('/models', url=url)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    eventually("it installs", mark.exists)
    return connection


def test_a_client_that_hangs_up_leaves_nothing(store: Path, make_server: MakeServer, tmp_path: Path) -> None:
    stuck(store, "a.mar", tmp_path / "runs")
    server = make_server(ON)
    server.start()
    begin(server, "a.mar", tmp_path / "runs").close()
    eventually("all is removed", lambda: environments(server) == server.incoming() == [] and server.kept() == set())
    nothing_is_left(server)


@pytest.mark.parametrize("how", ["kill", "hurry"])
def test_a_server_that_ends_leaves_nothing(store: Path, make_server: MakeServer, tmp_path: Path, how: str) -> None:
    """Told to stop it finishes what is in hand, unless it is told again."""
    stuck(store, "a.mar", tmp_path / "runs")
    server = make_server(ON)
    server.start()
    mark = server.mark
    with begin(server, "a.mar", tmp_path / "runs"):
        if how == "kill":
            server.kill()
        else:
            os.kill(server.pid, signal.SIGTERM)
            eventually("it stops", lambda: "finishing what is in hand" in server.log())
            assert server.stop() == 1
    eventually("all processes are gone", lambda: not processes_of(mark))
    server.start()
    nothing_is_left(server)


def test_hidden_variables(store: Path, make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In forked workers and in those of an environment of their own."""
    monkeypatch.setenv("MY_SECRET", "x")
    monkeypatch.setenv("MY_NAME", "x")
    with_wheel(store, "a.mar", "1.0")
    for config, seen in (((ON, "blacklist_env_vars=.*SECRET.*"), b"MY_NAME"), ((), b"MY_NAME,MY_SECRET")):
        server = make_server(*config)
        server.start()
        assert server.register("a.mar", initial_workers=1, synchronous=True).status == 200
        assert server.predict("a").body.split()[2] == seen
        server.kill()
