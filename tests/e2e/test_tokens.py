"""Tokens on the real server: every route and every gRPC method with every kind of token, keys, the command."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

import h2.connection
import h2.events
import pytest

from tests.domain.test_access import grpc_methods
from tests.e2e.archives import write
from tests.e2e.processes import tree
from tests.e2e.server import Server, eventually, running
from tests.e2e.tokens import ON, Bearer, ask, command, key, keys, named, refusal
from tests.http.tables import ROLES, all_routes
from tserve.domain.access import RULES, Scope
from tserve.http.openapi import path_of
from tserve.http.routes import AllBut, Route

SHOWS_ALL = """
import json, os

def handle(data, context):
    if data is None:
        return None
    headers = context.get_all_request_header(0)
    return [json.dumps({"headers": {str(k): str(v) for k, v in headers.items()}, "environment": dict(os.environ)})]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tokens")
    (store := folder / "store").mkdir()
    write(store, "shows.mar", SHOWS_ALL, name="shows")
    config = ["worker_start=fresh", "load_models=shows.mar", "default_workers_per_model=1", *ON]
    with running(Server(folder / "server", store, config, grpc=True)) as server:
        yield server


@pytest.fixture(scope="module")
def bearers(server: Server) -> Mapping[str, Bearer]:
    """Every kind of token there is, right and wrong, as the server knows it by now."""
    made = {
        "none": Bearer(None),
        "wrong": Bearer("Bearer wrong"),
        "unknown": Bearer("Bearer tserve_0123456789ab_" + "A" * 43),
        "no bearer": Bearer(keys(server)["management"]["key"]),
        **{f"named {scope}": named(server, f"named-{scope}", scope) for scope in Scope},
        "named all": named(server, "all", *Scope),
        "expired": named(server, "expired", *Scope, life_s=-1),
        "revoked": named(server, "revoked", *Scope),
    }
    everything = made["revoked"]
    eventually("the server knows the tokens", lambda: get(server, "management", "/models", everything) is None)
    assert command(server, "revoke", "revoked").returncode == 0
    eventually("the server knows of the end", lambda: get(server, "management", "/models", everything) is not None)
    return {**made, "revoked": Bearer(everything.header)}


KEYS = {"inference key": Scope.INFERENCE, "management key": Scope.MANAGEMENT, "api key": Scope.TOKEN}


def pick(server: Server, bearers: Mapping[str, Bearer], kind: str) -> Bearer:
    """Keys as they are now: tests renew them."""
    return key(server, KEYS[kind]) if kind in KEYS else bearers[kind]


def get(server: Server, role: str, path: str, bearer: Bearer, method: str = "GET") -> str | None:
    return refusal(server.call(method, path, role=role, headers=bearer.headers))


KINDS = [
    *("none", "wrong", "unknown", "no bearer", *KEYS),
    *(*(f"named {scope}" for scope in Scope), "named all", "expired", "revoked"),
]


def methods_of(route: Route) -> list[str]:
    return ["POST"] if isinstance(route.methods, AllBut) else sorted(route.methods)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ROLES)
def test_every_route(server: Server, bearers: Mapping[str, Bearer], role: str, kind: str) -> None:
    """Let in are those whose token has a scope of the route's, and everyone where the table says so."""
    bearer, wrong = pick(server, bearers, kind), []
    for route in all_routes([role]):
        rule = RULES[route.operation.id]
        path = path_of(route).replace("{name}", "absent").replace("{version}", "9.9")
        for method in methods_of(route):
            for query in ("", "?verbose=true"):
                let_in = rule.anyone or (rule.anyone_bare and not query) or bool(rule.scopes & bearer.scopes)
                if (get(server, role, path + query, bearer, method) is None) != let_in:
                    wrong.append((method, path + query, let_in))
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ROLES)
def test_what_there_is_not(server: Server, bearers: Mapping[str, Bearer], role: str, kind: str) -> None:
    """Unknown paths, methods and broken ones are told from each other only to those who have a token of the port."""
    bearer = pick(server, bearers, kind)
    let_in = Scope(role) in bearer.scopes
    for method, path in (("GET", "/nowhere"), ("BREW", "/models"), ("GET", "/%zz"), ("GET", "/"), ("GET", "/tserve")):
        assert (get(server, role, path, bearer, method) is None) == let_in, (method, path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("listener", ["grpc_management", "grpc_inference"])
def test_every_method_of_grpc(server: Server, bearers: Mapping[str, Bearer], listener: str, kind: str) -> None:
    bearer, wrong = pick(server, bearers, kind), []
    for name in grpc_methods()[listener]:
        rule = RULES[name]
        code, why = ask(server.urls[listener], *name.split("/"), bearer)
        let_in = rule.anyone or bool(rule.scopes & bearer.scopes)
        if (why is None) != let_in or (why is not None and code not in ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED")):
            wrong.append((name, let_in, code, why))
    assert wrong == []


def test_a_refusal_reads_nothing(server: Server) -> None:
    """It comes before the body, which may be too large as well, and the connection is closed."""
    head = "POST /predictions/shows HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n"
    url = urlsplit(server.urls["inference"])
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as connection:
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:100]
    assert b"no_token" in answer


def test_a_refusal_over_grpc_comes_with_the_first_bytes(server: Server) -> None:
    """A client that may not ask does not get as far as sending a large message."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost")]
    path = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
    connection.send_headers(1, [*pseudo, (":path", path), ("content-type", "application/grpc"), ("te", "trailers")])
    connection.send_data(1, b"\0\0\x40\0\0" + b"x" * 1000)  # of 4 MiB
    host, _, port = server.urls["grpc_inference"].rpartition(":")
    said: dict[bytes, bytes] = {}
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(connection.data_to_send())
        while b"grpc-status" not in said and (data := sock.recv(65536)):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    said |= dict(event.headers or ())
    assert said[b"grpc-status"] == b"7"


# -- keys


def test_the_key_file_is_as_recorded_and_private(server: Server) -> None:
    path = server.state / "key_file.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(keys(server)) == ["management", "inference", "API"]
    for name, entry in keys(server).items():
        assert list(entry) == (["key"] if name == "API" else ["key", "expiration time"])
        assert len(entry["key"]) == 32, "192 bits"
    assert len({entry["key"] for entry in keys(server).values()}) == 3


@pytest.mark.parametrize("scope", [Scope.INFERENCE, Scope.MANAGEMENT])
def test_a_renewed_key_ends_the_old_one(server: Server, scope: Scope) -> None:
    old, api = key(server, scope), key(server, Scope.TOKEN)
    others = {name: entry for name, entry in keys(server).items() if name != scope}
    answer = server.call("GET", "/token", headers=api.headers, type=scope.value)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"\n", "application/json")
    path = {Scope.INFERENCE: "/ping", Scope.MANAGEMENT: "/models"}[scope]
    assert get(server, scope, path, old) in ("wrong_token", "wrong_tokens")
    assert get(server, scope, path, key(server, scope)) is None
    assert {name: entry for name, entry in keys(server).items() if name != scope} == others


@pytest.mark.parametrize("query", [{}, {"type": ""}, {"type": "API"}, {"type": "Management"}, {"type": "token"}])
def test_what_cannot_be_renewed(server: Server, query: dict[str, str]) -> None:
    before = keys(server)
    answer = server.call("GET", "/token", headers=key(server, Scope.TOKEN).headers, **query)
    assert (answer.status, answer.json["type"]) == (400, "InvalidKeyException")
    assert answer.text.startswith("Token Authentication failed.")
    assert keys(server) == before


def test_only_the_very_path_renews(server: Server) -> None:
    """Upstream looks for /token anywhere in the request line and the headers."""
    before, api = keys(server), key(server, Scope.TOKEN)
    for path in ("/foo/token?type=inference", "/models?x=/token&type=inference", "/token/x?type=inference"):
        assert get(server, "management", path, api) is not None
    management = key(server, Scope.MANAGEMENT)
    answer = server.call("GET", "/models/tokenizer", headers={**management.headers, "X-Any": "/token"})
    assert (answer.status, answer.json["type"]) == (404, "ModelNotFoundException")
    assert keys(server) == before


def test_keys_end_with_their_server_and_by_their_time(tmp_path: Path, store: Path) -> None:
    config = ["worker_start=fresh", *ON, "token_expiration_min=0.005", f"key_file={tmp_path / 'keys.json'}"]
    server = Server(tmp_path / "server", store, config)
    with running(server):
        path = tmp_path / "keys.json"
        first = json.loads(path.read_text())
        bearer = Bearer(f"Bearer {first['management']['key']}")
        eventually("it has expired", lambda: get(server, "management", "/models", bearer) == "expired")
        api = Bearer(f"Bearer {first['API']['key']}")
        assert server.call("POST", "/token", headers=api.headers, type="management").status == 200
        server.restart("kill")
        second = json.loads(path.read_text())
        assert {entry["key"] for entry in first.values()}.isdisjoint(entry["key"] for entry in second.values())
        assert get(server, "management", "/token?type=inference", api) == "wrong_token"
        assert server.stop() == 0
        assert not path.exists()


def test_a_key_file_that_cannot_be_written_refuses_the_start(tmp_path: Path, store: Path) -> None:
    (tmp_path / "server" / "taken").mkdir(parents=True)
    server = Server(tmp_path / "server", store, ["worker_start=fresh", *ON, "key_file=taken/../taken/../keys/x"])
    assert server.spawn().wait(30) == 3
    assert "key_file=" in server.log()


# -- the command


def test_a_token_from_its_making_to_its_end(server: Server) -> None:
    made = command(
        server, "create", "ci.main", "--scope", "management,inference", "--scope", "metrics", "--expires", "1h"
    )
    assert made.returncode == 0, made.stderr
    text = made.stdout.strip()
    bearer = Bearer(f"Bearer {text}")
    eventually("the server knows it", lambda: get(server, "management", "/models", bearer) is None)
    assert get(server, "inference", "/ping", bearer) is None
    assert get(server, "management", "/token?type=inference", bearer) == "wrong_scope"
    twice = command(server, "create", "ci.main", "--scope", "inference")
    assert (twice.returncode, twice.stdout) == (8, "")
    listed = command(server, "list")
    assert "ci.main" in listed.stdout
    assert text.split("_")[2] not in listed.stdout
    (shown,) = [each for each in json.loads(command(server, "list", "--json").stdout) if each["name"] == "ci.main"]
    assert (shown["scopes"], shown["expired"]) == (["inference", "management", "metrics"], False)
    assert command(server, "revoke", "ci.main").returncode == 0
    eventually("the server knows of its end", lambda: get(server, "management", "/models", bearer) is not None)
    assert command(server, "revoke", "ci.main").returncode == 8


def test_tokens_may_be_made_before_the_first_start_and_outlive_servers(tmp_path: Path, store: Path) -> None:
    server = Server(tmp_path / "server", store, ["worker_start=fresh", *ON])
    server.folder.mkdir()
    for arguments in (["list"], ["revoke", "early"]):
        done = command(server, *arguments)
        assert (done.returncode, server.state.exists()) == (8, False), "a folder that was misspelt is not made"
    made = command(server, "create", "early", "--scope", "management")
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE((server.state / "state.db").stat().st_mode) == 0o600
    bearer = Bearer(f"Bearer {made.stdout.strip()}")
    with running(server):
        assert get(server, "management", "/models", bearer) is None
        server.restart("kill")
        assert get(server, "management", "/models", bearer) is None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["create", "x"], 2),
        (["create", "x", "--scope", "admin"], 2),
        (["create", "../x", "--scope", "inference"], 2),
        (["create", "a" * 65, "--scope", "inference"], 2),
        (["create", "x", "--scope", "inference", "--expires", "soon"], 2),
        (["create", "x", "--scope", "inference", "--expires", "2020-01-01"], 8),
        (["create", "x", "--scope", "inference", "--expires", "0s"], 8),
        (["revoke", "nobody"], 8),
        ([], 2),
    ],
)
def test_what_the_command_refuses(server: Server, arguments: list[str], code: int) -> None:
    done = command(server, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr


# -- secrets


def test_secrets_stay_where_they_belong(server: Server, bearers: Mapping[str, Bearer]) -> None:
    """In the key file alone: not in log, state, answers, a handler's hands or a worker's environment."""
    eventually("there is a worker", lambda: get_workers(server, bearers["named management"]))
    inference = bearers["named inference"]
    answer = server.call("POST", "/predictions/shows", role="inference", body=b"x", headers=inference.headers)
    assert answer.status == 200
    seen = answer.json
    assert "host" in {name.lower() for name in seen["headers"]}
    assert "authorization" not in {name.lower() for name in seen["headers"]}
    server.call("GET", f"/nowhere?{quote(str(inference.header))}", headers=inference.headers)
    server.call("GET", "/models/shows", headers=bearers["named management"].headers, customized=True)
    secrets = {entry["key"].encode() for entry in keys(server).values()}
    secrets |= {str(bearer.header).split()[-1].split("_", 2)[-1].encode() for bearer in bearers.values()} - {
        b"None",
        b"wrong",
    }
    places = {
        "an answer": answer.body,
        "describe": server.call("GET", "/models/shows/all", headers=bearers["named management"].headers).body,
    }
    for path in [*server.state.rglob("*"), server.folder / "server.log"]:
        if path.is_file() and path.name != "key_file.json":
            places[str(path)] = path.read_bytes()
    for pid in tree(server.pid):
        for file in ("environ", "cmdline"):
            places[f"{file} of {pid}"] = Path(f"/proc/{pid}/{file}").read_bytes()
    assert any(name.startswith("environ") for name in places)
    found = [(place, secret) for place, content in places.items() for secret in secrets if secret in content]
    assert found == []


def get_workers(server: Server, bearer: Bearer) -> bool:
    (described,) = server.call("GET", "/models/shows", headers=bearer.headers).json
    return any(worker["status"] == "READY" for worker in described["workers"])
