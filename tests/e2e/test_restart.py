"""What comes back after SIGTERM and after kill -9, how a server ends, and what keeps one from starting."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.archives import ECHO, FAILS_TO_LOAD, GATED, STUCK_LOAD, write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import Answer, Server, eventually, processes_of

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

HURRIED = """
import sys
from tserve import server
from tserve.cli.main import main

server.DRAIN_S = 3.0
sys.exit(main())
"""
ODD_NAME = "模型 a+b%"
CONFIG = "minWorkers: 1\nmaxWorkers: 2\nbatchSize: 4\nmaxBatchDelay: 20\nresponseTimeout: 77\n"


@pytest.fixture(autouse=True)
def archives(store: Path) -> None:
    write(store, "echo.mar")
    write(store, "echo2.mar", version="2.0")
    write(store, "config.mar", name="configured", config=CONFIG)
    write(store, "gated.mar", GATED, name="gated")


def lasting(server: Server) -> dict[str, list[dict[str, Any]]]:
    """All that describe says of what outlives a process, versions in the order shown."""
    registry = server.registry()
    for description in (version for versions in registry.values() for version in versions.values()):
        del description["workers"], description["jobQueueStatus"]
        for passing in ("state", "ready", "restarts"):
            del description["tserve"][passing]
    return {name: list(versions.values()) for name, versions in registry.items()}


def has_ready(server: Server, count: int, name: str, version: str | None = None) -> bool:
    return len(server.ready_workers(name, version)) == count


def ask_gated(server: Server, folder: Path) -> tuple[threading.Thread, list[Answer | Exception]]:
    """A prediction under way; it goes on once `folder`/go is there."""
    answers: list[Answer | Exception] = []

    def ask() -> None:
        try:
            answers.append(server.predict("gated", body=str(folder).encode()))
        except (OSError, ValueError) as error:
            answers.append(error)

    client = threading.Thread(target=ask, daemon=True)
    client.start()
    eventually("the handler runs", (folder / "running").exists)
    return client, answers


def is_listening(server: Server, role: str) -> bool:
    connection = server.connect(role)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()
    return True


@pytest.mark.parametrize("how", ["term", "kill"])
def test_everything_comes_back(make_server: MakeServer, how: str) -> None:
    server = make_server()
    server.start()
    numbers = {"batch_size": 3, "max_batch_delay": 7, "response_timeout": 33, "startup_timeout": 44}
    assert server.register("echo.mar", **numbers, initial_workers=2, synchronous=True).status == 200
    assert server.register("echo2.mar", handler="handler.py:other").status == 200
    assert server.register("echo2.mar", model_name=ODD_NAME, runtime="python3", batch_size=-5).status == 200
    assert server.register("config.mar", synchronous=True).status == 200
    assert server.set_default("echo", "2.0").status == 200
    assert server.scale("echo", "2.0", min_worker=1, max_worker=3, synchronous=True).status == 200
    assert server.scale(ODD_NAME, min_worker=0, max_worker=2).status == 202
    before, token = lasting(server), server.page(limit=1)["nextPageToken"]

    server.restart(how)

    assert lasting(server) == before
    assert server.page(limit=1)["nextPageToken"] == token
    assert [model["modelName"] for model in server.page(next_page_token=token)["models"]] == list(before)[1:]
    for count, name, version in [(2, "echo", "1.0"), (1, "echo", "2.0"), (1, "configured", None), (0, ODD_NAME, None)]:
        eventually(f"{count} workers of {name}", lambda: has_ready(server, count, name, version))  # noqa: B023
    assert server.predict("echo").body == b"other"
    assert server.predict("echo", "1.0").body == b"echo 1.0 of 1"
    assert server.predict("configured").body == b"configured 1.0 of 1"
    assert server.predict(ODD_NAME).status == 503
    numbers_shown = {"batchSize": 3, "maxBatchDelay": 7, "responseTimeout": 33, "startupTimeout": 44}
    assert numbers_shown.items() <= server.describe("echo", "1.0")[0].items()
    server.check_whole()


@pytest.mark.parametrize("how", ["term", "kill"])
def test_what_was_removed_stays_away(make_server: MakeServer, how: str) -> None:
    server = make_server()
    server.start()
    for url in ("echo.mar", "echo2.mar", "config.mar"):
        assert server.register(url, initial_workers=0).status == 200
    assert server.unregister("configured").status == 200
    assert server.unregister("echo", "2.0").status == 200
    server.restart(how)
    assert {name: list(versions) for name, versions in server.registry().items()} == {"echo": ["1.0"]}
    server.check_whole()


def test_a_version_that_cannot_be_loaded_is_there_after_a_restart_and_says_why(
    make_server: MakeServer, store: Path
) -> None:
    write(store, "broken.mar", FAILS_TO_LOAD, name="broken")
    server = make_server()
    server.start()
    assert server.register("broken.mar", initial_workers=1).status == 202
    server.restart("kill")

    def failure() -> Any:
        return [worker["tserve"].get("lastFailure") for worker in server.describe("broken")[0]["workers"]][-1]

    assert "this model cannot be loaded" in eventually("the reason is shown", failure)["detail"]


def test_sigterm_lets_a_running_request_finish(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server()
    server.start()
    assert server.register("gated.mar", initial_workers=1, synchronous=True).status == 200
    client, answers = ask_gated(server, tmp_path)
    mark, process = server.mark, server.process
    assert process is not None
    process.terminate()
    for role in ("management", "inference", "metrics"):
        eventually(f"{role} refuses connections", lambda: not is_listening(server, role))  # noqa: B023
    eventually("endpoints.json is removed", lambda: not server.endpoints.exists())
    assert answers == []
    (tmp_path / "go").touch()
    assert server.ended() == 0
    client.join(10)
    (answer,) = answers
    assert isinstance(answer, Answer), answer
    assert (answer.status, answer.body) == (200, b"through")
    assert processes_of(mark) == {}


def test_a_second_sigterm_does_not_wait(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server()
    server.start()
    assert server.register("gated.mar", initial_workers=1, synchronous=True).status == 200
    client, answers = ask_gated(server, tmp_path)
    mark, process = server.mark, server.process
    assert process is not None
    process.terminate()
    eventually("management refuses connections", lambda: not is_listening(server, "management"))
    process.terminate()
    assert server.ended() == 1
    client.join(10)
    (answer,) = answers
    assert not isinstance(answer, Answer) or answer.status >= 500, "nobody answered in the handler's name"
    assert processes_of(mark) == {}


def test_sigterm_cuts_what_does_not_end_in_time(make_server: MakeServer, tmp_path: Path) -> None:
    """Requests and workers have one limit between them, and the exit code tells."""
    server = make_server()
    server.program = ("-c", HURRIED)
    server.start()
    assert server.register("gated.mar", initial_workers=1, synchronous=True).status == 200
    client, answers = ask_gated(server, tmp_path)
    mark, begun = server.mark, time.monotonic()
    assert server.stop() == 1
    assert 3.0 <= time.monotonic() - begun < 6.0
    client.join(10)
    (answer,) = answers
    assert not isinstance(answer, Answer) or answer.status >= 500
    assert processes_of(mark) == {}


def test_sigterm_does_not_wait_for_a_worker_that_still_loads(
    make_server: MakeServer, store: Path, tmp_path: Path
) -> None:
    write(store, "stuck.mar", STUCK_LOAD.format(mark=str(tmp_path / "loading")), name="stuck")
    server = make_server()
    server.start()
    assert server.register("stuck.mar", initial_workers=1).status == 202
    eventually("the model is being loaded", (tmp_path / "loading").exists)
    mark, server.timeout_s = server.mark, 10
    assert server.stop() == 0
    assert processes_of(mark) == {}


def test_a_registration_that_waits_for_its_workers_at_sigterm_stays(
    make_server: MakeServer, store: Path, tmp_path: Path
) -> None:
    """As it does at kill -9: that the server stops is no failure of the model."""
    write(store, "stuck.mar", STUCK_LOAD.format(mark=str(tmp_path / "loading")), name="stuck")
    server = make_server()
    server.program = ("-c", HURRIED)
    server.start()

    def ask() -> None:
        with suppress(OSError):
            server.register("stuck.mar", initial_workers=1, synchronous=True)

    client = threading.Thread(target=ask, daemon=True)
    client.start()
    eventually("the model is being loaded", (tmp_path / "loading").exists)
    assert server.stop() == 1, "the client was cut off"
    client.join(10)
    server.start()
    assert server.models() == {"stuck": "stuck.mar"}


def test_sigterm_while_models_of_the_start_are_registered(make_server: MakeServer, store: Path) -> None:
    """It does not register the rest first; what was registered stays."""
    for number in range(40):
        write(store, f"model{number}.mar", name=f"model{number}", padding_mb=1)
    server = make_server("load_models=all", "default_workers_per_model=1")
    server.start(ready=False)
    eventually("one is registered and the next one is on its way", lambda: len(server.kept()) > 1)
    mark = server.mark
    assert server.stop() == 0
    assert processes_of(mark) == {}
    assert "Traceback" not in server.log()
    kept = len(server.kept())
    assert 1 <= kept < 40
    server.config = ()
    server.start()
    assert 1 <= len(server.models()) <= kept
    server.check_whole()


def test_one_server_per_state_folder(make_server: MakeServer) -> None:
    server = make_server()
    server.start()
    second = server.spawn()
    assert second.wait(20) == 5
    assert f"tserve: The state folder {server.state} is in use by process {server.pid}." in server.log()
    assert server.endpoints.exists()
    assert server.models() == {}


def test_a_taken_port(make_server: MakeServer) -> None:
    """It also takes away where a server that was killed had been found."""
    server = make_server()
    server.start()
    server.kill()
    assert server.endpoints.exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = server.spawn(config=[f"management_address=http://127.0.0.1:{port}"])
        assert process.wait(20) == 4
    assert f"tserve: Cannot listen on 127.0.0.1:{port}: Address already in use\n" in server.log()
    assert not server.endpoints.exists()
    server.start()
    assert server.models() == {}


def test_endpoints_are_published_while_connections_are_accepted(make_server: MakeServer) -> None:
    server = make_server()
    server.start(ready=False)
    process = server.process
    assert process is not None
    assert not server.endpoints.exists()
    server.wait_ready()
    assert {role: is_listening(server, role) for role in server.urls} == dict.fromkeys(
        ("inference", "management", "metrics"), True
    )
    assert server.stop() == 0
    assert not server.endpoints.exists()


@pytest.mark.parametrize("how", ["term", "kill"])
def test_a_changed_archive_does_not_replace_the_kept_version(make_server: MakeServer, store: Path, how: str) -> None:
    server = make_server()
    server.start()
    assert server.register("echo.mar", initial_workers=1, synchronous=True).status == 200
    digest = server.describe("echo")[0]["tserve"]["digest"]
    write(store, "echo.mar", ECHO.replace("of {len(data)}", "CHANGED"))
    server.restart(how, "--models", "echo.mar")
    assert server.describe("echo")[0]["tserve"]["digest"] == digest
    assert server.scale("echo", min_worker=2, synchronous=True).status == 200
    assert {server.predict("echo").body for _ in range(6)} == {b"echo 1.0 of 1"}
    assert server.register("echo.mar").status == 409
    assert server.register("echo.mar", model_name="new", initial_workers=1, synchronous=True).status == 200
    assert server.predict("new").body == b"echo 1.0 CHANGED"
    server.check_whole()


def test_a_kept_version_needs_no_archive_in_the_store(make_server: MakeServer, store: Path) -> None:
    server = make_server()
    server.start()
    assert server.register("echo.mar", initial_workers=1, synchronous=True).status == 200
    (store / "echo.mar").unlink()
    server.restart("kill")
    assert eventually("the worker is back", lambda: has_ready(server, 1, "echo"))
    assert server.predict("echo").body == b"echo 1.0 of 1"


def test_models_of_the_command_line_keep_what_is_held(make_server: MakeServer) -> None:
    server = make_server("default_workers_per_model=1")
    named = ("--models", "echo.mar", "renamed=echo2.mar", "absent.mar", "config.mar")
    server.start(*named)
    assert server.models() == {"configured": "config.mar", "echo": "echo.mar", "renamed": "echo2.mar"}
    assert {server.describe(name)[0]["loadedAtStartup"] for name in server.models()} == {True}
    assert "absent.mar" in server.log()
    for name in server.models():
        eventually(f"a worker of {name}", lambda: has_ready(server, 1, name))  # noqa: B023
    assert server.scale("echo", min_worker=2, synchronous=True).status == 200
    assert server.scale("renamed", min_worker=0, synchronous=True).status == 200
    assert server.unregister("configured").status == 200
    assert server.register("echo2.mar", handler="handler.py:other", initial_workers=0).status == 200
    assert server.set_default("echo", "2.0").status == 200
    before = lasting(server)

    server.restart("kill", *named)

    after = lasting(server)
    assert after.pop("configured")[0]["minWorkers"] == 1, "what is named is there, also after it was unregistered"
    assert after == before
    eventually("two workers of echo", lambda: has_ready(server, 2, "echo", "1.0"))
    assert has_ready(server, 0, "renamed")

    server.restart("term")

    assert {name: server.describe(name)[0]["loadedAtStartup"] for name in server.models()} == dict.fromkeys(
        ("configured", "echo", "renamed"), False
    )


def test_all_archives_of_the_store_at_start(make_server: MakeServer, store: Path) -> None:
    (store / "broken.mar").write_bytes(b"PK\3\4 no archive")
    server = make_server("load_models=all", "default_workers_per_model=1")
    server.start()
    registry = {name: list(versions) for name, versions in server.registry().items()}
    assert registry == {"configured": ["1.0"], "echo": ["1.0", "2.0"], "gated": ["1.0"]}
    assert "Failed to load model: broken.mar" in server.log()
    server.check_whole()
    server.restart("term")
    assert {name: list(versions) for name, versions in server.registry().items()} == registry
