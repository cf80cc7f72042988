"""What is hardly HTTP, and bodies beyond the limit: an answer in the form of all errors, and the server lives."""

from __future__ import annotations

import random

import pytest

from tests.e2e.bad_values import RAW_BYTES
from tests.e2e.raw_client import fault
from tests.e2e.server import Server, eventually
from tests.e2e.tables import JSON, MAX_REQUEST, table

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

TARGETS = ["/", "//", "/absent", "/models/a/b/c", "/models/echo/1.0/set-defaultx", "/v1", "/v2/models", "/metricsx"]
PATHS = {"management": "/models", "inference": "/predictions/echo"}


@pytest.mark.parametrize("role", ["management", "inference", "metrics"])
def test_methods_and_targets(steady: Server, role: str) -> None:
    with table(steady, role) as t:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get", "PROPFIND"):
            for target in TARGETS:
                t.ask(method, target, *((200,) if method == "OPTIONS" and not target.strip("/") else (404, 405)))
        for method in ("PATCH", "POST", "OPTIONS", "BREW"):
            t.ask(method, "/models/absent", 404, 405)
        t.check(t.client.ask("POST", "http://localhost/models"), {404}, "absolute form")
        t.check(t.client.ask("OPTIONS", "*"), {404}, "asterisk form")
        t.check(t.client.ask("CONNECT", "localhost:80"), {400, 404, 405}, "CONNECT")
        for byte in RAW_BYTES:
            for odd in (b"/models/" + byte, b"/models?limit=" + byte, byte):
                t.check(t.client.ask("PUT", odd), {400, 404, 405}, odd)
        for length in (4000, 4097, 8000, 20_000, 200_000):
            t.ask("PUT", "/" + "a" * length, 404 if length == 4000 else 400)
            t.ask("PUT", "/?" + "a" * length, 405 if length == 4000 else 400)


def test_heads(steady: Server) -> None:
    with table(steady) as t:
        for target in ("/models", "/models/echo", "/absent", "/models/%zz"):
            answer = t.client.ask("HEAD", target)
            assert (fault(answer, {400, 404, 405}, head=True), answer.body) == (None, b"")
        t.ask("GET", "/models", 200)


@pytest.mark.parametrize("role", ["management", "inference"])
def test_headers_and_framing(steady: Server, role: str) -> None:
    path = PATHS[role]
    fine = {200} if role == "inference" else {400}  # url is required
    with table(steady, role) as t:
        for headers in (
            [("x-" + "a" * 8200, "1")],
            [("x", "a" * 8200)],
            [("x", "a" * 20_000)],
            [(f"x-{i}", "1") for i in range(2000)],
            [("content-length", "abc")],
            [("content-length", "-1")],
            [("content-length", "+1")],
            [("content-length", "1" + "0" * 400)],
            [("content-length", "1"), ("content-length", "2")],
            [("transfer-encoding", "chunked"), ("content-length", "1")],
            [("transfer-encoding", "gzip, chunked")],
            [("transfer-encoding", "identity")],
            [("x y", "1")],
            [("", "1")],
            [("x", "\0")],
        ):
            body = b"0\r\n\r\n" if headers[0][0] == "transfer-encoding" else b""
            answer = t.client.ask("POST", path, body=body, headers=headers, length=False)
            t.check(answer, {400, 413} | (fine if body else set()), headers)
        for body in (b"z\r\n", b"-1\r\n", b"1\r\nab\r\n", b"1" + b"0" * 400 + b"\r\n", b"\xff\r\n"):
            chunked = [*JSON, ("transfer-encoding", "chunked")]
            t.check(t.client.ask("POST", path, body=body, headers=chunked, length=False), {400}, body)
        for line in (b"\r\n\r\nx", b"GET", b"GET / HTTP/x", b"\x16\x03\x01\x02\0\1", b"\0" * 20_000):
            t.check(t.client.send(line + b"\r\n\r\n"), {400}, line[:40])


@pytest.mark.parametrize("role", ["management", "inference"])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_that_are_too_large(steady: Server, role: str, chunked: bool) -> None:
    """Refused in the form of all errors, and the client can read that although it is still sending."""
    with table(steady, role) as t:
        for size in (MAX_REQUEST + 1, MAX_REQUEST * 4):
            body = b" " * size
            framing = [("transfer-encoding", "chunked")] if chunked else [("content-length", str(size))]
            if chunked:
                pieces = (body[i : i + 60_000] for i in range(0, size, 60_000))
                body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            answer = t.client.ask("POST", PATHS[role], body=body, headers=[*JSON, *framing], length=False)
            t.check(answer, {413}, f"{size} bytes")
            error = answer.json
            assert (error["type"], str(MAX_REQUEST) in error["message"]) == ("PayloadTooLargeException", True)
        answer = t.ask("POST", PATHS[role], 200, 400, body=b" " * MAX_REQUEST, headers=JSON)
        assert answer.status != 413


def test_clients_that_hang_up(steady: Server) -> None:
    """At any moment of a registration: it is made or not made, whole, and the next client can go on from there."""
    rng = random.Random(1)
    query = b"url=big.mar&initial_workers=1&synchronous=true"
    with table(steady) as t:
        for _ in range(12):
            t.client.hang_up_after(b"POST /models?%s HTTP/1.1\r\nhost: x\r\n\r\n" % query, rng.uniform(0, 0.3))
            t.ask("POST", "/models?url=big.mar&initial_workers=1&synchronous=true", 200, 409)
            t.ask("DELETE", "/models/big", 200)
        eventually("the last one has come to its end", lambda: steady.unregister("big").status == 404)


def test_predictions_whose_clients_hang_up(steady: Server) -> None:
    with table(steady, "inference") as t:
        for head in (
            b"POST /predictions/echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\nx" % n for n in (1, 9) * 10
        ):
            t.client.hang_up_after(head, 0)
        t.ask("POST", "/predictions/echo", 200, body=b"x", expect=b"echo 1.0 of 1")
