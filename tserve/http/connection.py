"""One client's connection: Hypercorn's protocols on a trio stream that is ours.

It stands where Hypercorn's TCPServer stood.  That one has one task more per request for its idle timer, holds
sends in a shield without an end, closes the socket under other tasks' feet and so lets a client end the server.
This module touches Hypercorn 0.18's insides; it knows nothing of tserve's routes.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http.client import responses
from math import inf

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    H11SendableEvent,
    Scope,
)
from hypercorn.utils import parse_socket_addr

from tserve.errors import BadRequest

KEEP_ALIVE_S = 75.0  # a connection without a request, and without a byte of one
HEAD_S = 10.0  # from the first byte of a request's head to its last
STALL_S = 60.0  # a client that reads nothing of an answer
LINGER_S = 5.0  # reading on after our last answer, so that it can be read
RECEIVE_BYTES = SEND_BYTES = 2**16

Put = Callable[[ASGIReceiveEvent], Awaitable[None]]
Send = Callable[[ASGISendEvent | None], Awaitable[None]]

_HEAD_END = re.compile(rb"\n\r?\n")
_HOST_LINE = re.compile(rb"\nhost:", re.IGNORECASE)

log = logging.getLogger("tserve.http")


def invalid_message_response() -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer to what is not HTTP (spec/management.md section 0)."""
    error = BadRequest("Invalid HTTP message.")
    shown = {"code": error.code, "type": error.type_name, "message": error.message}
    body = (json.dumps(shown, indent=2) + "\n").encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"x-request-id", str(uuid.uuid4()).encode()),
        (b"pragma", b"no-cache"),
        (b"cache-control", b"no-cache; no-store, must-revalidate, private"),
        (b"expires", b"Thu, 01 Jan 1970 00:00:00 UTC"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    return error.code, headers, body


class AppTasks(TaskGroup):
    """Runs the application's side of each request in the connection's nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery

    async def spawn_app(self, app: AppWrapper, config: Config, scope: Scope, send: Send) -> Put:
        """Start `app`; what is returned feeds its `receive`.

        A disconnect closes the channel instead of standing in its queue: a full one (an application that answers
        without reading the body) would block whoever reports the end, for ever.
        """
        events, inbox = trio.open_memory_channel[ASGIReceiveEvent](config.max_app_queue_size)

        async def put(event: ASGIReceiveEvent) -> None:
            if event["type"] in ("http.disconnect", "websocket.disconnect"):
                events.close()
            else:
                with suppress(trio.ClosedResourceError):
                    await events.send(event)

        async def receive() -> ASGIReceiveEvent:
            try:
                return await inbox.receive()
            except trio.EndOfChannel:
                return {"type": "http.disconnect"}

        assert self._nursery is not None
        self._nursery.start_soon(_run_app, app, scope, receive, send)
        return put


async def _run_app(app: AppWrapper, scope: Scope, receive: ASGIReceiveCallable, send: Send) -> None:
    """Call the application once; an error of its own ends this request only."""
    try:
        if scope["type"] == "websocket":  # only HTTP/2's CONNECT leads here
            await send({"type": "websocket.close", "code": 1000, "reason": None})
        else:
            await app(scope, receive, send, trio.to_thread.run_sync, trio.from_thread.run)
    except* Exception as group:
        log.error("the application failed at %r", scope.get("path"), exc_info=group)
    await send(None)


class Http1(H11Protocol):
    """HTTP/1.1 with the recorded server's manners where Hypercorn's differ."""

    _head = b""

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
        self.connection.receive_data(data[:line_end] + b"host: \r\n" + data[line_end:])

    async def _create_stream(self, request: h11.Request) -> None:
        """Ignore an upgrade to WebSocket, as RFC 9110 section 7.8 allows: the application serves none."""
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
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
            reason = responses.get(event.status_code, "")
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


class Connection:
    """Reads for one client, and owns its socket until `run` returns."""

    def __init__(self, app: AppWrapper, config: Config, context: WorkerContext, stream: trio.SocketStream) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._stream = stream
        self._send_lock = trio.Lock()
        self._waiting = trio.CancelScope(deadline=trio.current_time() + KEEP_ALIVE_S)
        self._protocol: ProtocolWrapper | None = None
        self._ended = False  # by the protocol; not by the client, a deadline or `stop`
        self._lost = False

    async def run(self) -> None:
        """Serve until either side is done.  Then whatever still works for this client is cancelled."""
        async with trio.open_nursery() as nursery:
            self._protocol = protocol = self._open_protocol(nursery)
            await self._read(protocol)
            await protocol.handle(Closed())
            if self._ended and _leaves_unread(protocol):
                await self._linger()
            self.close()
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Close at once unless a request is being served."""
        if self._protocol is None or _is_idle(self._protocol):
            self._waiting.cancel()

    def close(self) -> None:
        """Close the socket under every task that uses it, shielded ones too."""
        self._lost = True
        self._stream.socket.close()

    def _open_protocol(self, nursery: trio.Nursery) -> ProtocolWrapper:
        socket = self._stream.socket
        wrapper = ProtocolWrapper(
            self._app,
            self._config,
            self._context,
            AppTasks(nursery),
            ConnectionState({}),
            False,
            parse_socket_addr(socket.family, socket.getpeername()),
            parse_socket_addr(socket.family, socket.getsockname()),
            self._on_event,
        )
        wrapper.protocol = Http1(
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
        return wrapper

    async def _read(self, protocol: ProtocolWrapper) -> None:
        """Feed the protocol until the client leaves, the protocol is done, or a deadline passes."""
        data = b"any"
        with self._waiting:
            while data:
                data = await self._receive()
                if self._waiting.deadline < inf and isinstance(protocol.protocol, Http1):
                    head_deadline = trio.current_time() + HEAD_S
                    self._waiting.deadline = min(self._waiting.deadline, head_deadline)
                await protocol.handle(RawData(data=data))
                self._set_idle(_is_idle(protocol))

    async def _receive(self) -> bytes:
        """The next bytes; b"" when the client has left."""
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lost = True
            return b""

    async def _on_event(self, event: Event) -> None:
        """What the protocol wants of the connection; called from the reader and from application tasks."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Updated):
            self._set_idle(event.idle)
        elif isinstance(event, Closed):
            await self._end()

    def _set_idle(self, idle: bool) -> None:
        if not idle:
            self._waiting.deadline = inf
        elif self._waiting.deadline == inf:
            # at shutdown HTTP/2 has said goodbye by now and leaves the closing to the client
            wait_s = LINGER_S if self._context.terminated.is_set() else KEEP_ALIVE_S
            self._waiting.deadline = trio.current_time() + wait_s

    async def _end(self) -> None:
        """Tell the applications, then let the reader go: it alone closes the socket."""
        assert self._protocol is not None
        self._ended = True
        await self._protocol.handle(Closed())
        self._waiting.cancel()

    async def _send(self, data: bytes) -> None:
        """Send all of `data`, even when the sender is cancelled meanwhile: half a frame would spoil the others'.

        The shield ends by itself: STALL_S without progress, or `close`.
        """
        if not self._lost:
            with trio.CancelScope(shield=True) as scope, memoryview(data) as view:
                try:
                    async with self._send_lock:
                        for start in range(0, len(view), SEND_BYTES):
                            scope.deadline = trio.current_time() + STALL_S
                            await self._stream.send_all(view[start : start + SEND_BYTES])
                        scope.deadline = inf
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._lost = True
            if scope.cancelled_caught:
                self._lost = True
            if self._lost:
                await self._end()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _linger(self) -> None:
        """Half-close and swallow what comes: a reset could destroy our last answer before it is read."""
        with (
            trio.move_on_after(LINGER_S) as self._waiting,
            suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            async with self._send_lock:
                await self._stream.send_eof()
            while await self._stream.receive_some(RECEIVE_BYTES):
                pass


def _is_idle(wrapper: ProtocolWrapper) -> bool:
    protocol = wrapper.protocol
    return protocol.idle if isinstance(protocol, H2Protocol) else protocol.stream is None


def _leaves_unread(wrapper: ProtocolWrapper) -> bool:
    """Whether the client may still be sending, so that closing would reset the connection."""
    if isinstance(wrapper.protocol, H2Protocol):
        return True
    connection = wrapper.protocol.connection
    return connection.their_state in (h11.SEND_BODY, h11.ERROR) or bool(connection.trailing_data[0])
