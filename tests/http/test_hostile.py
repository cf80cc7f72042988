"""Clients that mean harm, or are merely broken, against a server in a process of its own.

A stock Hypercorn server dies of several of these.  Run as a program, this file is that server: it serves a bare
ASGI application and a Quart-Trio one, prints their ports and stops when its standard input ends.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h2.connection
import pytest
import trio
from quart import request
from quart_trio import QuartTrio

import tserve
from tserve.http.listener import serve
from tserve.net.listening import bind

BIG = b"x" * 2**20 * 60
AT_ONCE = 3  # connections of a kind opened together: some of the crashes are races
ANSWER_S = 0.15


async def bare_app(scope, receive, send):
    if scope["type"] != "http":
        return
    status, body = 200, b"ok"
    if scope["path"] == "/read":
        while (await receive()).get("more_body"):
            pass
    elif scope["path"] == "/slow":
        await trio.sleep_forever()
    elif scope["path"] == "/big":
        body = BIG
    elif scope["path"] == "/refuse":
        status = 413
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def quart_app() -> QuartTrio:
    app = QuartTrio(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 2**18

    @app.get("/ok")
    async def ok():
        return "ok"

    @app.route("/read", methods=["POST"])
    @app.route("/refuse", methods=["POST"], endpoint="refuse")
    async def read():
        return str(len(await request.get_data()))

    @app.get("/slow")
    async def slow():
        await trio.sleep_forever()

    @app.get("/big")
    async def big():
        return BIG

    return app


async def serve_until_stdin_ends() -> None:
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        for app in (bare_app, quart_app()):
            sock = bind("127.0.0.1", 0)
            print(sock.getsockname()[1], flush=True)
            await nursery.start(partial(serve, app, sock, shutdown=shutdown, drain_s=0.5, hard_s=0.5))
        await trio.to_thread.run_sync(sys.stdin.read)
        shutdown.set()


@dataclass
class Server:
    process: subprocess.Popen[str]
    ports: tuple[int, int]
    sockets_at_rest: int = 0

    def answers(self) -> bool:
        return self.process.poll() is None and all(get_ok(port) == b"ok" for port in self.ports)

    def sockets(self) -> int:
        found = 0
        for fd in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found += str(fd.readlink()).startswith("socket:")
        return found


def get_ok(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(b"GET /ok HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(partial(sock.recv, 4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    return answer.partition(b"\r\n\r\n")[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = os.environ | {"PYTHONPATH": str(Path(tserve.__file__).parents[1])}
    command = [sys.executable, __file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            server = Server(process, (int(process.stdout.readline()), int(process.stdout.readline())))
            server.sockets_at_rest = server.sockets()
            yield server
        finally:
            process.kill()


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join([line + " HTTP/1.1", "Host: x", *fields, "", ""]).encode("latin-1")


def http2(speak: Callable[[h2.connection.H2Connection], object] = lambda connection: None) -> bytes:
    """The bytes of an HTTP/2 client that says what `speak` says."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    speak(connection)
    return connection.data_to_send()


def get_by_http2(path: str, connection: h2.connection.H2Connection) -> None:
    headers = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "x")]
    connection.send_headers(1, headers, end_stream=True)


def connect_by_http2(connection: h2.connection.H2Connection, *extra: tuple[str, str]) -> None:
    connection.config.validate_outbound_headers = False
    connection.send_headers(1, [(":method", "CONNECT"), *extra, (":authority", "x")])


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
CHUNKED = "Transfer-Encoding: chunked"

SHAPES = {
    "nothing": b"",
    "garbage line": b"NOT A REQUEST\r\n\r\n",
    "empty lines": b"\r\n\r\n\r\n",
    "binary": bytes(range(256)) * 8,
    "TLS hello": bytes.fromhex("16030102000100") + b"\x01" * 200,
    "part of a request line": b"GET /ok HT",
    "part of a head": b"GET /ok HTTP/1.1\r\nHost: x\r\nX-",
    "endless head": head("GET /ok")[:-2] + b"X-Long: " + b"y" * 20_000,
    "HTTP/0.9": b"GET /ok\r\n\r\n",
    "HTTP/9.9": b"GET /ok HTTP/9.9\r\nHost: x\r\n\r\n",
    "NUL in a header": head("GET /ok", "X-Bad: a\0b"),
    "space in a header name": head("GET /ok", "X Bad: a"),
    "two hosts": head("GET /ok", "Host: y"),
    "bad target": head("GET /\xff\xfe"),
    "bad escapes": head("GET /%zz%ff%00"),
    "CONNECT": head("CONNECT x:443") + b"\x16\x03\x01",
    "length not a number": head("POST /read", "Content-Length: abc"),
    "negative length": head("POST /read", "Content-Length: -1"),
    "two lengths": head("POST /read", "Content-Length: 1", "Content-Length: 2") + b"ab",
    "length and chunks": head("POST /read", "Content-Length: 3", CHUNKED) + b"0\r\n\r\n",
    "short body": head("POST /read", "Content-Length: 100") + b"0123456789",
    "body of a GET": head("GET /ok", "Content-Length: 5") + b"01234GARBAGE",
    "unknown coding": head("POST /read", "Transfer-Encoding: gzip") + b"0\r\n\r\n",
    "two codings": head("POST /read", CHUNKED, CHUNKED) + b"0\r\n\r\n",
    "bad chunk size": head("POST /read", CHUNKED) + b"5\r\nhello\r\nzz\r\n",
    "bad chunk size at once": head("POST /read", CHUNKED) + b"zz\r\n\r\n",
    "bad chunk end": head("POST /read", CHUNKED) + b"5\r\nhelloXX5\r\n",
    "huge chunk": head("POST /read", CHUNKED) + b"f" * 19 + b"\r\nabc",
    "bad trailer": head("POST /read", CHUNKED) + b"0\r\nbad trailer\r\n\r\n",
    "expect": head("POST /read", "Content-Length: 9", "Expect: 100-continue"),
    "expect, chunked": head("POST /read", CHUNKED, "Expect: 100-continue") + b"zz\r\n",
    "expect what": head("POST /read", "Content-Length: 9", "Expect: the-impossible"),
    "refused body": head("POST /refuse", "Content-Length: 1048576") + b"z" * 2**20,
    "refused chunks": head("POST /refuse", CHUNKED) + b"80000\r\n" + b"z" * 2**19 + b"\r\n0\r\n\r\n",
    "pipelined": head("GET /ok") * 50,
    "pipelined garbage": head("GET /ok") + b"\0\0\0\0",
    "pipelined behind the last": head("GET /ok", "Connection: close") + head("GET /ok"),
    "pipelined behind a slow one": head("GET /slow") + head("GET /ok"),
    "slow": head("GET /slow"),
    "unread": head("GET /big"),
    "websocket": head("GET /ok", *WEBSOCKET),
    "websocket and a byte": head("GET /ok", *WEBSOCKET) + b"x",
    "websocket and a frame": head("GET /ok", *WEBSOCKET) + b"\x81\xfe\xff\xff" + b"z" * 100,
    "websocket without a key": head("GET /ok", *WEBSOCKET[:2]),
    "websocket by POST": head("POST /read", *WEBSOCKET, "Content-Length: 2") + b"ab",
    "unknown upgrade": head("GET /ok", "Connection: Upgrade", "Upgrade: irc") + b"NICK x\r\n",
    "h2c": head("GET /ok", *H2C, "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    "h2c, bad settings": head("GET /ok", *H2C, "HTTP2-Settings: !!!"),
    "h2c, no settings": head("GET /ok", *H2C),
    "h2c and garbage": head("GET /ok", *H2C, "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA") + b"garbage" * 9,
    "h2 preface": http2(),
    "h2 part of a preface": b"PRI * HTTP/2.0\r\n\r\nS",
    "h2 wrong preface": b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    "h2 garbage": http2() + b"garbage" * 20,
    "h2 slow": http2(partial(get_by_http2, "/slow")),
    "h2 unread": http2(partial(get_by_http2, "/big")),
    "h2 reset": http2(partial(get_by_http2, "/big")) + frame(3, 0, 1, b"\0\0\0\x08"),
    "h2 bad path": http2(partial(get_by_http2, "/\u00ff\u0100")),
    "h2 connect": http2(connect_by_http2),
    "h2 websocket": http2(
        lambda connection: connect_by_http2(connection, (":protocol", "websocket"), (":path", "/"), (":scheme", "http"))
    ),
    "h2 data after the end": http2(partial(get_by_http2, "/ok")) + frame(0, 0, 1, b"more"),
    "h2 data on no stream": http2() + frame(0, 0, 7, b"more"),
    "h2 bad header block": http2() + frame(1, 5, 1, b"\xff\xff\xff\xff"),
    "h2 priority on itself": http2() + frame(2, 0, 3, b"\0\0\0\x03\x10"),
    "h2 priorities in a ring": http2() + frame(2, 0, 3, b"\0\0\0\x05\x10") + frame(2, 0, 5, b"\0\0\0\x03\x10"),
    "h2 window overflow": http2() + frame(8, 0, 0, b"\x7f\xff\xff\xff"),
    "h2 goodbye": http2(partial(get_by_http2, "/slow")) + frame(7, 0, 0, bytes(8)),
    "h2 huge frame": http2() + b"\xff\xff\xff\0\0\0\0\0\1",
}


def send_some(sock: socket.socket, data: bytes) -> None:
    """Send until all is sent, the server has hung up or it stops reading."""
    with suppress(OSError):
        sock.sendall(data)


def receive_some(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.recv(4096)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half_close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    receive_some(sock)


ENDS = {"close": lambda sock: None, "reset": reset, "half close": half_close, "wait": receive_some}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("data", SHAPES.values(), ids=SHAPES)
def test_a_hostile_client_harms_nobody(server: Server, data: bytes, end: Callable[[socket.socket], None]) -> None:
    clients = [
        socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) for port in server.ports for _ in range(AT_ONCE)
    ]
    for act in (partial(send_some, data=data), end, socket.socket.close):
        for client in clients:
            act(client)
    assert server.answers()


def test_no_connection_is_left_behind(server: Server) -> None:
    """What hostile clients opened is gone with them."""
    with socket.create_connection(("127.0.0.1", server.ports[0])):
        wait_for(lambda: server.sockets() == server.sockets_at_rest + 1)
    wait_for(lambda: server.sockets() == server.sockets_at_rest)


def test_the_server_still_stops(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.ports[0])) as client:
        client.sendall(head("GET /big"))
        assert server.answers()
        server.process.stdin.close()
        assert server.process.wait(timeout=5) == 0


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


if __name__ == "__main__":
    trio.run(serve_until_stdin_ends)
