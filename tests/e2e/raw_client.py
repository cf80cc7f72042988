"""A client that sends what it is told, byte for byte, and judges whether an answer is in the contract's form."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.e2e.server import Answer, Server

Pairs = Iterable[tuple[str, str]]
_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class RawClient:
    """One connection, opened again when the server closed it (it does so after errors)."""

    def __init__(self, server: Server, role: str = "management", *, timeout_s: float = 20) -> None:
        url = urlsplit(server.urls[role])
        self._address = (url.hostname or "", url.port or 0)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def ask(
        self, method: str, target: str | bytes, *, body: bytes = b"", headers: Pairs = (), length: bool = True
    ) -> Answer:
        """`length=False` sends no content-length: the caller's headers say how the body ends."""
        line = f"{method} ".encode() + (target.encode("latin-1") if isinstance(target, str) else target)
        fields = [("host", "localhost"), *headers]
        if length and (body or method in ("POST", "PUT")):
            fields.append(("content-length", str(len(body))))
        head = line + b" HTTP/1.1\r\n" + b"".join(f"{n}: {v}\r\n".encode("latin-1") for n, v in fields) + b"\r\n"
        return self.send(head + body, method=method)

    def send(self, request: bytes, *, method: str = "GET") -> Answer:
        """Bytes of one request, on the connection that is open if there is one."""
        reused = self._socket is not None
        try:
            return self._exchange(request, method)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._close()
            if not reused:
                raise
        return self._exchange(request, method)

    def hang_up_after(self, request: bytes, seconds: float) -> None:
        """Send bytes on a connection of their own and leave without an answer."""
        with socket.create_connection(self._address, timeout=self._timeout_s) as connection:
            connection.sendall(request)
            time.sleep(seconds)

    def _exchange(self, request: bytes, method: str) -> Answer:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=self._timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BrokenPipeError, ConnectionResetError):  # it may answer before it has read everything
            self._socket.sendall(request)
        with http.client.HTTPResponse(self._socket, method=method) as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, headers, response.read())
        if answer.status >= 400:
            self._close()
        return answer

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def fault(answer: Answer, allowed: Collection[int], *, head: bool = False) -> str | None:
    """What is wrong with an answer: None for one of the statuses allowed, in the contract's form.

    `head` is for answers to HEAD, which have no body.  Predictions that succeed may have any body.
    """
    if answer.status not in allowed:
        return f"status {answer.status}: {answer.body[:300]!r}"
    if not _UUID4.fullmatch(answer.headers.get("x-request-id", "")):
        return f"x-request-id {answer.headers.get('x-request-id')!r}"
    if answer.status >= 400 and answer.headers.get("connection") != "close":
        return f"connection {answer.headers.get('connection')!r}"
    if head:
        return None
    if answer.headers.get("content-length") != str(len(answer.body)):
        return f"content-length {answer.headers.get('content-length')!r} for {len(answer.body)} bytes"
    if answer.status >= 400 or "content-type" in answer.headers:
        return _body_fault(answer)
    return None


def _body_fault(answer: Answer) -> str | None:
    if answer.headers.get("content-type") != "application/json":
        return f"content-type {answer.headers.get('content-type')!r}"
    try:
        body = json.loads(answer.body.decode("utf-8"))
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        return f"{error}: {answer.body[:300]!r}"
    if not answer.body.endswith(b"\n"):
        return "no newline at the end"
    if answer.status < 400:
        return None
    if not isinstance(body, dict) or list(body)[:3] != ["code", "type", "message"]:
        return f"not an error object: {body}"
    if body["code"] != answer.status or not str(body["type"]).endswith("Exception") or not body["message"]:
        return f"{body['code']}, {body['type']}, {body['message']}"
    return "a traceback" if "Traceback" in str(body["message"]) else None
