"""One client's connection: Hypercorn's protocols on a trio stream that is ours.

It stands where Hypercorn's TCPServer stood.  That one has one task more per request for its idle timer, holds
sends in a shield without an end, closes the socket under other tasks' feet and so lets a client end the server.
This module touches Hypercorn 0.18's insides; it knows nothing of tserve's routes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from math import inf
from typing import Protocol

import trio
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    Scope,
)
from hypercorn.utils import parse_socket_addr

from tserve.errors import StreamCut
from tserve.http.http1 import Http1
from tserve.http.secure import SecureStream

KEEP_ALIVE_S = 75.0  # a connection without a request, and without a byte of one
HEAD_S = 10.0  # from the first byte of a request's head to its last
STALL_S = 60.0  # a client that sends nothing of a body it owes, or reads nothing of an answer
LINGER_S = 5.0  # reading on after our last answer, so that it can be read
GOODBYE_S = 1.0  # at shutdown, what an idle HTTP/2 connection has left
RECEIVE_BYTES = READ_AHEAD_BYTES = SEND_BYTES = 2**16

Put = Callable[[ASGIReceiveEvent], Awaitable[None]]
Send = Callable[[ASGISendEvent | None], Awaitable[None]]

log = logging.getLogger("tserve.http")


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
    """Call the application once; an error of its own ends this request only.

    `at_end`, in the scope's state, takes what is to be done when that is over.
    """
    try:
        if scope["type"] == "websocket":  # only HTTP/2's CONNECT leads here
            await send({"type": "websocket.close", "code": 1000, "reason": None})
        else:
            with ExitStack() as at_end:
                scope["state"]["at_end"] = at_end
                await app(scope, receive, send, trio.to_thread.run_sync, trio.from_thread.run)
    except* StreamCut as group:  # the client sees that the last chunk is missing
        log.warning("a streamed answer at %r was cut short: %s", scope.get("path"), group.exceptions[0])
    except* Exception as group:
        log.error("the application failed at %r", scope.get("path"), exc_info=group)
    await _break_off(send)
    await send(None)


async def _break_off(send: Send) -> None:
    """Reset an HTTP/2 stream whose answer has begun and not ended; Hypercorn would leave it open for ever.

    HTTP/1 needs nothing: the connection is closed then, and the last chunk missing.
    """
    stream = getattr(send, "__self__", None)
    if not isinstance(stream, HTTPStream) or stream.closed or stream.state is not ASGIHTTPState.RESPONSE:
        return
    protocol = getattr(stream.send, "__self__", None)
    if isinstance(protocol, H2Protocol):
        with suppress(ProtocolError):  # the client was quicker
            protocol.connection.reset_stream(stream.stream_id, ErrorCodes.INTERNAL_ERROR)
        await protocol._flush()


class Stream(Protocol):
    """What a connection is read from and written to: a SocketStream, or one with TLS."""

    socket: trio.socket.SocketType

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...

    async def send_eof(self) -> None: ...


class Connection:
    """Reads for one client, and owns its socket until `run` returns."""

    def __init__(self, app: AppWrapper, config: Config, stream: Stream) -> None:
        self._app = app
        self._config = config
        self._context = WorkerContext(None)
        self._stream = stream
        self._secure = isinstance(stream, SecureStream)
        self._send_lock = trio.Lock()
        self._waiting = trio.CancelScope(deadline=trio.current_time() + KEEP_ALIVE_S)
        self._protocol: ProtocolWrapper | None = None
        self._idle_from = trio.current_time()
        self._stopping = False
        self._ended = False  # by the protocol; not by the client, a deadline or `stop`
        self._lost = False

    async def run(self) -> None:
        """Serve until either side is done.  Then whatever still works for this client is cancelled."""
        async with trio.open_nursery() as nursery:
            self._protocol = protocol = self._open_protocol(nursery)
            await self._read(protocol)
            await protocol.handle(Closed())
            if self._ended and (self._secure or _may_send_more(protocol)):
                await self._linger()
            self.close()
            nursery.cancel_scope.cancel()

    async def stop(self) -> None:
        """Close once no request is being served: now, or after the answer.

        Hypercorn's own sign for this, `terminated`, is for HTTP/1 only: its HTTP/2 would close before an answer's
        last frame, and even counts as idle before that is sent.
        """
        self._stopping = True
        protocol = self._protocol.protocol if self._protocol else None
        if isinstance(protocol, H2Protocol):
            if protocol.idle:
                self._time_idle()
        elif protocol is None or protocol.stream is None:
            self._waiting.cancel()
        else:
            await self._context.terminated.set()

    @property
    def idle_since(self) -> float | None:
        """None while a request is being served."""
        return self._idle_from if self._protocol is not None and _is_idle(self._protocol) else None

    def make_room(self) -> None:
        """Close an idle connection, for one that asks for something."""
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
            self._secure,
            parse_socket_addr(socket.family, socket.getpeername()),
            parse_socket_addr(socket.family, socket.getsockname()),
            self._on_event,
        )
        wrapper.protocol = Http1(wrapper, self._read_ahead)
        return wrapper

    async def _read(self, protocol: ProtocolWrapper) -> None:
        """Feed the protocol until the client leaves, the protocol is done, or a deadline passes."""
        data = b"any"
        with self._waiting:
            while data:
                data = await self._receive(RECEIVE_BYTES)
                self._time_head(protocol)
                await protocol.handle(RawData(data=data))
                self._time_body(protocol)

    async def _read_ahead(self) -> None:
        """Read on, a little, while the parser is paused, so that a client that leaves is noticed."""
        assert self._protocol is not None
        assert isinstance(self._protocol.protocol, Http1)
        room = READ_AHEAD_BYTES
        while room > 0:
            data = await self._receive(room)
            if not data:
                await self._end()
                return
            self._protocol.protocol.connection.receive_data(data)
            room -= len(data)

    async def _receive(self, most: int) -> bytes:
        """The next bytes; b"" when the client has left."""
        try:
            return bytes(await self._stream.receive_some(most))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lost = True
            return b""

    async def _on_event(self, event: Event) -> None:
        """What the protocol wants of the connection; called from the reader and from application tasks."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Updated) and event.idle:
            self._time_idle()
        elif isinstance(event, Updated):
            self._waiting.deadline = inf
        elif isinstance(event, Closed):
            await self._end()

    def _time_head(self, protocol: ProtocolWrapper) -> None:
        """Before bytes are parsed: a request that begins must have all of its head soon, however it dribbles."""
        if not _is_idle(protocol):
            self._waiting.deadline = inf
        elif isinstance(protocol.protocol, Http1):
            self._waiting.deadline = min(self._waiting.deadline, trio.current_time() + HEAD_S)

    def _time_body(self, protocol: ProtocolWrapper) -> None:
        """After bytes were parsed: a body must go on.  How long an answer takes is the application's affair."""
        if isinstance(protocol.protocol, Http1) and protocol.protocol.awaits_body:
            self._waiting.deadline = trio.current_time() + STALL_S
        elif _is_idle(protocol) and self._waiting.deadline == inf:  # an HTTP/2 client that asks for nothing
            self._time_idle()

    def _time_idle(self) -> None:
        self._idle_from = trio.current_time()
        self._waiting.deadline = trio.current_time() + (GOODBYE_S if self._stopping else KEEP_ALIVE_S)

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
    assert isinstance(wrapper.protocol, Http1 | H2Protocol)
    return wrapper.protocol.idle


def _may_send_more(wrapper: ProtocolWrapper) -> bool:
    return not isinstance(wrapper.protocol, Http1) or wrapper.protocol.half_read
