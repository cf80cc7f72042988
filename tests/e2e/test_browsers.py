"""What a browser may be made to send to the real server: pages from elsewhere, and names that lead here."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import h2.connection
import h2.events
import pytest

from tests.e2e.server import ROLES, Answer, Server, running

PATHS = {"inference": "/ping", "management": "/models", "metrics": "/metrics"}
OPEN = ("/tserve/livez", "/tserve/docs", "/tserve/openapi.json", "/api-description", "/nowhere")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browsers")
    (store := folder / "store").mkdir()
    config = ["worker_start=fresh", "allowed_hosts=models.example,.svc.local"]
    with running(Server(folder / "server", store, config)) as server:
        yield server


def reason(answer: Answer) -> str | None:
    if answer.status != 403:
        return None
    assert answer.json["type"] == "ForbiddenException"
    return str(answer.json["tserve"]["reason"])


def ask(server: Server, role: str, path: str, method: str = "GET", **headers: str) -> str | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return reason(server.call(method, path, role=role, headers=named))


@pytest.mark.parametrize("role", ROLES)
def test_a_name_that_was_bound_to_this_machine_opens_nothing(server: Server, role: str) -> None:
    """DNS rebinding: the page and the server have the same name, so the browser takes them for one origin."""
    for path in (PATHS[role], *OPEN):
        for host in (
            "rebound.example",
            f"rebound.example:{urlsplit(server.urls[role]).port}",
            "127.0.0.1.rebound.example",
        ):
            assert ask(server, role, path, Host=host) == "foreign_host"
            same_origin = {"Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
            assert ask(server, role, path, "POST", Host=host, **same_origin) == "foreign_host"


@pytest.mark.parametrize("role", ROLES)
def test_pages_from_elsewhere_are_refused_on_every_port(server: Server, role: str) -> None:
    for path in (PATHS[role], *OPEN):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(server, role, path, method, Origin="https://evil.example") == "cross_site"
            assert ask(server, role, path, method, Origin="null") == "cross_site"
        assert ask(server, role, path, Sec_Fetch_Site="cross-site") == "cross_site"
        assert ask(server, role, path, Sec_Fetch_Site="same-site") == "cross_site"


def test_a_page_cannot_register_a_model(server: Server) -> None:
    """A form may post to any address without asking first."""
    form = {"Origin": "https://evil.example", "Content-Type": "text/plain", "Sec-Fetch-Mode": "no-cors"}
    answer = server.call("POST", "/models", headers=form, body=b"x", url="https://evil.example/model.mar")
    assert reason(answer) == "cross_site"
    assert "cors_allowed_origin" in answer.text
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}
    answer = server.call("OPTIONS", "/models/m", headers=preflight)
    assert reason(answer) == "cross_site"
    assert "access-control-allow-origin" not in answer.headers
    assert server.models() == {}


@pytest.mark.parametrize("role", ROLES)
def test_clients_and_own_pages_are_served(server: Server, role: str) -> None:
    port = urlsplit(server.urls[role]).port
    for host in (f"127.0.0.1:{port}", "localhost", f"[::1]:{port}", "models.example", "a.svc.local:80", "10.0.0.7"):
        assert ask(server, role, PATHS[role], Host=host) is None
        assert ask(server, role, PATHS[role], Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin") is None
        assert ask(server, role, PATHS[role], Host=host, Sec_Fetch_Site="none") is None


@pytest.mark.parametrize("role", ROLES)
def test_http2_is_judged_alike(server: Server, role: str) -> None:
    """Prior knowledge of HTTP/2; browsers have it over TLS."""
    for authority, more, status in (
        ("rebound.example", {}, 403),
        ("localhost", {}, 200),
        ("localhost", {"origin": "https://evil.example"}, 403),
    ):
        assert http2_status(server, role, PATHS[role], authority, more) == status, (authority, more)


def http2_status(server: Server, role: str, path: str, authority: str, more: dict[str, str]) -> int:
    url = urlsplit(server.urls[role])
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    pseudo = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", authority)]
    connection.send_headers(1, [*pseudo, *more.items()], end_stream=True)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as sock:
        sock.sendall(connection.data_to_send())
        while data := sock.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    return int(dict(event.headers or ())[b":status"])
    raise AssertionError("no answer")


def test_without_http_1_1_there_is_no_host_and_no_browser(server: Server) -> None:
    url = urlsplit(server.urls["inference"])
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as sock:
        sock.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
        assert sock.makefile("rb").read().split()[1] == b"200"


def test_an_absolute_target_is_no_way_round(server: Server) -> None:
    url = urlsplit(server.urls["inference"])
    for target, host, status in (
        ("http://rebound.example/ping", "localhost", b"404"),
        ("http://localhost/ping", "rebound.example", b"403"),
    ):
        with socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as sock:
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert sock.makefile("rb").read().split()[1] == status


# -- CORS


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """To the pages of one origin; with tokens, which preflights never have."""
    folder = tmp_path_factory.mktemp("cors")
    (store := folder / "store").mkdir()
    cors = [
        "cors_allowed_origin=https://app.example",
        "cors_allowed_methods=GET, PUT",
        "cors_allowed_headers=Authorization",
    ]
    config = ["worker_start=fresh", "disable_token_authorization=false", *cors]
    with running(Server(folder / "server", store, config)) as server:
        yield server


def test_cors_opens_the_server_to_its_origin(open_server: Server) -> None:
    allowed = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    preflight = {**allowed, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    answer = open_server.call("OPTIONS", "/models/m", headers=preflight)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://app.example")
    assert answer.headers["access-control-allow-headers"] == "Authorization"
    answer = open_server.call("GET", "/models", headers=allowed)
    assert (answer.status, answer.json["type"]) == (400, "InvalidKeyException")
    assert answer.headers["access-control-allow-origin"] == "https://app.example", "on errors, too, as upstream"


def test_cors_opens_it_to_no_other(open_server: Server) -> None:
    for origin in ("https://evil.example", "https://app.example.evil", "http://app.example", "null"):
        assert ask(open_server, "management", "/models", Origin=origin) == "cross_site"
        preflight = {"Origin": origin, "Access_Control_Request_Method": "PUT"}
        assert ask(open_server, "management", "/models", "OPTIONS", **preflight) == "cross_site"
    assert ask(open_server, "management", "/models", Host="app.example") == "foreign_host"
