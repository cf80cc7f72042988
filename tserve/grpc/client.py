"""One connection of a client: HTTP/2 over a Transport, and the calls that come over it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from tserve.grpc.codes import Code
from tserve.grpc.exchange import Endpoint, Exchange, Surroundings
from tserve.grpc.headers import Head, read_head, refusal
from tserve.grpc.http2 import PREFACE, STREAM_WINDOW, Connection, Error, Stream
from tserve.grpc.methods import Refusal
from tserve.net.timers import Timer
from tserve.net.transport import Transport

GREETING_S = 20.0  # until the client has to have said that it speaks HTTP/2, TLS included
LINGER_S = 1.0  # for what is on its way when the connection is closed
UNSENT_BYTES = 1 << 20  # with so much unsent nothing is read from the client: it shall read first
_NO_HTTP2 = b"This port speaks gRPC: HTTP/2, in cleartext without an upgrade.\n"
_HTTP1 = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    % len(_NO_HTTP2)
    + _NO_HTTP2
)
_log = logging.getLogger("tserve.grpc")


@dataclass(frozen=True, slots=True)
class Port:
    """What the connections of one listener share.  `most_held` bounds the messages of one connection, in bytes."""

    endpoints: Mapping[str, Endpoint]
    around: Surroundings
    clients: set[Client]
    most_held: int
    max_age_s: float | None
    max_age_grace_s: float | None


class Client:
    """`start`, and it is in its port's `clients` until it is gone."""

    def __init__(self, transport: Transport, address: str, port: Port) -> None:
        self.address = address
        self._transport = transport
        self._port = port
        self.http2 = Connection(self, read_head)
        self.idle_since = trio.current_time()  # of one that is idle
        self._scheduled = False
        self._first = b""
        self._timers: list[Timer] = [port.around.timers.after(GREETING_S, self._greeting_is_due)]
        if port.max_age_s is not None:
            self._timers.append(port.around.timers.after(port.max_age_s, self._grow_old))

    @property
    def idle(self) -> bool:
        return not self.http2.streams

    def start(self) -> None:
        self._port.clients.add(self)
        self._transport.start(self)  # what we have to say can wait until it is known that it speaks HTTP/2

    def leave(self) -> None:
        """No further calls; the connection ends with the last one."""
        self.http2.leave()
        self.touch()

    def close(self) -> None:
        """As soon as what was said is sent; whatever still runs is cut short."""
        for exchange in self._exchanges():
            exchange.cut()
        self.http2.end(Error.NO_ERROR, "the connection is closed")
        self._flush()
        self._finish()

    def touch(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._transport.soon(self._flush)

    # -- what the Transport says

    def received(self, data: bytes) -> None:
        if not self.http2.greeted:
            self._first = (self._first + data)[: len(PREFACE)]
        self.http2.receive(data)
        if self.http2.over is not None:
            self._break_off(self.http2.over)
        elif self._timers and self.http2.greeted and self._first:
            self._first = b""
            self._timers[0].cancel()
        self.touch()

    def flushed(self) -> None:
        self.http2.pump()
        self._transport.pause(False)
        if self.http2.gathered:
            self.touch()
        elif self.http2.leaving and not self.http2.streams:
            self._finish()

    def lost(self) -> None:
        self._gone()

    # -- what HTTP/2 says (tserve.grpc.http2.Sink)

    def request(self, stream: Stream, head: Head) -> None:
        self.idle_since = trio.current_time()  # as good as its end
        endpoint = self._port.endpoints.get(head.path)
        problem = head.problem
        if problem is None and endpoint is None:
            problem = refusal(Code.UNIMPLEMENTED, f"Method not found: {head.path}")
        if problem is not None or endpoint is None:
            self.http2.headers(stream, problem or b"", end=True)
            return
        stream.user = Exchange(endpoint, head, stream, self, self._port.around)
        if stream.ended or endpoint.method.streams_requests:  # which may wait for an answer before they say anything
            stream.user.take(b"")

    def data(self, stream: Stream, data: bytes) -> None:
        exchange = stream.user
        if exchange is None:
            return
        before = exchange.held
        exchange.take(data)
        # Each stream may hold its first window; looked at once for each further one.
        if exchange.held // STREAM_WINDOW > before // STREAM_WINDOW and self._holds_too_much():
            text = f"The connection has over {self._port.most_held} bytes of messages that are not complete."
            exchange.refuse(Refusal(Code.RESOURCE_EXHAUSTED, text, {}))

    def reset(self, stream: Stream) -> None:
        if stream.user is not None:
            stream.user.gave_up()

    def room(self, stream: Stream) -> None:
        if stream.user is not None:
            stream.user.room()

    # -- within

    def _exchanges(self) -> list[Exchange]:
        return [stream.user for stream in self.http2.streams.values() if stream.user is not None]

    def _holds_too_much(self) -> bool:
        return sum(exchange.held for exchange in self._exchanges()) > self._port.most_held

    def _flush(self) -> None:
        self._scheduled = False
        if not self._transport.unsent:
            data = self.http2.take_out()
            if data:
                self._transport.write(data)
        elif self.http2.gathered > UNSENT_BYTES:
            self._transport.pause(True)

    def _break_off(self, why: str) -> None:
        """The client broke the rules of HTTP/2."""
        if not self.http2.greeted and self._first[:1].isalpha():
            self.http2.take_out()
            self._transport.write(_HTTP1)
        _log.debug("the connection of %s is closed: %s", self.address, why)
        for exchange in self._exchanges():
            exchange.gave_up()
        self._flush()
        self._finish()

    def _greeting_is_due(self) -> None:
        if not self.http2.greeted:
            self._finish()

    def _grow_old(self) -> None:
        self.leave()
        if self._port.max_age_grace_s is not None:
            self._timers.append(self._port.around.timers.after(self._port.max_age_grace_s, self.close))
        if not self.http2.streams:
            self._flush()
            self._finish()

    def _finish(self) -> None:
        self._transport.finish(LINGER_S)
        self._gone()

    def _gone(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for exchange in self._exchanges():
            exchange.gave_up()
        self._port.clients.discard(self)
        self._port.around.fewer.unpark_all()
