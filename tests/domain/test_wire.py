"""The frame codec: whatever the portions, the same frames; whatever the bytes, frames or WireError."""

from __future__ import annotations

import contextlib
import itertools
import struct
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tserve.domain.wire import (
    BODY_LIMIT,
    META_LIMIT,
    Decoder,
    Frame,
    HandlerFailed,
    Input,
    JobReply,
    JobRequest,
    Kind,
    WireError,
    decode_batch,
    decode_reply,
    encode_batch,
    encode_reply,
)

HEAD = struct.Struct("!BxxxIQQ")
REQUESTS = [
    JobRequest("id-1", {"Host": "h", "X-Ünï": "\udcff"}, (Input("body", "", b"\0\xff"), Input("b", "text/plain", b""))),
    JobRequest("id-2", {}, ()),
]
REPLIES = [
    JobReply(200, "", {}, b"one"),
    JobReply(429, "slow", {"content-type": "a/b"}, b""),
    JobReply(200, "", {}, b"3"),
]
FRAMES = [
    Frame(Kind.LOAD, 0, {"model_name": "m", "manifest": None, "n": [1, 2.5, True]}),
    Frame(Kind.LOADED, 2**64 - 1, {"ok": True}),
    Frame(Kind.BATCH, 7, {}, b"raw \0 bytes"),
    Frame(Kind.REPLY, 0, {"é": "\ud800"}),
    encode_batch(1, REQUESTS),
    encode_reply(1, REPLIES),
    encode_reply(1, HandlerFailed(503, "Prediction failed", "trace")),
]

text = st.text(max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
frames = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, 2**64 - 1),
    st.dictionaries(text, json_value, max_size=4),
    st.binary(max_size=200),
)
inputs = st.builds(Input, text, text, st.binary(max_size=40))
requests = st.builds(JobRequest, text, st.dictionaries(text, text, max_size=3), st.lists(inputs, max_size=3).map(tuple))
replies = st.builds(
    JobReply, st.integers(100, 999), text, st.dictionaries(text, text, max_size=3), st.binary(max_size=40)
)


def decode(portions: Iterable[bytes]) -> list[Frame]:
    decoder = Decoder()
    found = [frame for portion in portions for frame in decoder.feed(portion)]
    decoder.end()
    return found


def head(kind: int = Kind.REPLY, meta: int = 2, body: int = 0, number: int = 0) -> bytes:
    return HEAD.pack(kind, meta, body, number)


@pytest.mark.parametrize("frame", FRAMES)
def test_one_byte_at_a_time(frame: Frame) -> None:
    data = frame.encode()
    assert decode(data[i : i + 1] for i in range(len(data))) == [frame]


@pytest.mark.parametrize("frame", FRAMES)
def test_split_at_each_offset(frame: Frame) -> None:
    """Two frames, so that the cut also falls behind a whole frame."""
    data = frame.encode() * 2
    for cut in range(len(data) + 1):
        assert decode([data[:cut], data[cut:]]) == [frame, frame]


@pytest.mark.parametrize("frame", FRAMES)
def test_a_hang_up_within_a_frame_is_an_error(frame: Frame) -> None:
    data = frame.encode()
    for cut in range(1, len(data)):
        decoder = Decoder()
        assert list(decoder.feed(data[:cut])) == []
        with pytest.raises(WireError, match=f"after {cut} of "):
            decoder.end()


def test_a_hang_up_between_frames_is_none() -> None:
    decoder = Decoder()
    decoder.end()
    assert len(list(decoder.feed(FRAMES[0].encode()))) == 1
    decoder.end()


def test_all_frames_of_one_portion_come_in_order() -> None:
    assert decode([b"".join(frame.encode() for frame in FRAMES)]) == FRAMES


def test_frames_ahead_of_an_error_still_come() -> None:
    feed = Decoder().feed(FRAMES[0].encode() + head(meta=META_LIMIT + 1))
    assert next(feed) == FRAMES[0]
    with pytest.raises(WireError):
        next(feed)


@pytest.mark.parametrize(
    "lengths", [(META_LIMIT + 1, 0), (2**32 - 1, 0), (2, BODY_LIMIT + 1), (2, 2**64 - 1), (2**32 - 1, 2**64 - 1)]
)
def test_an_oversized_length_is_refused_by_the_head_alone(lengths: tuple[int, int]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="over the limit"):
            list(Decoder().feed(head(meta=lengths[0], body=lengths[1])))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_nothing_is_allocated_for_bytes_that_have_not_come() -> None:
    decoder = Decoder()
    tracemalloc.start()
    try:
        assert list(decoder.feed(head(meta=META_LIMIT, body=BODY_LIMIT))) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_side_may_set_a_lower_limit() -> None:
    small = Frame(Kind.REPLY, 0, {}, b"x" * 10)
    assert list(Decoder(body_limit=10).feed(small.encode())) == [small]
    with pytest.raises(WireError, match="over the limit"):
        list(Decoder(body_limit=9).feed(small.encode()))


@pytest.mark.parametrize(
    "data",
    [
        head(kind=0) + b"{}",
        head(kind=8) + b"{}",
        head(kind=255) + b"{}",
        head(meta=0),
        head(meta=1) + b"{",
        head(meta=2) + b"[]",
        head(meta=4) + b"null",
        head(meta=3) + b"{}}",
        head(meta=4) + b"\xff\xfe\xfd\xfc",
        head(meta=100_000) + b"[" * 100_000,
        head(meta=500_000) + b'{"a":' * 100_000,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"Traceback (most recent call last):\n",
    ],
    ids=lambda data: repr(data[24:40]),
)
def test_what_is_no_frame_is_an_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode([data])


@given(st.binary(max_size=200))
def test_garbage_is_frames_or_an_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        decode([data])


@given(st.sampled_from(FRAMES), st.data())
def test_a_damaged_frame_is_frames_or_an_error(frame: Frame, data: st.DataObject) -> None:
    """Any one byte replaced: no other exception, and no endless loop."""
    damaged = bytearray(frame.encode())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        (found,) = decode([bytes(damaged)])
        decode_reply(found)


@settings(max_examples=50)
@given(st.lists(frames, max_size=4), st.data())
def test_frames_round_trip(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(frame.encode() for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    edges = [0, *cuts, len(stream)]
    assert decode(stream[a:b] for a, b in itertools.pairwise(edges)) == sent


@given(st.lists(requests, max_size=4))
def test_batches_round_trip(sent: list[JobRequest]) -> None:
    (frame,) = decode([encode_batch(3, sent).encode()])
    assert (frame.kind, frame.id, decode_batch(frame)) == (Kind.BATCH, 3, sent)


@given(st.lists(replies, max_size=4) | st.builds(HandlerFailed, st.integers(100, 999), text, text))
def test_replies_round_trip(sent: list[JobReply] | HandlerFailed) -> None:
    (frame,) = decode([encode_reply(3, sent).encode()])
    assert (frame.kind, frame.id, decode_reply(frame)) == (Kind.REPLY, 3, sent)


def test_bodies_are_not_encoded() -> None:
    """Raw bytes as they are, once: nothing of a body is in the JSON."""
    body = bytes(range(256)) * 10
    frame = encode_reply(0, [JobReply(200, "", {}, body)])
    assert frame.encode().endswith(body)
    assert len(frame.encode()) - len(body) < 100


def reply(*parts: object, body: bytes = b"") -> Frame:
    return Frame(Kind.REPLY, 0, {"replies": list(parts)}, body)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.LOADED, 0, {"ok": True}),
        Frame(Kind.LOADED, 0, {"replies": []}),
        Frame(Kind.LOADED, 0, {"failed": [500, "m", "d"]}),
        Frame(Kind.REPLY, 0, {}),
        Frame(Kind.REPLY, 0, {"failed": ["x", "m", ""]}),
        Frame(Kind.REPLY, 0, {"failed": [float("inf"), "m", ""]}),
        Frame(Kind.REPLY, 0, {"failed": [500, "m"]}),
        Frame(Kind.REPLY, 0, {"failed": None}),
        Frame(Kind.REPLY, 0, {"replies": None}),
        Frame(Kind.REPLY, 0, {"replies": 1}),
        reply([200, "", {}]),
        reply([200, "", {}, 1, 2]),
        reply([None, "", {}, 0]),
        reply([float("inf"), "", {}, 0]),
        reply([200, "", "headers", 0]),
        reply([200, "", {}, "3"], body=b"abc"),
        reply([200, "", {}, 2], body=b"abc"),
        reply([200, "", {}, 4], body=b"abc"),
        reply([200, "", {}, 5], [200, "", {}, -2], [200, "", {}, 2], body=b"abcde"),
        reply(body=b"left over"),
    ],
)
def test_what_is_no_reply_is_an_error(frame: Frame) -> None:
    with pytest.raises(WireError):
        decode_reply(frame)
