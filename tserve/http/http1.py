"""HTTP/1.1 as Hypercorn and h11 speak it, with the recorded server's manners where theirs differ."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from http.client import responses

import h11
import trio
from hypercorn.events import RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import EventWrapper
from hypercorn.typing import H11SendableEvent

from tserve.errors import BadRequest, ServiceUnavailable, TserveError
from tserve.http.render import all_headers, error_reply

_HEAD_END = re.compile(rb"\n\r?\n")
_HOST_LINE = re.compile(rb"\nhost:", re.IGNORECASE)
_REASONS = {**responses, 413: "Request Entity Too Large"}  # as recorded, whatever this Python's release calls it


def invalid_message_response() -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer to what is not HTTP (spec/management.md section 0)."""
    return _parts(BadRequest("Invalid HTTP message."))


def too_many_connections_response(most: int) -> bytes:
    """The whole answer to a client for whose connection there is no room."""
    status, headers, body = _parts(ServiceUnavailable.too_many_connections(most))
    fields = {**dict(headers), b"connection": b"close", b"content-length": b"%d" % len(body)}
    lines = [b"%s: %s\r\n" % field for field in fields.items()]
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, responses[status].encode(), b"".join(lines), body)


def _parts(error: TserveError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    reply = error_reply(error)
    headers = all_headers(reply, str(uuid.uuid4()), ())
    return reply.status, [(name.encode(), value.encode()) for name, value in headers], reply.body


def only_https_response() -> bytes:
    """The whole answer to plain HTTP where TLS is spoken (spec/server.md section 5)."""
    body = b'{\n  "status": "This TorchServe instance only accepts HTTPS requests"\n}\n'
    head = (
        b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    )
    return head % len(body) + body


class Http1(H11Protocol):
    """The server's side of one HTTP/1.1 connection.

    `while_paused` runs, and is cancelled, whenever parsing waits for the running request to be answered: the reader
    waits too then, and would not see the client leave.
    """

    def __init__(self, wrapper: ProtocolWrapper, while_paused: Callable[[], Awaitable[None]]) -> None:
        super().__init__(
            wrapper.app,
            wrapper.config,
            wrapper.context,
            wrapper.task_group,
            wrapper.state,
            wrapper.ssl,
            wrapper.client,
            wrapper.server,
            wrapper.send,
        )
        self.can_read = _Pause(while_paused)
        self._head = b""

    @property
    def idle(self) -> bool:
        return self.stream is None

    @property
    def awaits_body(self) -> bool:
        return self.connection.their_state is h11.SEND_BODY

    @property
    def half_read(self) -> bool:
        """Whether the client may still be sending, so that closing now would reset the connection."""
        return self.awaits_body or self.connection.their_state is h11.ERROR or bool(self.connection.trailing_data[0])

    async def _handle_events(self) -> None:
        self._supply_host()
        await super()._handle_events()

    async def _maybe_recycle(self) -> None:
        await super()._maybe_recycle()
        self._supply_host()

    def _supply_host(self) -> None:
        """Give a request without Host an empty one: h11 refuses it, the recorded server serves it.

        Between requests h11's connection holds nothing but the bytes to come, so a fresh one can take its place.
        """
        if self.connection.their_state is not h11.IDLE or self.connection.our_state is not h11.IDLE:
            return
        data, _ = self.connection.trailing_data
        end = _HEAD_END.search(data)
        if end is None or _HOST_LINE.search(data, 0, end.end()):
            return
        line_end = data.index(b"\n") + 1
        self.connection = h11.Connection(h11.SERVER, self.config.h11_max_incomplete_size)
        self.connection.receive_data(data[:line_end] + b"Host: \r\n" + data[line_end:])

    async def _create_stream(self, request: h11.Request) -> None:
        """Ignore an upgrade to WebSocket, as RFC 9110 section 7.8 allows: the application serves none."""
        headers = [(name, value) for name, value in request.headers.raw_items() if name.lower() != b"upgrade"]
        if len(headers) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        await super()._create_stream(request)

    async def _send_error_response(self, status_code: int) -> None:
        """Answer what h11 can't parse in our words, whatever status it hints at."""
        status, headers, body = invalid_message_response()
        await self._send_h11_event(h11.Response(status_code=status, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Send; a head waits for what follows it, so that a small answer is one write."""
        if isinstance(event, h11.Response):
            reason = _REASONS.get(event.status_code, "")
            event = h11.Response(headers=event.headers, status_code=event.status_code, reason=reason)
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return  # the client's error was answered while the application was still at work
        if isinstance(event, h11.Response):
            self._head = data
        elif data or self._head:
            data, self._head = self._head + data, b""
            await self.send(RawData(data=data))


class _Pause(EventWrapper):
    """Hypercorn's event, with something to do while it is waited for."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    async def wait(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._meanwhile)
            await super().wait()
            nursery.cancel_scope.cancel()
