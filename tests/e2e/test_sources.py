"""Archives from other machines, with the real program: what is refused out of the box, what a kill leaves behind."""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.archives import write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import Server, eventually
from tests.e2e.web import Web, serving

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

OPEN = ("allowed_networks=127.0.0.1/32", "min_free_space=0")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    folder = tmp_path / "web"
    folder.mkdir()
    write(folder, "echo.mar", padding_mb=3)
    with serving(folder) as made:
        yield made


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    made = make_server(*OPEN)
    made.start()
    return made


def left(server: Server) -> list[str]:
    folders = [server.state / "incoming", server.state / "downloads", server.state / "archives", server.store]
    return [str(path) for folder in folders for path in folder.iterdir()]


def test_cve_2023_43654_ghsa_8fxr_qfr9_p34w_server_side_request_forgery(make_server: MakeServer, web: Web) -> None:
    """The server that tserve replaces fetches any URL out of the box, and writes what it gets into the model store."""
    server = make_server()
    server.start()
    port = web.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "0"):
        url = f"http://{host}:{port}/echo.mar"
        answer = server.register(url)
        assert answer.status == 404
        assert answer.json["type"] == "ModelNotFoundException"
        assert answer.text == f"Given URL {url} does not match any allowed URL(s)"
        assert answer.json["tserve"]["reason"] == "address_not_allowed"
    assert server.register("http://169.254.169.254/latest/meta-data/x.mar").status == 404
    assert server.register("file:///etc/passwd").status == 400
    assert web.connections == 0
    assert left(server) == []


def test_from_a_url_to_an_answer(server: Server, web: Web) -> None:
    url = f"{web.url}/echo.mar"
    assert server.register(url, initial_workers=1, synchronous=True).status == 200
    assert server.describe("echo")[0]["modelUrl"] == url
    assert server.call("POST", "/predictions/echo", role="inference", body=b"x").body == b"echo 1.0 of 1"
    assert os.listdir(server.store) == ["echo.mar"]
    assert server.register(url).status == 409
    assert server.register(f"{web.url}/other/echo.mar").text == "Model file already exists echo.mar"
    assert server.unregister("echo").status == 200
    assert left(server) == []


def test_after_a_restart_nothing_is_fetched_again(server: Server, web: Web) -> None:
    """Not what is registered, and not what the start names either."""
    url = f"{web.url}/echo.mar"
    assert server.register(url, model_name="named").status == 200
    server.restart("kill", "--models", f"named={url}", url)
    assert [model["modelName"] for model in server.call("GET", "/models").json["models"]] == ["named"]
    assert len(web.asked) == 1
    assert server.describe("named")[0]["loadedAtStartup"] is True
    assert server.unregister("named").status == 200
    assert left(server) == []


def test_a_start_that_names_a_url(make_server: MakeServer, web: Web) -> None:
    server = make_server(*OPEN)
    server.start("--models", f"{web.url}/echo.mar?a=b", f"{web.url}/nosuch.mar")
    assert [model["modelName"] for model in server.call("GET", "/models").json["models"]] == ["echo"]
    assert "Failed to load model" in server.log()


def registering(server: Server, url: str, answers: list[object]) -> threading.Thread:
    def register() -> None:
        try:
            answers.append(server.register(url, model_name="echo").status)
        except (OSError, http.client.HTTPException) as error:
            answers.append(error)

    thread = threading.Thread(target=register)
    thread.start()
    return thread


def test_a_registration_under_way_can_be_watched(server: Server, web: Web) -> None:
    web.gate.clear()
    answers: list[object] = []
    thread = registering(server, f"{web.url}/echo.mar?key=secret", answers)

    def download() -> object:
        shown = server.call("GET", "/tserve/registrations").json["registrations"]
        return shown and shown[0].get("download", {}).get("receivedBytes") and shown[0]

    shown = eventually("bytes come", download)
    assert shown["url"] == f"{web.url}/echo.mar"
    assert (shown["modelName"], shown["phase"]) == ("echo", "downloading")
    assert 0 < shown["download"]["receivedBytes"] < shown["download"]["expectedBytes"]
    answer = server.call("GET", "/models/echo")
    assert (answer.status, answer.text) == (404, "Model not found: echo")
    assert answer.json["tserve"]["reason"] == "registering"
    assert answer.json["tserve"]["registering"][0]["download"]["expectedBytes"] == shown["download"]["expectedBytes"]
    web.gate.set()
    thread.join()
    assert answers == [200]
    assert server.call("GET", "/tserve/registrations").json == {"registrations": []}
    assert "registering" not in server.describe("echo")[0]["tserve"]
    assert "secret" not in server.log()


def test_a_client_that_leaves_ends_its_download(server: Server, web: Web) -> None:
    web.gate.clear()
    connection = server.connect("management")
    connection.request("POST", f"/models?url={web.url}/echo.mar")
    eventually("bytes come", lambda: any((server.state / "incoming").iterdir()))
    connection.close()
    eventually("nothing is left", lambda: left(server) == [])


def test_a_kill_in_the_middle_of_a_download(server: Server, web: Web) -> None:
    web.gate.clear()
    answers: list[object] = []
    thread = registering(server, f"{web.url}/echo.mar", answers)
    eventually("bytes come", lambda: [path for path in (server.state / "incoming").iterdir() if path.stat().st_size])
    server.kill()
    thread.join()
    assert len(left(server)) == 1
    server.start()
    assert left(server) == []
    web.gate.set()
    assert server.register(f"{web.url}/echo.mar").status == 200
