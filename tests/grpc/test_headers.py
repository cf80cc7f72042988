"""Heads of calls, and the blocks that answer them, against the hpack package."""

from __future__ import annotations

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from tserve.grpc.codes import Code
from tserve.grpc.headers import ANSWER, DONE, METADATA_BYTES, field, read_head, refusal, trailers
from tserve.grpc.http2 import Malformed

CALL = [(b":method", b"POST"), (b":path", b"/s/m"), (b":scheme", b"http"), (b"content-type", b"application/grpc")]


def decoded(block: bytes) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in Decoder().decode(block, raw=True)}


@given(st.binary(max_size=300).map(lambda raw: raw.lower()), st.binary(max_size=70_000))
def test_fields_are_read_back(name: bytes, value: bytes) -> None:
    decoder = Decoder(max_header_list_size=1 << 20)
    assert [tuple(each) for each in decoder.decode(field(name, value), raw=True)] == [(name, value)]
    assert not decoder.header_table.dynamic_entries, "the client's table is left alone"


def test_a_head() -> None:
    head = read_head([*CALL, (b"te", b"trailers"), (b"grpc-timeout", b"100m"), (b"x-a", b"1"), (b"y-bin", b"AQI")])
    assert (head.path, head.timeout_s, head.encoding, head.problem) == ("s/m", pytest.approx(0.1), "identity", None)
    assert head.metadata == {"x-a": "1", "y-bin": b"\1\2"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"99999999S", 99999999)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert read_head([*CALL, (b"grpc-timeout", text)]).timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ([(b":method", b"GET"), *CALL[1:]], {":status": "405", "allow": "POST"}),
        (CALL[:3], {":status": "415"}),
        ([*CALL[:3], (b"content-type", b"application/json")], {":status": "415"}),
        ([*CALL, (b"grpc-timeout", b"1")], {"grpc-status": "13"}),
        ([*CALL, (b"grpc-timeout", b"123456789S")], {"grpc-status": "13"}),
        ([*CALL, (b"grpc-timeout", b"-1S")], {"grpc-status": "13"}),
        (
            [*CALL, (b"grpc-encoding", b"snappy")],
            {"grpc-status": "12", "grpc-accept-encoding": "identity,deflate,gzip"},
        ),
        ([*CALL, (b"x", b"v" * METADATA_BYTES)], {"grpc-status": "8"}),
    ],
)
def test_calls_that_cannot_be_served(fields: list[tuple[bytes, bytes]], shown: dict[str, str]) -> None:
    problem = read_head(fields).problem
    assert problem is not None
    assert shown.items() <= decoded(problem).items()


@pytest.mark.parametrize(
    "fields",
    [
        [],
        CALL[1:],
        [*CALL[:2], CALL[3]],
        [*CALL, (b":path", b"/other")],
        [CALL[0], *CALL],
        [*CALL, (b"Upper", b"x")],
        [(b"x", b"first"), *CALL],
    ],
)
def test_what_is_no_request(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Malformed):
        read_head(fields)


def test_answers() -> None:
    assert decoded(ANSWER)[":status"] == "200"
    assert decoded(ANSWER)["content-type"] == "application/grpc"
    assert decoded(DONE) == {"grpc-status": "0"}
    told = decoded(refusal(Code.NOT_FOUND, "no 100 % ä\nwhatsoever", [("tserve-cause", "{}")]))
    assert told["grpc-message"] == "no 100 %25 %C3%A4%0Awhatsoever"
    assert (told["grpc-status"], told["tserve-cause"]) == ("5", "{}")


@given(st.text())
def test_texts_are_printable_ascii(text: str) -> None:
    said = decoded(trailers(Code.UNKNOWN, text)).get("grpc-message", "")
    assert said.isascii()
    assert said == "" or said.isprintable()
