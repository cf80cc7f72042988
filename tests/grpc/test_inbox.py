"""Messages out of bytes: however they are cut, within their limits, packed or not."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tserve.grpc.codes import Code
from tserve.grpc.inbox import Inbox, unpacked
from tserve.grpc.methods import Refusal

MOST = 1000


def message(data: bytes, first: int = 0) -> bytes:
    return bytes((first,)) + len(data).to_bytes(4, "big") + data


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=6), st.data())
def test_messages_come_whole_however_they_are_cut(messages: list[tuple[bool, bytes]], data: st.DataObject) -> None:
    said = b"".join(message(body, packed) for packed, body in messages)
    inbox, found = Inbox(MOST), []
    while said:
        size = data.draw(st.integers(1, len(said)))
        found += inbox.feed(said[:size])
        said = said[size:]
        assert 0 <= inbox.missing <= 45
    assert found == messages
    assert inbox.held == 0


def test_what_is_missing_is_known_once_the_length_is() -> None:
    inbox = Inbox(MOST)
    assert (inbox.feed(message(bytes(100))[:4]), inbox.missing, inbox.held) == ([], 0, 4)
    assert (inbox.feed(message(bytes(100))[4:10]), inbox.missing, inbox.held) == ([], 95, 10)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (message(bytes(MOST + 1)), Code.RESOURCE_EXHAUSTED),
        (b"\0\xff\xff\xff\xff", Code.RESOURCE_EXHAUSTED),
        (message(b"x", 2), Code.INTERNAL),
        (message(b"", 255), Code.INTERNAL),
    ],
)
def test_what_is_refused(said: bytes, code: Code) -> None:
    """As soon as the five bytes are there, not when all of it is."""
    for inbox in (Inbox(MOST), Inbox(MOST)):
        with pytest.raises(Refusal) as refusal:
            inbox.feed(said[:5])
        assert refusal.value.code is code
    assert Inbox(MOST).feed(message(bytes(MOST))) == [(False, bytes(MOST))]


async def test_unpacking() -> None:
    for pack in (gzip.compress, zlib.compress):
        assert await unpacked((True, pack(bytes(MOST))), MOST) == bytes(MOST)
        large = pack(b"".join(number.to_bytes(4, "big") for number in range(60_000)), 1)
        assert len(large) > 64 << 10, "it goes through a thread"
        assert len(await unpacked((True, large), 240_000)) == 240_000
    assert await unpacked((False, b"as it is"), MOST) == b"as it is"


@pytest.mark.parametrize(
    ("packed", "code"),
    [
        (gzip.compress(bytes(MOST + 1)), Code.RESOURCE_EXHAUSTED),
        (gzip.compress(bytes(100_000_000)), Code.RESOURCE_EXHAUSTED),
        (gzip.compress(b"x" * 500)[:-9], Code.INTERNAL),
        (b"no gzip", Code.INTERNAL),
        (b"", Code.INTERNAL),
    ],
    # gzip writes the time down: names made of its bytes would differ between two collections.
    ids=["a byte too long", "a bomb", "cut off", "not packed", "nothing"],
)
async def test_what_cannot_be_unpacked(packed: bytes, code: Code) -> None:
    with pytest.raises(Refusal) as refusal:
        await unpacked((True, packed), MOST)
    assert refusal.value.code is code
