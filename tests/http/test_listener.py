"""The listening socket's promises to good, slow, rude and departing clients, over real sockets.

Time is Trio's mock clock, so that waiting for a timeout, or for ever, takes no time; the sockets are real.
"""

from __future__ import annotations

import json
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import h2.connection
import h2.events
import pytest
import trio
from quart import request
from quart_trio import QuartTrio
from trio.testing import MockClock

from tserve.errors import PortTaken
from tserve.http.connection import GOODBYE_S, HEAD_S, KEEP_ALIVE_S, LINGER_S, STALL_S
from tserve.http.listener import Listener, invalid_message_response, serve
from tserve.net.listening import bind

DRAIN_S, HARD_S = 3.0, 2.0
NET_S = 0.005  # what the mock clock may jump over while the kernel carries bytes
MANY = 2**20 * 60
INVALID = b'{\n  "code": 400,\n  "type": "BadRequestException",\n  "message": "Invalid HTTP message."\n}\n'

Answer = tuple[bytes, list[tuple[bytes, bytes]], bytes]


@dataclass
class Bare:
    """A bare ASGI application: the handler of a path is an attribute, what was seen is remembered."""

    scopes: list[dict] = field(default_factory=list)
    cancelled: trio.Event = field(default_factory=trio.Event)
    started: trio.Event = field(default_factory=trio.Event)
    proceed: trio.Event = field(default_factory=trio.Event)
    lifespan: list[str] = field(default_factory=list)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.live(receive, send)
        self.scopes.append(scope)
        return await getattr(self, scope["path"].lstrip("/"))(receive, send)

    async def live(self, receive, send):
        for what in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{what}"
            self.lifespan.append(what)
            await send({"type": f"lifespan.{what}.complete"})

    async def ok(self, receive, send):
        await answer(send, 200, b"ok")

    async def read(self, receive, send):
        got, more = 0, True
        while more:
            message = await receive()
            got, more = got + len(message["body"]), message["more_body"]
        await answer(send, 200, str(got).encode())

    async def refuse(self, receive, send):
        await answer(send, 413, b"too large", (b"connection", b"close"))

    async def refuse_late(self, receive, send):
        await self.proceed.wait()
        await self.refuse(receive, send)

    async def wait(self, receive, send):
        self.started.set()
        try:
            await self.proceed.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        await answer(send, 200, b"waited")

    async def body_then_wait(self, receive, send):
        await receive()
        await self.wait(receive, send)

    async def many(self, receive, send):
        self.started.set()
        await answer(send, 200, bytes(MANY))

    async def endless(self, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.started.set()
        while True:
            await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})

    async def stubborn(self, receive, send):
        with trio.CancelScope(shield=True):
            await self.many(receive, send)

    async def broken(self, receive, send):
        raise ValueError("a bug")


async def answer(send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> Bare:
    return Bare()


@dataclass
class Server:
    address: tuple[str, int]
    shutdown: trio.Event
    ended: trio.Event

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.address)

    async def ask(self, data: bytes) -> Answer:
        async with await self.connect() as stream:
            await stream.send_all(data)
            return await Reader(stream).answer()


class Reader:
    """Reads answers with a content-length, and the end, from a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = b""

    async def answer(self) -> Answer:
        while b"\r\n\r\n" not in self._data:
            self._data += await self._some()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        headers = [tuple(line.split(b": ", 1)) for line in lines]
        length = int(dict(headers)[b"content-length"])
        while len(self._data) < length:
            self._data += await self._some()
        body, self._data = self._data[:length], self._data[length:]
        return status, headers, body

    async def end(self) -> None:
        assert self._data == b""
        assert await self._stream.receive_some() == b""

    async def _some(self) -> bytes:
        data = await self._stream.receive_some()
        assert data, "the server hung up"
        return bytes(data)


class Http2:
    """A client that speaks HTTP/2 from the start."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._connection = h2.connection.H2Connection()
        self._connection.initiate_connection()

    async def send(self, *headers: tuple[str, str]) -> None:
        """Send the preface and, if there are headers, a request with them."""
        if headers:
            self._connection.send_headers(1, [*headers, (":authority", "x")], end_stream=True)
        await self._stream.send_all(self._connection.data_to_send())

    async def get(self, path: str) -> None:
        await self.send((":method", "GET"), (":path", path), (":scheme", "http"))

    async def body(self) -> bytes:
        """The whole body of the answer; fails if its stream does not end."""
        body = b""
        while data := await self._stream.receive_some():
            for event in self._connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    return body
        raise AssertionError("the server hung up")


@asynccontextmanager
async def serving(
    app: object, drain_s: float = DRAIN_S, hard_s: float = HARD_S, **limits: int
) -> AsyncIterator[Server]:
    sock = bind("127.0.0.1", 0)
    server = Server(sock.getsockname(), trio.Event(), trio.Event())

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        times = {"drain_s": drain_s, "hard_s": hard_s}
        await serve(app, sock, shutdown=server.shutdown, task_status=task_status, **times, **limits)
        server.ended.set()

    with trio.fail_after(KEEP_ALIVE_S * 4):
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            yield server
            server.shutdown.set()


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def post(path: str, body: bytes, *fields: str) -> bytes:
    return get(path, f"Content-Length: {len(body)}", *fields).replace(b"GET", b"POST") + body


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    autojump_clock.autojump_threshold = NET_S
    return autojump_clock


# --- good clients


async def test_an_answer_carries_only_what_the_application_said(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server:
        status, headers, body = await server.ask(get("/ok"))
    assert (status, headers, body) == (b"HTTP/1.1 200 OK", [(b"content-length", b"2")], b"ok")


async def test_a_connection_serves_many_requests(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        reader = Reader(stream)
        for length in range(1200):  # Hypercorn would close after 1000
            await stream.send_all(post("/read", bytes(length % 50)))
            assert (await reader.answer())[2] == str(length % 50).encode()


async def test_pipelined_requests_are_answered_in_order(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        reader = Reader(stream)
        await stream.send_all(b"".join(post("/read", bytes(n)) for n in range(100)) + get("/ok"))
        assert [(await reader.answer())[2] for _ in range(101)] == [*(b"%d" % n for n in range(100)), b"ok"]


async def test_a_large_body_is_read(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server:
        assert (await server.ask(post("/read", bytes(2**20))))[2] == b"1048576"
        chunked = get("/read", "Transfer-Encoding: chunked").replace(b"GET", b"POST")
        chunked += (b"10000\r\n" + bytes(2**16) + b"\r\n") * 16 + b"0\r\n\r\n"
        assert (await server.ask(chunked))[2] == b"1048576"


async def test_expect_is_answered(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(post("/read", b"", "Content-Length: 5", "Expect: 100-continue").replace(b"h: 0", b"h: 5"))
        assert await stream.receive_some() == b"HTTP/1.1 100 \r\n\r\n"
        await stream.send_all(b"hello")
        assert (await Reader(stream).answer())[2] == b"5"


async def test_a_request_without_host_is_served(app: Bare, clock: MockClock) -> None:
    """Recorded: routes.management-no-host."""
    async with serving(app) as server, await server.connect() as stream:
        reader = Reader(stream)
        await stream.send_all(
            b"GET /ok HTTP/1.1\r\n\r\n" + post("/read", b"\r\n\r\n") + b"GET /ok HTTP/1.1\r\nA: b\r\n\r\n"
        )
        assert [(await reader.answer())[2] for _ in range(3)] == [b"ok", b"4", b"ok"]
    assert [dict(scope["headers"])[b"Host"] for scope in app.scopes] == [b"", b"x", b""]


async def test_a_websocket_upgrade_is_served_as_the_request_it_also_is(app: Bare, clock: MockClock) -> None:
    upgrade = get(
        "/ok",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    async with serving(app) as server:
        assert (await server.ask(upgrade))[0] == b"HTTP/1.1 200 OK"
    assert app.scopes[0]["type"] == "http"
    assert [name for name, _ in app.scopes[0]["headers"]] == [
        b"Host",
        b"Connection",
        b"Sec-WebSocket-Version",
        b"Sec-WebSocket-Key",
    ]


async def test_http2_is_served(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        client = Http2(stream)
        await client.get("/ok")
        assert await client.body() == b"ok"


async def test_the_lifespan_surrounds_the_connections(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server:
        assert app.lifespan == ["startup"]
    await server.ended.wait()
    assert app.lifespan == ["startup", "shutdown"]


async def no_lifespan(scope, receive, send):
    if scope["type"] == "http":
        await answer(send, 200, b"ok")


async def refuses_lifespan(scope, receive, send):
    assert scope["type"] == "http"
    await answer(send, 200, b"ok")


@pytest.mark.parametrize("app", [no_lifespan, refuses_lifespan])
async def test_an_application_may_do_without_a_lifespan(
    app: object, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    async with serving(app) as server:
        assert (await server.ask(get("/ok")))[2] == b"ok"
    await server.ended.wait()
    assert {record.name for record in caplog.records} <= {"tserve.http"}


async def never_down(scope, receive, send):
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
    await trio.sleep_forever()


async def test_the_end_of_the_lifespan_is_bounded_too(clock: MockClock) -> None:
    async with serving(never_down, drain_s=100) as server:
        start = trio.current_time()
        server.shutdown.set()
        await server.ended.wait()
        assert trio.current_time() - start == pytest.approx(100 + HARD_S, abs=1)


# --- what is not HTTP

NOT_HTTP = {
    "garbage": b"NOT A REQUEST\r\n\r\n",
    "length": b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    "coding": b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "header bytes": b"GET /ok HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    "two hosts": b"GET /ok HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "endless head": b"GET /ok HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000,
    "TLS": bytes.fromhex("1603010200010001fc0303"),
    "chunk": post("/read", b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"") + b"zz\r\n",
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_what_is_not_http_gets_the_error_object(app: Bare, data: bytes, clock: MockClock) -> None:
    """Recorded: routes.management-invalid-http, routes.management-bad-content-length."""
    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(data)
        reader = Reader(stream)
        status, headers, body = await reader.answer()
        await reader.end()
    assert (status, body) == (b"HTTP/1.1 400 Bad Request", INVALID)
    assert uuid.UUID(dict(headers)[b"x-request-id"].decode()).version == 4
    assert [pair for pair in headers if pair[0] != b"x-request-id"] == [
        (b"content-type", b"application/json"),
        (b"pragma", b"no-cache"),
        (b"cache-control", b"no-cache; no-store, must-revalidate, private"),
        (b"expires", b"Thu, 01 Jan 1970 00:00:00 UTC"),
        (b"content-length", str(len(INVALID)).encode()),
        (b"connection", b"close"),
    ]


async def test_half_a_request_and_a_half_closed_connection_get_the_error_object(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(b"GET /ok HT")
        await stream.send_eof()
        assert (await Reader(stream).answer())[2] == INVALID


def test_the_invalid_message_answer_is_for_the_application_too() -> None:
    status, headers, body = invalid_message_response()
    assert (status, json.loads(body)["message"]) == (400, "Invalid HTTP message.")
    assert headers[1] != invalid_message_response()[1][1]


# --- rude clients, broken applications


@pytest.mark.parametrize("end", [b"", b"0\r\n\r\n"], ids=["declared", "chunked"])
async def test_a_refusal_is_readable_though_the_body_is_not_read(app: Bare, end: bytes, clock: MockClock) -> None:
    """Closing on unread bytes would reset the connection and the client lose the answer."""
    size = 2**20 * 8
    head = get("/refuse", "Transfer-Encoding: chunked" if end else f"Content-Length: {size}")
    body = b"%x\r\n" % size + bytes(size) + b"\r\n" if end else bytes(size)
    async with serving(app) as server:
        status, _, text = await server.ask(head + body + end)
    assert (status, text) == (b"HTTP/1.1 413 Request Entity Too Large", b"too large")


async def test_a_refusal_is_readable_though_nobody_read_the_body_for_long(app: Bare, clock: MockClock) -> None:
    """By then every buffer on the way to the application is full."""
    async with serving(app) as server, await server.connect() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, post("/refuse_late", bytes(2**20 * 16)))
        await trio.sleep(1)
        app.proceed.set()
        assert (await Reader(stream).answer())[2] == b"too large"


async def test_lingering_ends(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(get("/refuse", "Content-Length: 100"))
        assert (await Reader(stream).answer())[2] == b"too large"
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"x")
                await trio.sleep(LINGER_S / 20)
        assert trio.current_time() - start == pytest.approx(LINGER_S, abs=1)


async def test_an_error_of_the_application_is_logged_and_answered(
    app: Bare, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    async with serving(app) as server:
        assert (await server.ask(get("/broken")))[0] == b"HTTP/1.1 500 Internal Server Error"
        assert (await server.ask(get("/ok")))[2] == b"ok"
    assert [(record.name, record.levelno) for record in caplog.records] == [("tserve.http", logging.ERROR)]


async def test_an_error_in_the_protocol_closes_that_connection_only(
    app: Bare, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    """Hypercorn has no path for a CONNECT without one."""
    async with serving(app) as server, await server.connect() as good, await server.connect() as bad:
        await good.send_all(get("/wait"))
        await app.started.wait()
        await Http2(bad).send((":method", "CONNECT"))
        await everything(bad)
        app.proceed.set()
        assert (await Reader(good).answer())[2] == b"waited"
    assert [(record.name, record.levelno) for record in caplog.records] == [("tserve.http", logging.WARNING)]


async def test_a_silent_connection_is_closed(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        start = trio.current_time()
        await Reader(stream).end()
        assert trio.current_time() - start == pytest.approx(KEEP_ALIVE_S, abs=1)


async def test_an_http2_connection_without_a_request_is_closed(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        await Http2(stream).send()
        start = trio.current_time()
        await everything(stream)
        assert trio.current_time() - start == pytest.approx(KEEP_ALIVE_S, abs=1)


async def test_an_idle_connection_is_closed_later_than_a_silent_one(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        await trio.sleep(KEEP_ALIVE_S / 2)
        await stream.send_all(get("/ok"))
        reader = Reader(stream)
        await reader.answer()
        start = trio.current_time()
        await reader.end()
        assert trio.current_time() - start == pytest.approx(KEEP_ALIVE_S, abs=1)


async def test_a_dribbled_head_is_cut(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            for byte in get("/ok", "X: " + "y" * 200):
                await stream.send_all(bytes([byte]))
                await trio.sleep(HEAD_S / 50)
        assert trio.current_time() - start == pytest.approx(HEAD_S, abs=1)


async def test_a_body_that_stops_is_cut_and_one_that_goes_on_is_not(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(post("/read", b"123", "Content-Length: 6").replace(b"Content-Length: 3\r\n", b""))
        for byte in b"45":
            await trio.sleep(STALL_S - 1)
            await stream.send_all(bytes([byte]))
        start = trio.current_time()
        await Reader(stream).end()
        assert trio.current_time() - start == pytest.approx(STALL_S, abs=1)


async def test_a_new_connection_takes_the_place_of_an_idle_one(app: Bare, clock: MockClock) -> None:
    async with serving(app, most_connections=3) as server, AsyncExitStack() as open_ones:
        first, second, third = [await open_ones.enter_async_context(await server.connect()) for _ in range(3)]
        for stream in (second, third, first):  # the second one has been idle for longest
            await stream.send_all(get("/ok"))
            assert (await Reader(stream).answer())[2] == b"ok"
            await trio.sleep(1)
        assert (await server.ask(get("/ok")))[2] == b"ok"
        assert await second.receive_some() == b""
        for stream in (first, third):
            await stream.send_all(get("/ok"))
            assert (await Reader(stream).answer())[2] == b"ok"


async def test_connections_that_are_at_work_keep_their_places(app: Bare, clock: MockClock) -> None:
    async with serving(app, most_connections=1) as server, await server.connect() as busy:
        await busy.send_all(get("/wait"))
        await app.started.wait()
        start, _, body = await server.ask(get("/ok"))
        assert start == b"HTTP/1.1 503 Service Unavailable"
        error = json.loads(body)
        assert error["type"] == "ServiceUnavailableException"
        assert error["tserve"]["reason"] == "too_many_connections"
        app.proceed.set()
        assert (await Reader(busy).answer())[0] == b"HTTP/1.1 200 OK"
        await busy.aclose()
        assert (await server.ask(get("/ok")))[2] == b"ok"


async def test_a_long_answer_time_is_no_stall(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        message = post("/body_then_wait", b"123")
        await stream.send_all(message[:-1])
        await app.started.wait()
        await stream.send_all(message[-1:])
        await trio.sleep(KEEP_ALIVE_S + STALL_S - 1)
        app.proceed.set()
        assert (await Reader(stream).answer())[2] == b"waited"


async def test_a_client_that_does_not_read_is_cut(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        start = trio.current_time()
        await stream.send_all(get("/many"))
        await trio.sleep(STALL_S + 1)
        assert len(await everything(stream)) < MANY
        assert trio.current_time() - start == pytest.approx(STALL_S + 1, abs=1)


async def everything(stream: trio.SocketStream) -> bytes:
    """All that comes before the end, be it a reset."""
    data = bytearray()
    try:
        while some := await stream.receive_some():
            data += some
    except trio.BrokenResourceError:
        pass
    return bytes(data)


# --- departing clients


async def half_close(stream: trio.SocketStream) -> None:
    await stream.send_eof()


@pytest.mark.parametrize("leave", [trio.SocketStream.aclose, half_close], ids=["close", "half close"])
@pytest.mark.parametrize("behind", [b"", get("/ok")], ids=["alone", "pipelined"])
async def test_a_client_that_leaves_cancels_its_request(
    app: Bare, behind: bytes, leave: Callable[[trio.SocketStream], Awaitable[None]], clock: MockClock
) -> None:
    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(get("/wait") + behind)
        await app.started.wait()
        await leave(stream)
        await app.cancelled.wait()
        assert not server.shutdown.is_set()


async def test_a_client_that_leaves_cancels_a_quart_handler(clock: MockClock) -> None:
    app, started, cancelled = QuartTrio(__name__), trio.Event(), trio.Event()

    @app.post("/wait")
    async def wait() -> str:
        assert await request.get_data() == b"body"
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(post("/wait", b"body"))
        await started.wait()
        await stream.aclose()
        await cancelled.wait()
        assert not server.shutdown.is_set()


async def test_quart_reads_and_refuses_bodies(clock: MockClock) -> None:
    app = QuartTrio(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 2**20

    @app.post("/read")
    async def read() -> str:
        return str(len(await request.get_data()))

    async with serving(app) as server:
        assert (await server.ask(post("/read", bytes(2**20))))[2] == b"1048576"
        assert (await server.ask(post("/read", bytes(2**23))))[0] == b"HTTP/1.1 413 Request Entity Too Large"


async def test_quart_connections_stay_and_time_out(clock: MockClock) -> None:
    """Quart-Trio cancels its request's tasks at the last byte; Hypercorn's own idle timer then never starts."""
    app = QuartTrio(__name__)

    @app.get("/ok")
    async def ok() -> str:
        return "ok"

    async with serving(app) as server, await server.connect() as stream:
        reader = Reader(stream)
        for _ in range(3):
            await stream.send_all(get("/ok"))
            assert (await reader.answer())[2] == b"ok"
        start = trio.current_time()
        await reader.end()
        assert trio.current_time() - start == pytest.approx(KEEP_ALIVE_S, abs=1)


# --- shutdown


async def test_shutdown_closes_idle_connections_at_once(app: Bare, clock: MockClock) -> None:
    async with (
        serving(app) as server,
        await server.connect() as silent,
        await server.connect() as idle,
        await server.connect() as half,
    ):
        await idle.send_all(get("/ok"))
        await Reader(idle).answer()
        await half.send_all(b"GET /half HT")
        await trio.sleep(1)
        start = trio.current_time()
        server.shutdown.set()
        assert [await everything(stream) for stream in (silent, idle, half)] == [b"", b"", b""]
        await server.ended.wait()
        assert trio.current_time() - start < 1


async def test_shutdown_refuses_new_connections_and_lets_requests_finish(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(get("/wait"))
        await app.started.wait()
        server.shutdown.set()
        with pytest.raises(OSError, match="all attempts to connect"):
            while True:
                await (await server.connect()).aclose()
        app.proceed.set()
        start = trio.current_time()
        reader = Reader(stream)
        assert (await reader.answer())[2] == b"waited"
        await reader.end()
        await server.ended.wait()
        assert trio.current_time() - start < 0.5
    assert not app.cancelled.is_set()


async def test_shutdown_cancels_requests_when_the_drain_is_over(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(get("/wait"))
        await app.started.wait()
        start = trio.current_time()
        server.shutdown.set()
        assert await everything(stream) == b""
        await server.ended.wait()
        assert trio.current_time() - start == pytest.approx(DRAIN_S, abs=1)
    assert app.cancelled.is_set()


@pytest.mark.parametrize("path", ["/many", "/endless", "/stubborn"])
async def test_shutdown_ends_though_a_client_does_not_read(app: Bare, path: str, clock: MockClock) -> None:
    """The answer's send is shielded; only closing its socket ends it."""
    async with serving(app) as server, await server.connect() as stream:
        await stream.send_all(get(path))
        await app.started.wait()
        start = trio.current_time()
        server.shutdown.set()
        await server.ended.wait()
        assert trio.current_time() - start == pytest.approx(DRAIN_S + HARD_S, abs=1)


async def test_shutdown_ends_though_a_client_dribbles(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream, trio.open_nursery() as nursery:
        await stream.send_all(get("/read", "Content-Length: 9999"))

        async def dribble() -> None:
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.2)

        nursery.start_soon(dribble)
        await trio.sleep(1)
        start = trio.current_time()
        server.shutdown.set()
        await server.ended.wait()
        assert trio.current_time() - start == pytest.approx(DRAIN_S, abs=1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pause_s", [0, 1])
async def test_shutdown_lets_http2_finish(app: Bare, pause_s: float, clock: MockClock) -> None:
    """The whole answer and the end of its stream; the client has a second to leave then."""
    async with serving(app) as server, await server.connect() as stream:
        client = Http2(stream)
        await client.get("/wait")
        await app.started.wait()
        server.shutdown.set()
        await trio.sleep(pause_s)
        start = trio.current_time()
        app.proceed.set()
        assert await client.body() == b"waited"
        await server.ended.wait()
        assert trio.current_time() - start == pytest.approx(GOODBYE_S, abs=0.5)


async def test_shutdown_gives_an_idle_http2_connection_a_moment(app: Bare, clock: MockClock) -> None:
    async with serving(app) as server, await server.connect() as stream:
        client = Http2(stream)
        await client.get("/ok")
        assert await client.body() == b"ok"
        await trio.sleep(1)
        start = trio.current_time()
        server.shutdown.set()
        await server.ended.wait()
        assert trio.current_time() - start == pytest.approx(GOODBYE_S, abs=0.5)


async def test_a_connection_handed_over_at_shutdown_is_closed(app: Bare, clock: MockClock) -> None:
    listener, shutdown, other = Listener(app), trio.Event(), bind("127.0.0.1", 0)
    shutdown.set()
    await listener.run(bind("127.0.0.1", 0), shutdown=shutdown, drain_s=DRAIN_S, hard_s=HARD_S)
    with other:
        async with await trio.open_tcp_stream(*other.getsockname()) as stream:
            start = trio.current_time()
            await listener.serve_connection(trio.SocketStream(trio.socket.from_stdlib_socket(other.accept()[0])))
            assert await stream.receive_some() == b""
            assert trio.current_time() - start < 1


async def test_cancelling_serve_ends_it_though_a_client_does_not_read(app: Bare, clock: MockClock) -> None:
    sock = bind("127.0.0.1", 0)
    async with await trio.open_tcp_stream(*sock.getsockname()) as stream:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, app, sock, shutdown=trio.Event(), drain_s=DRAIN_S, hard_s=HARD_S))
            await stream.send_all(get("/many"))
            await app.started.wait()
            start = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - start == pytest.approx(HARD_S, abs=1)


# --- bind


def test_a_taken_port_is_named() -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            bind("127.0.0.1", port)


def test_an_address_of_another_host_is_named() -> None:
    with pytest.raises(PortTaken, match=r"192\.0\.2\.1:0: Cannot assign requested address"):
        bind("192.0.2.1", 0)


def test_a_port_is_free_again_after_its_server(app: Bare) -> None:
    """A restart must not wait for old connections to time out."""
    with bind("127.0.0.1", 0) as sock:
        address = sock.getsockname()
        with socket.create_connection(address):
            sock.accept()[0].close()  # the server closes first, so the old connection lingers on its side
    bind(*address).close()


@pytest.mark.parametrize(
    ("host", "family"),
    [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("localhost", socket.AF_INET)],
)
def test_the_host_decides_the_family(host: str, family: socket.AddressFamily) -> None:
    with bind(host, 0) as sock:
        assert sock.family == family
