"""HTTP/2 without sockets, against the h2 package as the client, and byte by byte against RFC 9113."""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from tserve.grpc import http2
from tserve.grpc.headers import DONE
from tserve.grpc.http2 import PREFACE, STREAM_WINDOW, Connection, Error, Malformed, Stream

ASKED = [(":method", "POST"), (":path", "/s/m"), (":scheme", "http"), (":authority", "h"), ("te", "trailers")]
OK = b"\x88"  # `:status: 200` of the static table
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, UPDATE, CONTINUATION = range(10)


@dataclass
class Echo:
    """Answers each request with the bytes of its body, in answers of so many bytes, once it has ended."""

    piece: int = 1 << 30
    heads: dict[int, Any] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=lambda: defaultdict(bytes))
    given_up: set[int] = field(default_factory=set)
    http2: Connection = field(init=False)

    def __post_init__(self) -> None:
        self.http2 = Connection(self, read_head)

    def request(self, stream: Stream, head: Any) -> None:
        self.heads[stream.id] = head
        self._answer(stream)

    def data(self, stream: Stream, data: bytes) -> None:
        self.bodies[stream.id] += data
        self.http2.widen(stream, STREAM_WINDOW)
        self._answer(stream)

    def reset(self, stream: Stream) -> None:
        self.given_up.add(stream.id)

    def room(self, stream: Stream) -> None:
        assert stream.unsent == 0

    def _answer(self, stream: Stream) -> None:
        if stream.ended:
            self.http2.headers(stream, OK)
            body = self.bodies[stream.id]
            for start in range(0, len(body), self.piece):
                self.http2.body(stream, body[start : start + self.piece])
            self.http2.headers(stream, DONE, end=True)


def read_head(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    read = [tuple(each) for each in fields]
    if (b"bad", b"request") in read:
        raise Malformed
    return read  # type: ignore[return-value]


class Client:
    """The h2 package at the other end."""

    def __init__(self, echo: Echo, **local: int) -> None:
        self.echo = echo
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.h2.initiate_connection()
        if local:
            self.h2.update_settings({h2.settings.SettingCodes[name.upper()]: value for name, value in local.items()})
        self.bodies: dict[int, bytes] = defaultdict(bytes)
        self.ended: set[int] = set()
        self.ended_by: int | None = None

    def exchange(self, chance: random.Random | None = None, *, acknowledge: bool = True) -> None:
        """Pass bytes on until neither side has more to say, cut at random if there is a chance."""
        while True:
            up, down = self.h2.data_to_send(), self.echo.http2.take_out()
            if not up and not down:
                self.echo.http2.pump()
                if not self.echo.http2.gathered:
                    return
            for part in cut(up, chance):
                self.echo.http2.receive(part)
            for part in cut(down, chance):
                self._take(part, acknowledge)

    def _take(self, data: bytes, acknowledge: bool) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                if acknowledge:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.ended_by = int(event.error_code)


def cut(data: bytes, chance: random.Random | None) -> Iterable[bytes]:
    while data:
        size = chance.choice([1, 9, 100, 20_000, len(data)]) if chance else len(data)
        yield data[:size]
        data = data[size:]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_byte_arrives_whatever_windows_and_cuts_there_are(seed: int) -> None:
    chance = random.Random(seed)
    echo = Echo(piece=chance.choice([1 << 30, 1000, 70_000]))
    window, frame = chance.choice([1_000, 65_535, 1 << 20]), chance.choice([16_384, 100_000])
    client = Client(echo, initial_window_size=window, max_frame_size=frame)
    client.exchange(chance)
    left = {
        2 * number + 1: chance.randbytes(chance.choice([0, 1, 5, 3_000, 200_000]))
        for number in range(chance.randrange(8))
    }
    whole, given_up = dict(left), set()
    for number in left:
        extra = [(f"x-{chance.randrange(3)}", "v" * chance.randrange(60))]
        client.h2.send_headers(number, ASKED + extra, end_stream=not left[number])
        if chance.random() < 0.3:
            client.exchange(chance)
    while any(left.values()):
        number = chance.choice([number for number, body in left.items() if body])
        if chance.random() < 0.05:
            client.h2.reset_stream(number)
            given_up.add(number)
            left[number] = b""
            continue
        room = min(client.h2.local_flow_control_window(number), client.h2.max_outbound_frame_size, len(left[number]))
        padding = chance.choice([None, None, 0, 200]) if room > 300 else None
        size = room - 300 if padding is not None else room
        client.h2.send_data(number, left[number][:size], end_stream=size == len(left[number]), pad_length=padding)
        left[number] = left[number][size:]
        if size < 1000 or chance.random() < 0.3:
            client.exchange(chance)
        if chance.random() < 0.05:
            client.h2.ping(b"12345678")
        if chance.random() < 0.05:
            client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: chance.choice([1_000, 90_000])})
    client.exchange(chance)
    assert client.ended_by is None
    assert echo.http2.over is None
    assert echo.given_up == given_up
    for number in whole.keys() - given_up:
        assert client.bodies[number] == whole[number]
        assert number in client.ended
    assert not echo.http2.streams


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_header_blocks_mean_what_a_plain_decoder_reads(seed: int) -> None:
    """Also those that are remembered, and when the client's table loses entries."""
    chance = random.Random(seed)
    encoder, decoder, echo = Encoder(), Decoder(), Echo()
    echo.http2.receive(PREFACE + frame(SETTINGS))
    for number in range(1, 121, 2):
        if chance.random() < 0.05:
            encoder.header_table_size = chance.choice([0, 60, 200, 4096])
        fields = [(name.encode(), value.encode()) for name, value in ASKED]
        fields += [
            (b"x-%d" % chance.randrange(4), b"v" * chance.choice([1, 2, 30])) for _ in range(chance.randrange(3))
        ]
        sensitive = chance.random() < 0.2
        block = encoder.encode([(name, value, sensitive) for name, value in fields], huffman=chance.random() < 0.5)
        assert [tuple(each) for each in decoder.decode(block, raw=True)] == fields
        echo.http2.receive(frame(HEADERS, 0x5, number, block))
        assert echo.heads[number] == fields
    assert echo.http2.over is None


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack("!HBBBI", size >> 8, size & 255, kind, flags, stream) + payload


def block(*more: tuple[str, str]) -> bytes:
    """A header block that needs no table."""
    encoded: bytes = Encoder().encode([(name, value, True) for name, value in [*ASKED, *more]], huffman=False)
    return encoded


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while data:
        high, low, kind, flags, stream = struct.unpack("!HBBBI", data[:9])
        size = high << 8 | low
        found.append((kind, flags, stream, data[9 : 9 + size]))
        data = data[9 + size :]
    return found


REQUEST = frame(HEADERS, 0x4, 1, block())
ENDED = frame(HEADERS, 0x5, 1, block())
NUMBER = struct.Struct("!I").pack


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (frame(PING, payload=bytes(8)), Error.PROTOCOL_ERROR),  # 3.4: SETTINGS come first
        (frame(SETTINGS) + frame(DATA, length=(256 << 10) + 1), Error.FRAME_SIZE_ERROR),  # 4.2
        (frame(SETTINGS) + frame(HEADERS, 0x4, 1, b"\xff\xff\xff\xff\xff"), Error.COMPRESSION_ERROR),  # 4.3
        (frame(SETTINGS) + frame(HEADERS, 0x4, 2, block()), Error.PROTOCOL_ERROR),  # 5.1.1: even
        (frame(SETTINGS) + frame(HEADERS, 0x4, 0, block()), Error.PROTOCOL_ERROR),
        (frame(SETTINGS) + frame(DATA, 0, 1, b"x"), Error.PROTOCOL_ERROR),  # 5.1: idle
        (frame(SETTINGS) + frame(RST, 0, 1, NUMBER(8)), Error.PROTOCOL_ERROR),
        (frame(SETTINGS) + frame(UPDATE, 0, 1, NUMBER(8)), Error.PROTOCOL_ERROR),
        (frame(SETTINGS) + frame(DATA, 0, 0, b"x"), Error.PROTOCOL_ERROR),  # 6.1
        (frame(SETTINGS) + REQUEST + frame(DATA, 0x8, 1, b"\x05abc"), Error.PROTOCOL_ERROR),
        (frame(SETTINGS) + REQUEST + frame(DATA, 0x8, 1, b""), Error.PROTOCOL_ERROR),
        (frame(SETTINGS) + frame(HEADERS, 0xC, 1, b"\xff" + block()), Error.PROTOCOL_ERROR),  # 6.2
        (frame(SETTINGS) + frame(HEADERS, 0x24, 1, b"1234"), Error.FRAME_SIZE_ERROR),
        (frame(SETTINGS) + frame(PRIORITY, 0, 0, bytes(5)), Error.PROTOCOL_ERROR),  # 6.3
        (frame(SETTINGS) + frame(PRIORITY, 0, 1, bytes(4)), Error.FRAME_SIZE_ERROR),
        (frame(SETTINGS) + REQUEST + frame(RST, 0, 1, bytes(3)), Error.FRAME_SIZE_ERROR),  # 6.4
        (frame(SETTINGS) + frame(RST, 0, 0, NUMBER(8)), Error.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 1), Error.PROTOCOL_ERROR),  # 6.5
        (frame(SETTINGS, 0, 0, bytes(5)), Error.FRAME_SIZE_ERROR),
        (frame(SETTINGS) + frame(SETTINGS, 0x1, 0, bytes(6)), Error.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, struct.pack("!HI", 2, 2)), Error.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 1 << 31)), Error.FLOW_CONTROL_ERROR),
        (frame(SETTINGS, 0, 0, struct.pack("!HI", 5, 16_383)), Error.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, struct.pack("!HI", 5, 1 << 24)), Error.PROTOCOL_ERROR),
        (frame(SETTINGS) + frame(PUSH, 0x4, 1, NUMBER(2) + block()), Error.PROTOCOL_ERROR),  # 6.6
        (frame(SETTINGS) + frame(PING, 0, 1, bytes(8)), Error.PROTOCOL_ERROR),  # 6.7
        (frame(SETTINGS) + frame(PING, 0, 0, bytes(7)), Error.FRAME_SIZE_ERROR),
        (frame(SETTINGS) + frame(GOAWAY, 0, 1, bytes(8)), Error.PROTOCOL_ERROR),  # 6.8
        (frame(SETTINGS) + frame(GOAWAY, 0, 0, bytes(7)), Error.FRAME_SIZE_ERROR),
        (frame(SETTINGS) + frame(UPDATE, 0, 0, NUMBER(0)), Error.PROTOCOL_ERROR),  # 6.9
        (frame(SETTINGS) + frame(UPDATE, 0, 0, bytes(3)), Error.FRAME_SIZE_ERROR),
        (frame(SETTINGS) + frame(UPDATE, 0, 0, NUMBER(2**31 - 1)), Error.FLOW_CONTROL_ERROR),
        (frame(SETTINGS) + REQUEST + frame(UPDATE, 0, 1, NUMBER(2**31 - 1)), Error.FLOW_CONTROL_ERROR),
        (frame(SETTINGS) + REQUEST + frame(DATA, 0, 1, bytes(STREAM_WINDOW + 1)), Error.FLOW_CONTROL_ERROR),
        (frame(SETTINGS) + frame(CONTINUATION, 0x4, 1, b""), Error.PROTOCOL_ERROR),  # 6.10
        (frame(SETTINGS) + frame(HEADERS, 0, 1, b"") + frame(PING, payload=bytes(8)), Error.PROTOCOL_ERROR),
        (frame(SETTINGS) + frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0x4, 3, b""), Error.PROTOCOL_ERROR),
        (frame(SETTINGS) + frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 17, Error.ENHANCE_YOUR_CALM),
        (frame(SETTINGS) + frame(HEADERS, 0, 1, bytes(200_000)), Error.ENHANCE_YOUR_CALM),
        (frame(SETTINGS) + frame(HEADERS, 0x4, 1, block(("a", "b" * 66_000))), Error.COMPRESSION_ERROR),
        (frame(SETTINGS) + REQUEST + REQUEST, Error.PROTOCOL_ERROR),  # 8.1: trailers that do not end
        (frame(SETTINGS) + frame(PING, payload=bytes(8)) * 10_001, Error.ENHANCE_YOUR_CALM),
        (frame(SETTINGS) * 10_002, Error.ENHANCE_YOUR_CALM),
        (
            frame(SETTINGS) + REQUEST + frame(DATA, 0, 1) * 10_002 + frame(PING, payload=bytes(8)),
            Error.ENHANCE_YOUR_CALM,
        ),
        (frame(SETTINGS) + frame(99) * 10_002, Error.ENHANCE_YOUR_CALM),
    ],
)
def test_what_ends_a_connection(said: bytes, code: Error) -> None:
    for parts in ([said], [said[at : at + 7] for at in range(0, len(said), 7)] if len(said) < 5_000 else [said]):
        echo = Echo()
        echo.http2.receive(PREFACE)
        for part in parts:
            echo.http2.receive(part)
        assert echo.http2.over is not None
        last = frames(echo.http2.take_out())[-1]
        assert (last[0], Error(struct.unpack("!I", last[3][4:8])[0])) == (GOAWAY, code)
        echo.http2.receive(ENDED)
        assert not frames(echo.http2.take_out()), "nothing is said after it"


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nXX"])
def test_what_is_not_http2(said: bytes) -> None:
    echo = Echo()
    echo.http2.receive(said)
    assert echo.http2.over == "this is not HTTP/2"
    assert not echo.http2.greeted


@pytest.mark.parametrize(
    "said",
    [
        frame(99, 0xFF, 0x7FFFFFFF, b"unknown kinds are nobody's business"),
        frame(SETTINGS, 0, 0, struct.pack("!HI", 99, 1)),
        frame(PRIORITY, 0, 77, bytes(5)),
        frame(RST, 0, 1, NUMBER(8)) + frame(DATA, 0, 1, b"late") + frame(UPDATE, 0, 1, NUMBER(8)),
        frame(GOAWAY, 0, 0, bytes(8)),
    ],
)
def test_what_is_harmless(said: bytes) -> None:
    echo = Echo()
    echo.http2.receive(PREFACE + frame(SETTINGS) + ENDED + said)
    assert echo.http2.over is None


def test_malformed_requests_cost_their_stream() -> None:
    echo = Echo()
    echo.http2.receive(PREFACE + frame(SETTINGS) + frame(HEADERS, 0x5, 1, block(("bad", "request"))))
    assert frames(echo.http2.take_out())[-1] == (RST, 0, 1, NUMBER(Error.PROTOCOL_ERROR))
    echo.http2.receive(frame(HEADERS, 0x5, 3, block()))
    assert list(echo.heads) == [3]


def test_no_more_streams_than_there_may_be() -> None:
    echo = Echo()
    echo.http2.receive(PREFACE + frame(SETTINGS))
    for number in range(http2.MOST_STREAMS + 1):
        echo.http2.receive(frame(HEADERS, 0x4, 2 * number + 1, block()))
    assert len(echo.http2.streams) == http2.MOST_STREAMS
    refused = 2 * http2.MOST_STREAMS + 1
    assert frames(echo.http2.take_out())[-1] == (RST, 0, refused, NUMBER(Error.REFUSED_STREAM))


def test_calls_that_are_given_up_one_after_another_end_the_connection() -> None:
    """CVE-2023-44487; what comes to an end makes up for it."""
    echo = Echo()
    echo.http2.receive(PREFACE + frame(SETTINGS))
    number = 1
    for _ in range(http2.MOST_RESETS):
        echo.http2.receive(frame(HEADERS, 0x4, number, block()) + frame(RST, 0, number, NUMBER(8)))
        echo.http2.receive(frame(HEADERS, 0x5, number + 2, block()))
        number += 4
    assert echo.http2.over is None
    for _ in range(http2.MOST_RESETS + 1):
        echo.http2.receive(frame(HEADERS, 0x4, number, block()) + frame(RST, 0, number, NUMBER(8)))
        number += 2
    assert echo.http2.over is not None


def test_an_answer_before_the_end_of_the_request() -> None:
    """The client need not send what nobody will read."""
    echo = Echo()
    echo.http2.receive(PREFACE + frame(SETTINGS) + REQUEST)
    stream = echo.http2.streams[1]
    echo.http2.take_out()
    echo.http2.headers(stream, OK, end=True)
    said = frames(echo.http2.take_out())
    assert [(kind, flags) for kind, flags, _, _ in said] == [(HEADERS, 0x5), (RST, 0)]
    assert said[1][3] == NUMBER(Error.NO_ERROR)
    echo.http2.receive(frame(DATA, 0x1, 1, b"x"))
    assert echo.http2.over is None


def test_a_client_that_does_not_read_is_owed_a_bounded_number_of_frames() -> None:
    echo = Echo()
    windows = frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 2**31 - 1)) + frame(UPDATE, 0, 0, NUMBER(2**31 - 1 - 65_535))
    echo.http2.receive(PREFACE + windows + frame(HEADERS, 0x4, 1, block()))
    echo.http2.take_out()
    stream = echo.http2.streams[1]
    for _ in range(100):
        echo.http2.body(stream, bytes(100_000))
    assert echo.http2.gathered < http2.OUT_BYTES + 200_000
    assert stream.unsent + echo.http2.gathered >= 10_000_000
    total = 0
    while stream.unsent or echo.http2.gathered:
        total += sum(len(payload) for kind, _, _, payload in frames(echo.http2.take_out()) if kind == DATA)
        echo.http2.pump()
    assert total == 10_000_000


def test_streams_share_a_window_fairly() -> None:
    echo = Echo()
    windows = frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 1 << 20))
    echo.http2.receive(PREFACE + windows + b"".join(frame(HEADERS, 0x4, number, block()) for number in (1, 3)))
    for stream in list(echo.http2.streams.values()):
        echo.http2.body(stream, bytes(500_000))
    assert echo.http2.streams[1].unsent == 500_000 - 65_535, "who comes first gets what there is"
    echo.http2.take_out()
    echo.http2.receive(frame(UPDATE, 0, 0, NUMBER(100_000)))
    sent: dict[int, int] = defaultdict(int)
    for kind, _, number, payload in frames(echo.http2.take_out()):
        if kind == DATA:
            sent[number] += len(payload)
    assert sum(sent.values()) == 100_000
    assert sent[1] == pytest.approx(sent[3], abs=16_384)


def test_leaving_lets_what_is_under_way_finish() -> None:
    echo = Echo()
    echo.http2.receive(PREFACE + frame(SETTINGS) + REQUEST)
    echo.http2.leave()
    assert frames(echo.http2.take_out())[-1][0] == GOAWAY
    echo.http2.receive(frame(HEADERS, 0x5, 3, block()) + frame(DATA, 0x1, 1, b"x"))
    said = frames(echo.http2.take_out())
    assert said[0] == (RST, 0, 3, NUMBER(Error.REFUSED_STREAM))
    assert [kind for kind, _, number, _ in said if number == 1] == [HEADERS, DATA, HEADERS]
