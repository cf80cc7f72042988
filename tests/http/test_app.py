"""What every answer of a port has, whatever the route: headers, limits, keep-alive, and errors nobody foresaw."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.http.client import Client
from tests.http.stack import start_app
from tserve.errors import BadRequest, InternalServer
from tserve.http.app import HEADER_LIMIT, REQUEST_LINE_LIMIT
from tserve.http.operations import Operation
from tserve.http.render import json_reply
from tserve.http.routes import ANY, Call, Reply, Route

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
COMMON = [
    ("pragma", "no-cache"),
    ("cache-control", "no-cache; no-store, must-revalidate, private"),
    ("expires", "Thu, 01 Jan 1970 00:00:00 UTC"),
]
CORS = (
    ("access-control-allow-origin", "https://example.org"),
    ("access-control-allow-methods", "GET, POST, PUT, OPTIONS"),
    ("access-control-allow-headers", "X-Custom-Header"),
)
LIMIT = 1000
INVALID = {"code": 400, "type": "BadRequestException", "message": "Invalid HTTP message."}


async def seen(call: Call) -> Reply:
    """Tells what a handler of a route gets."""
    body = await call.body()
    shown = {
        "method": call.method,
        "args": call.args,
        "rest": call.rest,
        "query": call.query.pairs(),
        "headers": call.headers,
        "body": body.decode("latin-1"),
        "actor": call.actor,
        "id": call.request_id,
    }
    return json_reply(200, shown)


async def bodiless(call: Call) -> Reply:
    return Reply(200, b"not read")


async def bug(call: Call) -> Reply:
    raise ZeroDivisionError("a bug")


async def bug_in_a_nursery(call: Call) -> Reply:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bug, call)
    raise AssertionError


async def refused(call: Call) -> Reply:
    raise BadRequest("No.", cause={"field": "x", "value": "\u6a21", "allowed": ["a"]})


async def failed(call: Call) -> Reply:
    raise InternalServer("Worker died.", code=507)


ABOUT = Operation(id="live", tag="", summary="", answers={}, free_query="Any.", shown=("GET",))
TABLE = [
    Route(ANY, "/seen/{name}/...", seen, ABOUT),
    Route(frozenset({"GET"}), "/bodiless", bodiless, ABOUT),
    Route(ANY, "/bug", bug, ABOUT),
    Route(ANY, "/bug-in-a-nursery", bug_in_a_nursery, ABOUT),
    Route(ANY, "/refused", refused, ABOUT),
    Route(ANY, "/failed", failed, ABOUT),
]


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Client]:
    async with trio.open_nursery() as nursery:
        yield await start_app(nursery, [TABLE], **{"max_request_size": LIMIT, **options})
        nursery.cancel_scope.cancel()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        yield client


# ---- headers


async def test_headers_of_a_success(client: Client) -> None:
    answer = await client.get("/seen/x")
    assert answer.status == 200
    assert UUID4.fullmatch(answer.header("x-request-id") or "")
    assert answer.headers == [
        ("content-type", "application/json"),
        ("x-request-id", answer.json["id"]),
        *COMMON,
        ("content-length", str(len(answer.body))),
        ("connection", "keep-alive"),
    ]


async def test_headers_of_an_error(client: Client) -> None:
    answer = await client.get("/refused")
    assert answer.status == 400
    assert UUID4.fullmatch(answer.header("x-request-id") or "")
    assert answer.headers == [
        ("content-type", "application/json"),
        ("x-request-id", answer.header("x-request-id")),
        *COMMON,
        ("content-length", str(len(answer.body))),
        ("connection", "close"),
    ]
    assert answer.body.decode() == (
        '{\n  "code": 400,\n  "type": "BadRequestException",\n  "message": "No.",\n  "tserve": {\n'
        '    "field": "x",\n    "value": "\u6a21",\n    "allowed": [\n      "a"\n    ]\n  }\n}\n'
    )


async def test_the_clients_request_id_is_ignored(client: Client) -> None:
    for target in ("/seen/x", "/refused"):
        ids = {(await client.ask("GET", target, None, [("X-Request-Id", "mine")])).header("x-request-id")}
        ids.add((await client.get(target)).header("x-request-id"))
        assert len(ids) == 2
        assert "mine" not in ids


@pytest.mark.parametrize("cors", [(), CORS[:1], CORS])
async def test_cors_headers_stand_on_every_answer(cors: tuple[tuple[str, str], ...]) -> None:
    """Errors included, before the common ones; there is no preflight handling."""
    async with serving(cors=cors) as client:
        for method, target in (("GET", "/seen/x"), ("GET", "/refused"), ("GET", "/nowhere"), ("GET", "/bug")):
            answer = await client.ask(method, target)
            at = answer.names.index("x-request-id") + 1
            assert answer.headers[at : at + len(cors) + 1] == [*cors, COMMON[0]]
        answer = await client.ask("OPTIONS", "/bodiless", None, [("Origin", "http://localhost")])
        assert answer.status == 405


# ---- what a route's handler gets


async def test_a_call(client: Client) -> None:
    answer = await client.ask(
        "POST", "/seen/a%20b/c//d/?x=1&x=2;y=%C3%A9", b"\xff\x00", [("X-Twice", "1"), ("X-Twice", "2")]
    )
    shown = answer.json
    assert shown["method"] == "POST"
    assert shown["args"] == {"name": "a b"}
    assert shown["rest"] == ["c", "", "d"]
    assert shown["query"] == {"x": "1", "y": "\u00e9"}
    assert shown["body"] == "\xff\x00"
    assert shown["actor"] == "127.0.0.1"
    assert shown["id"] == answer.header("x-request-id")
    assert [value for name, value in shown["headers"] if name.lower() == "x-twice"] == ["1", "2"]


async def test_header_names_keep_the_clients_spelling(client: Client) -> None:
    """Handlers look them up case-sensitively (spec/inference.md section 2)."""
    answer = await client.ask("GET", "/seen/x", None, [("X-CamelCase", "1"), ("x-lower", "2")])
    assert [name for name, _ in answer.json["headers"]] == ["Host", "X-CamelCase", "x-lower"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
async def test_methods_reach_routes_that_take_any(client: Client, method: str) -> None:
    answer = await client.ask(method, "/seen/x", b"body")
    assert (answer.json["method"], answer.json["body"]) == (method, "body")


async def test_head(client: Client) -> None:
    """Headers as of the method that it stands for, and no body; 405 where only GET is known."""
    async with client.connect() as connection:
        answer = await connection.ask("HEAD", "/seen/x")
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.header("content-length") or 0) > 0
        answer = await connection.ask("HEAD", "/bodiless")
        assert (answer.status, answer.body) == (405, b"")
        assert await connection.ended()


# ---- paths


@pytest.mark.parametrize(
    ("host", "status"),
    [("a" * 300, 403), ("a..b", 403), ("", 200), (":::", 403), ('"><b>', 403), ("[::1", 403), ("\xe9", 403)],
)
async def test_any_host_header(client: Client, host: str, status: int) -> None:
    """Quart's own router, which is not used, would not take a name with a label of more than 63 characters."""
    async with client.connect() as connection:
        answer = await connection.raw("GET", f"GET /bodiless HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
    assert answer.status == status


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/nowhere", 404),
        ("BREW", "/nowhere", 404),
        ("GET", "/seen", 404),
        ("GET", "/Bodiless", 404),
        ("POST", "/bodiless", 405),
        ("OPTIONS", "/bodiless", 405),
        ("GET", "/bodiless/", 200),
        ("GET", "/bodiless//", 200),
        ("GET", "//bodiless", 404),
        ("GET", "/", 405),
        ("POST", "//", 405),
        ("OPTIONS", "/", 200),
        ("GET", "/api-description", 200),
        ("DELETE", "/api-description/", 200),
        ("GET", "/api-description/x", 404),
        ("OPTIONS", "*", 404),
        ("GET", "http://h/bodiless", 404),
        ("GET", "/bodiless/%zz", 400),
        ("GET", "/bodiless?x=%", 400),
        ("GET", "/static/x", 404),
        ("GET", "/favicon.ico", 404),
        ("GET", "/bodiless/../bodiless", 404),
    ],
)
async def test_paths(client: Client, method: str, target: str, status: int) -> None:
    """Our own tables decide: nothing is redirected, merged, served from a folder or answered by the framework."""
    answer = await client.ask(method, target)
    assert answer.status == status
    if status == 404:
        assert answer.json == {
            "code": 404,
            "type": "ResourceNotFoundException",
            "message": "Requested resource is not found, please refer to API document.",
        }
    if status == 405:
        assert answer.json["message"] == "Requested method is not allowed, please refer to API document."
        assert answer.header("allow") is None


# ---- limits


def target_of_line(length: int, *, query: bool) -> str:
    """A target that makes the request line `GET … HTTP/1.1` that long."""
    filling = length - len("GET  HTTP/1.1")
    return "/bodiless?x=".ljust(filling, "a") if query else "/nowhere/".ljust(filling, "a")


@pytest.mark.parametrize("query", [False, True])
async def test_the_length_of_the_request_line(client: Client, query: bool) -> None:
    answer = await client.get(target_of_line(REQUEST_LINE_LIMIT, query=query))
    assert answer.status == (200 if query else 404)
    answer = await client.get(target_of_line(REQUEST_LINE_LIMIT + 1, query=query))
    assert (answer.status, {key: answer.json[key] for key in INVALID}) == (400, INVALID)
    assert answer.json["tserve"]["reason"] == "too_long"


@pytest.mark.parametrize("split", [1, 20])
async def test_the_length_of_the_headers(client: Client, split: int) -> None:
    """All of them together."""

    def headers(length: int) -> list[tuple[str, str]]:
        rest = length - len("Host: localhost\r\n")
        each = [rest // split] * (split - 1)
        return [(f"x-{n:02}", "a" * (size - len("x-00: \r\n"))) for n, size in enumerate([*each, rest - sum(each)])]

    assert (await client.ask("GET", "/bodiless", None, headers(HEADER_LIMIT))).status == 200
    answer = await client.ask("GET", "/bodiless", None, headers(HEADER_LIMIT + 1))
    assert (answer.status, {key: answer.json[key] for key in INVALID}) == (400, INVALID)


@pytest.mark.parametrize(
    "head",
    [
        b"garbage\r\n\r\n",
        b"GET /bodiless\r\n\r\n",
        b"GET /bodiless HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /bodiless HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
        b"GET /bod\x01iless HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /bodiless HTTP/1.1\r\nHost: localhost\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_not_http(client: Client, head: bytes) -> None:
    async with client.connect() as connection:
        answer = await connection.raw("GET", head)
        assert (answer.status, {key: answer.json[key] for key in INVALID}) == (400, INVALID)
        assert UUID4.fullmatch(answer.header("x-request-id") or "")
        assert [(n, v) for n, v in answer.headers if n in dict(COMMON)] == COMMON
        assert answer.header("connection") == "close"


TOO_LARGE = {
    "code": 413,
    "type": "PayloadTooLargeException",
    "message": f"Request body is larger than max_request_size, {LIMIT} bytes.",
}


async def test_the_size_of_a_body(client: Client) -> None:
    answer = await client.post("/seen/x", b"a" * LIMIT)
    assert len(answer.json["body"]) == LIMIT
    answer = await client.post("/seen/x", b"a" * (LIMIT + 1))
    assert (answer.status, answer.json) == (413, TOO_LARGE)
    assert answer.header("connection") == "close"


async def test_a_declared_size_is_refused_before_the_body_comes(client: Client) -> None:
    async with client.connect() as connection:
        await connection.begin("POST", "/seen/x", [("Content-Length", str(10**12))])
        answer = await connection.answer()
        assert (answer.status, answer.json) == (413, TOO_LARGE)


async def test_a_chunked_body_is_counted(client: Client) -> None:
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413)):
        async with client.connect() as connection:
            await connection.begin("POST", "/seen/x", [("Transfer-Encoding", "chunked")])
            for start in range(0, size, 100):
                await connection.more(b"a" * min(100, size - start))
            if status == 200:
                await connection.end()
            answer = await connection.answer()
            assert answer.status == status
            assert answer.json == TOO_LARGE if status == 413 else len(answer.json["body"]) == LIMIT


async def test_a_body_that_no_route_reads(client: Client) -> None:
    """Whatever its size, the next request on the connection is served."""
    async with client.connect() as connection:
        for size in (10, LIMIT * 3):
            answer = await connection.ask("GET", "/bodiless", b"a" * size)
            assert answer.body == b"not read"
        assert (await connection.ask("GET", "/seen/x", b"b")).json["body"] == "b"


# ---- keep-alive


async def test_keep_alive_after_successes_and_close_after_errors(client: Client) -> None:
    async with client.connect() as connection:
        for _ in range(3):
            assert (await connection.ask("POST", "/seen/x", b"body")).header("connection") == "keep-alive"
        assert (await connection.ask("GET", "/refused")).header("connection") == "close"
        assert await connection.ended()


async def test_pipelined_requests(client: Client) -> None:
    """Answered in order; after an error the rest is dropped."""
    ok, bad = b"GET /bodiless HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /refused HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with await trio.open_tcp_stream(*client.address) as stream:
        await stream.send_all(ok + ok + bad + ok)
        data = b""
        with trio.fail_after(20):
            while chunk := await stream.receive_some():
                data += chunk
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"200", b"400"]


@pytest.mark.parametrize(
    ("version", "header"), [("HTTP/1.1", "Connection: close"), ("HTTP/1.0", "X: y"), ("HTTP/1.1", "connection: Close")]
)
async def test_clients_that_want_the_connection_closed(client: Client, version: str, header: str) -> None:
    """Honoured; the recorded server ignores it (section 12, row 21)."""
    async with client.connect() as connection:
        answer = await connection.raw("GET", f"GET /bodiless {version}\r\nHost: localhost\r\n{header}\r\n\r\n".encode())
        assert answer.body == b"not read"
        assert await connection.ended()


# ---- errors nobody foresaw


@pytest.mark.parametrize("target", ["/bug", "/bug-in-a-nursery"])
async def test_a_bug_is_answered_and_the_server_lives(
    client: Client, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    answer = await client.get(target)
    assert answer.status == 500
    assert list(answer.json) == ["code", "type", "message", "tserve"]
    assert (answer.json["code"], answer.json["type"]) == (500, "InternalServerException")
    assert answer.json["message"].startswith("Internal server error: ")
    assert answer.json["tserve"] == {"reason": "bug"}
    assert "a bug" not in answer.body.decode(), "no insides for clients"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.getMessage() == f"GET {target} failed"
    assert (await client.get("/bodiless")).status == 200


async def test_an_error_may_choose_its_status(client: Client) -> None:
    answer = await client.get("/failed")
    assert (answer.status, answer.json["code"]) == (507, 507)


async def test_a_client_that_hangs_up_cancels_its_handler_and_nothing_else() -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def wait(call: Call) -> Reply:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        client = await start_app(nursery, [[Route(ANY, "/wait", wait, ABOUT)], TABLE])
        with trio.fail_after(20):
            async with client.connect() as connection:
                await connection.begin("GET", "/wait")
                await started.wait()
            await cancelled.wait()
        assert (await client.get("/bodiless")).status == 200
        nursery.cancel_scope.cancel()


async def test_many_clients_at_once(client: Client) -> None:
    async def one(number: int) -> None:
        answer = await client.post(f"/seen/{number}", str(number).encode())
        assert (answer.json["args"]["name"], answer.json["body"]) == (str(number), str(number))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)


# -- cross-origin requests


async def test_a_preflight_is_answered_where_cors_is_configured(nursery: trio.Nursery) -> None:
    cors = (("access-control-allow-origin", "https://example.org"), ("access-control-allow-methods", "PUT"))
    asks = [("Origin", "https://example.org"), ("Access-Control-Request-Method", "PUT")]
    client = await start_app(nursery, [[]], cors=cors)
    for target in ("/", "/models/m", "/predictions/m", "/nowhere"):
        answer = await client.ask("OPTIONS", target, headers=asks)
        assert (answer.status, answer.header("content-type")) == (200, "application/json")
        assert answer.header("access-control-allow-origin") == "https://example.org"
    assert (await client.ask("OPTIONS", "/nowhere")).status == 404
    silent = await start_app(nursery, [[]])
    assert (await silent.ask("OPTIONS", "/nowhere", headers=asks)).status == 403
