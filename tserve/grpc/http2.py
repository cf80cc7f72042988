"""The server's side of HTTP/2 (RFC 9113), without sockets: bytes in, calls to a `Sink`, bytes out.

It knows what gRPC needs, no more: no push, no priorities, no upgrade from HTTP/1.  Header blocks are read by the hpack
package; those that change nothing in its table are read once and remembered, which makes them nearly free.  The h2
package costs 0.2-0.3 ms a call, this 0.02.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Protocol

from hpack import Decoder, HPACKError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 256 << 10  # the largest that we take
STREAM_WINDOW = 64 << 10  # of each stream, until its message asks for more
WINDOW = 16 << 20  # of the connection
MOST_STREAMS = 1024  # at once
HEADER_BYTES = 64 << 10  # of a request's headers, packed, and unpacked as RFC 9113 section 6.5.2 counts them
MOST_CONTINUATIONS = 16
MOST_RESETS = 1_000  # calls that a client gave up, in excess of those that came to an end
MOST_IDLE_FRAMES = 10_000  # frames in a row that are no part of a call
OUT_BYTES = 256 << 10  # of data that are put into frames before the socket has taken what there is
_REMEMBERED, _REMEMBERED_BYTES = 64, 1 << 10  # header blocks, and the longest
_MOST_WINDOW = 2**31 - 1
_HEAD = struct.Struct("!HBBBI")  # length in three bytes, kind, flags, stream
_NUMBER = struct.Struct("!I")


class Error(IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class _Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_TABLE_SIZE, _PUSH, _CONCURRENT, _INITIAL_WINDOW, _FRAME_SIZE, _HEADER_LIST = 1, 2, 3, 4, 5, 6


class Malformed(Exception):
    """A request that is none; its stream is reset."""


class _Broken(Exception):
    """The connection cannot go on."""

    def __init__(self, code: Error, why: str) -> None:
        super().__init__(why)
        self.code = code


class Stream:
    """One request and its answer.  `user` is the sink's own; `unsent` counts bytes that no frame has taken yet."""

    __slots__ = ("_credit", "_end", "_sending", "_window", "closed", "ended", "id", "unsent", "user")

    def __init__(self, number: int, credit: int) -> None:
        self.id = number
        self.ended = False  # the client has said all
        self.closed = False
        self.unsent = 0
        self.user: Any = None
        self._window = STREAM_WINDOW  # what the client may send
        self._credit = credit  # what we may
        self._sending: deque[memoryview] = deque()
        self._end: bytes | None = None  # the trailers, waiting for what stands before them

    @property
    def window(self) -> int:
        """Bytes that the client may send."""
        return self._window


class Sink(Protocol):
    """What becomes of requests."""

    def request(self, stream: Stream, head: Any) -> None:
        """`head` as `read_head` made it; `stream.ended` when nothing follows."""
        ...

    def data(self, stream: Stream, data: bytes) -> None:
        """More of it, perhaps nothing but its end.  What comes next needs room: `Connection.widen`."""
        ...

    def reset(self, stream: Stream) -> None:
        """The client gave it up."""
        ...

    def room(self, stream: Stream) -> None:
        """All that the answer has so far is in frames."""
        ...


class Connection:
    """`read_head` makes of a list of header fields what the sink gets, or raises Malformed; it is called once for equal
    header blocks.  What is to be sent gathers in `take_out`."""

    def __init__(self, sink: Sink, read_head: Callable[[Iterable[tuple[bytes, bytes]]], Any]) -> None:
        self.streams: dict[int, Stream] = {}
        self.greeted = False  # the client speaks HTTP/2
        self.over: str | None = None  # why nothing more can be said on it
        self.leaving = False  # no further requests: one of the two has said so
        self._sink, self._read_head = sink, read_head
        self._rest = b""
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._blocked: dict[int, Stream] = {}  # with something to send
        self._last = 0
        self._window, self._credit = WINDOW, 65_535
        self._initial_credit, self._frame_bytes = 65_535, 16_384
        self._decoder = Decoder(max_header_list_size=HEADER_BYTES)
        self._known: dict[bytes, Any] = {}
        self._block: tuple[int, int, bytearray, int] | None = None  # stream, flags, so far, continuations
        self._settled = False
        self._resets = self._idle_frames = 0
        settings = {
            _CONCURRENT: MOST_STREAMS,
            _INITIAL_WINDOW: STREAM_WINDOW,
            _FRAME_SIZE: FRAME_BYTES,
            _HEADER_LIST: HEADER_BYTES,
        }
        self._put(_Kind.SETTINGS, 0, 0, b"".join(struct.pack("!HI", *setting) for setting in settings.items()))
        self._put(_Kind.WINDOW_UPDATE, 0, 0, _NUMBER.pack(WINDOW - 65_535))

    # -- in

    def receive(self, data: bytes) -> None:
        """Take in what the client sent; afterwards `over` may say that this was the end."""
        if self.over is not None:
            return
        try:
            self._receive(self._rest + data if self._rest else data)
        except _Broken as e:
            self.end(e.code, str(e))

    def _receive(self, data: bytes) -> None:
        at, end = 0, len(data)
        if not self.greeted:
            if not data.startswith(PREFACE[:end]):
                raise _Broken(Error.PROTOCOL_ERROR, "this is not HTTP/2")
            if end < len(PREFACE):
                self._rest = data
                return
            at, self.greeted = len(PREFACE), True
        while end - at >= 9:
            high, low, kind, flags, number = _HEAD.unpack_from(data, at)
            length = high << 8 | low
            if length > FRAME_BYTES:
                raise _Broken(Error.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            stop = at + 9 + length
            if stop > end:
                break
            self._frame(kind, flags, number & _MOST_WINDOW, data[at + 9 : stop])
            at = stop
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != _Kind.CONTINUATION:
            raise _Broken(Error.PROTOCOL_ERROR, "a header block was cut off")
        if not self._settled and kind != _Kind.SETTINGS:
            raise _Broken(Error.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if kind == _Kind.DATA:
            self._on_data(flags, number, payload)
            return
        if kind == _Kind.HEADERS:
            self._on_headers(flags, number, payload)
            return
        self._count_idle()
        handler = _HANDLERS.get(kind)
        if handler is not None:  # others are to be ignored
            handler(self, flags, number, payload)

    def _count_idle(self) -> None:
        self._idle_frames += 1
        if self._idle_frames > MOST_IDLE_FRAMES:
            raise _Broken(Error.ENHANCE_YOUR_CALM, "too many frames that are no part of a call")

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._window -= size
        if self._window < 0:
            raise _Broken(Error.FLOW_CONTROL_ERROR, "more data than the connection has room for")
        if self._window < WINDOW // 2:
            self._put(_Kind.WINDOW_UPDATE, 0, 0, _NUMBER.pack(WINDOW - self._window))
            self._window = WINDOW
        stream = self.streams.get(number)
        if stream is None:
            self._known_number(number)  # of one that is over, data may be on their way
            self._count_idle()
            return
        if stream.ended:
            raise _Broken(Error.STREAM_CLOSED, f"data behind the end of stream {number}")
        stream._window -= size
        if stream._window < 0:
            raise _Broken(Error.FLOW_CONTROL_ERROR, f"more data than stream {number} has room for")
        if flags & _PADDED:
            payload = _unpadded(payload)
        if payload or flags & _END_STREAM:
            self._idle_frames = 0
        else:
            self._count_idle()
        stream.ended = bool(flags & _END_STREAM)
        self._sink.data(stream, payload)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & _PADDED:
            payload = _unpadded(payload)
        if flags & _PRIORITY:
            if len(payload) < 5:
                raise _Broken(Error.FRAME_SIZE_ERROR, "HEADERS without its priority")
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._on_block(number, flags, payload)
        else:
            self._continue(number, flags, bytearray(payload), 0)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise _Broken(Error.PROTOCOL_ERROR, "CONTINUATION of nothing")
        _, first_flags, block, count = self._block
        block += payload
        self._block = None
        if flags & _END_HEADERS:
            self._on_block(number, first_flags, bytes(block))
        else:
            self._continue(number, first_flags, block, count + 1)

    def _continue(self, number: int, flags: int, block: bytearray, count: int) -> None:
        if len(block) > HEADER_BYTES or count >= MOST_CONTINUATIONS:
            raise _Broken(Error.ENHANCE_YOUR_CALM, f"a header block over {HEADER_BYTES} bytes")
        self._block = number, flags, block, count

    def _on_block(self, number: int, flags: int, block: bytes) -> None:
        head = self._known.get(block)
        if head is None:
            head = self._read(block)
        stream = self.streams.get(number)
        if stream is not None:  # trailers, of which gRPC's clients have none
            if stream.ended or not flags & _END_STREAM:
                raise _Broken(Error.PROTOCOL_ERROR, f"a second header block on stream {number}")
            stream.ended = True
            self._sink.data(stream, b"")
            return
        if number <= self._last:
            if not number & 1 or number == 0:
                raise _Broken(Error.PROTOCOL_ERROR, f"a request on stream {number}")
            return  # behind the end of one that is over
        if not number & 1:
            raise _Broken(Error.PROTOCOL_ERROR, f"a request on stream {number}")
        self._last = number
        if self.leaving or len(self.streams) >= MOST_STREAMS:
            self._count_idle()
            self._put(_Kind.RST_STREAM, 0, number, _NUMBER.pack(Error.REFUSED_STREAM))
            return
        if isinstance(head, Malformed):
            self._count_reset()
            self._put(_Kind.RST_STREAM, 0, number, _NUMBER.pack(Error.PROTOCOL_ERROR))
            return
        self._idle_frames = 0
        stream = self.streams[number] = Stream(number, self._initial_credit)
        stream.ended = bool(flags & _END_STREAM)
        self._sink.request(stream, head)

    def _read(self, block: bytes) -> Any:
        """The head of a request, or why it is none.

        A block that left the decoder's table as it was means the same again, until another one changes that.
        """
        table = self._decoder.header_table
        size, count, first = table.maxsize, len(table.dynamic_entries), next(iter(table.dynamic_entries), None)
        try:
            fields: Any = self._decoder.decode(block, raw=True)
        except HPACKError as e:
            raise _Broken(Error.COMPRESSION_ERROR, f"a header block cannot be read: {e}") from None
        except Exception as e:  # hpack lets a few others out
            raise _Broken(Error.COMPRESSION_ERROR, f"a header block cannot be read: {e!r}") from None
        try:
            head = self._read_head(fields)
        except Malformed as e:
            return e
        # What is added to the table stands in front of it, and is an object of its own.
        entries = table.dynamic_entries
        if (size, count) != (table.maxsize, len(entries)) or first is not next(iter(entries), None):
            self._known.clear()
        elif len(block) <= _REMEMBERED_BYTES and len(self._known) < _REMEMBERED:
            self._known[block] = head
        return head

    def _known_number(self, number: int) -> None:
        if number == 0 or number > self._last or not number & 1:
            raise _Broken(Error.PROTOCOL_ERROR, f"a frame on stream {number}, which nobody has opened")

    def _on_reset(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _Broken(Error.FRAME_SIZE_ERROR, "RST_STREAM")
        self._known_number(number)
        stream = self.streams.get(number)
        if stream is not None:
            self._count_reset()
            self._drop(stream)
            self._sink.reset(stream)

    def _count_reset(self) -> None:
        """A client that opens calls only to give them up makes work without waiting for it (CVE-2023-44487)."""
        self._resets += 1
        if self._resets > MOST_RESETS:
            raise _Broken(Error.ENHANCE_YOUR_CALM, "too many calls were given up")

    def _on_priority(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 5 or number == 0:
            raise _Broken(Error.FRAME_SIZE_ERROR if number else Error.PROTOCOL_ERROR, "PRIORITY")

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise _Broken(Error.PROTOCOL_ERROR, "SETTINGS of a stream")
        if len(payload) % 6 or (flags & _ACK and payload):
            raise _Broken(Error.FRAME_SIZE_ERROR, "SETTINGS")
        self._settled = True
        if flags & _ACK:
            return
        for name, value in struct.iter_unpack("!HI", payload):
            self._set(name, value)
        self._put(_Kind.SETTINGS, _ACK, 0, b"")
        self.pump()

    def _set(self, name: int, value: int) -> None:
        if name == _INITIAL_WINDOW:
            if value > _MOST_WINDOW:
                raise _Broken(Error.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
            for stream in self.streams.values():
                stream._credit += value - self._initial_credit
                if stream._credit > _MOST_WINDOW:
                    raise _Broken(Error.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
            self._initial_credit = value
        elif name == _FRAME_SIZE:
            if not 16_384 <= value < 1 << 24:
                raise _Broken(Error.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
            self._frame_bytes = min(value, OUT_BYTES)
        elif name == _PUSH and value > 1:
            raise _Broken(Error.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")

    def _on_push(self, flags: int, number: int, payload: bytes) -> None:
        raise _Broken(Error.PROTOCOL_ERROR, "a client cannot push")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise _Broken(Error.PROTOCOL_ERROR if number else Error.FRAME_SIZE_ERROR, "PING")
        if not flags & _ACK:
            self._put(_Kind.PING, _ACK, 0, payload)

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) < 8:
            raise _Broken(Error.PROTOCOL_ERROR if number else Error.FRAME_SIZE_ERROR, "GOAWAY")
        self.leaving = True

    def _on_window_update(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _Broken(Error.FRAME_SIZE_ERROR, "WINDOW_UPDATE")
        more = _NUMBER.unpack(payload)[0] & _MOST_WINDOW
        if more == 0:
            raise _Broken(Error.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        if number == 0:
            self._credit += more
            if self._credit > _MOST_WINDOW:
                raise _Broken(Error.FLOW_CONTROL_ERROR, "WINDOW_UPDATE over its limit")
        else:
            self._known_number(number)
            stream = self.streams.get(number)
            if stream is None:
                return
            stream._credit += more
            if stream._credit > _MOST_WINDOW:
                raise _Broken(Error.FLOW_CONTROL_ERROR, "WINDOW_UPDATE over its limit")
        if self._blocked:
            self.pump()

    # -- out

    def widen(self, stream: Stream, size: int) -> None:
        """Let the client send `size` bytes of the stream at least."""
        if stream._window < size and not stream.ended and not stream.closed:
            more, stream._window = size - stream._window, size
            self._put(_Kind.WINDOW_UPDATE, 0, stream.id, _NUMBER.pack(more))

    def headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """`block` as `grpc.headers.block` makes it.  Trailers wait for what stands before them."""
        if stream.closed:
            return
        if end and stream._sending:
            stream._end = block
            return
        self._put_block(stream, block, end=end)

    def body(self, stream: Stream, data: bytes) -> None:
        if stream.closed or not data:
            return
        size = len(data)
        fits = size <= self._frame_bytes and size <= min(stream._credit, self._credit) and self._out_bytes < OUT_BYTES
        if fits and not stream._sending:
            stream._credit -= size  # the usual case
            self._credit -= size
            self._put(_Kind.DATA, 0, stream.id, data)
            return
        stream._sending.append(memoryview(data))
        stream.unsent += size
        self._blocked[stream.id] = stream
        self.pump()

    def reset(self, stream: Stream, code: Error) -> None:
        if not stream.closed:
            self._drop(stream)
            self._put(_Kind.RST_STREAM, 0, stream.id, _NUMBER.pack(code))

    def leave(self) -> None:
        """No further requests; those that are under way go on."""
        if not self.leaving and self.over is None:
            self._put(_Kind.GOAWAY, 0, 0, struct.pack("!II", self._last, Error.NO_ERROR))
        self.leaving = True

    def end(self, code: Error, why: str) -> None:
        """Nothing more on this connection."""
        if self.over is None:
            self._put(_Kind.GOAWAY, 0, 0, struct.pack("!II", self._last, code) + why.encode()[:256])
            self.over = why

    def take_out(self) -> bytes:
        """What is to be sent; call `pump` when it has been."""
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return data

    @property
    def gathered(self) -> int:
        """Bytes that wait for `take_out`."""
        return self._out_bytes

    def pump(self) -> None:
        """Put into frames what windows and OUT_BYTES allow, one frame of each stream in turn."""
        while self._blocked and self._credit > 0 and self._out_bytes < OUT_BYTES:
            able = [stream for stream in self._blocked.values() if stream._credit > 0]
            if not able:
                return
            for stream in able:
                if self._credit <= 0 or self._out_bytes >= OUT_BYTES:
                    return
                self._put_data(stream)

    def _put_data(self, stream: Stream) -> None:
        first = stream._sending[0]
        size = min(len(first), self._frame_bytes, stream._credit, self._credit)
        stream._credit -= size
        self._credit -= size
        stream.unsent -= size
        self._put(_Kind.DATA, 0, stream.id, bytes(first[:size]))
        if size < len(first):
            stream._sending[0] = first[size:]
            return
        stream._sending.popleft()
        if stream._sending:
            return
        del self._blocked[stream.id]
        if stream._end is not None:
            self._put_block(stream, stream._end, end=True)
        else:
            self._sink.room(stream)

    def _put_block(self, stream: Stream, block: bytes, *, end: bool) -> None:
        flags = _END_STREAM if end else 0
        size = self._frame_bytes
        if len(block) <= size:
            self._put(_Kind.HEADERS, flags | _END_HEADERS, stream.id, block)
        else:
            self._put(_Kind.HEADERS, flags, stream.id, block[:size])
            for at in range(size, len(block), size):
                last = _END_HEADERS if at + size >= len(block) else 0
                self._put(_Kind.CONTINUATION, last, stream.id, block[at : at + size])
        if end:
            self._resets = max(0, self._resets - 1)
            if not stream.ended:  # it need not send what nobody will read
                self._put(_Kind.RST_STREAM, 0, stream.id, _NUMBER.pack(Error.NO_ERROR))
            self._drop(stream)

    def _put(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self.over is None:
            size = len(payload)
            self._out.append(_HEAD.pack(size >> 8, size & 0xFF, kind, flags, number) + payload)
            self._out_bytes += 9 + size

    def _drop(self, stream: Stream) -> None:
        stream.closed = True
        stream._sending.clear()
        stream.unsent = 0
        self._blocked.pop(stream.id, None)
        self.streams.pop(stream.id, None)


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _Broken(Error.PROTOCOL_ERROR, "more padding than there is")
    return payload[1 : len(payload) - payload[0]]


_HANDLERS: dict[int, Callable[[Connection, int, int, bytes], None]] = {
    _Kind.PRIORITY: Connection._on_priority,
    _Kind.RST_STREAM: Connection._on_reset,
    _Kind.SETTINGS: Connection._on_settings,
    _Kind.PUSH_PROMISE: Connection._on_push,
    _Kind.PING: Connection._on_ping,
    _Kind.GOAWAY: Connection._on_goaway,
    _Kind.WINDOW_UPDATE: Connection._on_window_update,
    _Kind.CONTINUATION: Connection._on_continuation,
}
