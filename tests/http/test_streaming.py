"""Streamed answers on the wire (spec/inference.md section 6)."""

from __future__ import annotations

import json

import h2.connection
import h2.errors
import h2.events
import h11
import pytest
import trio

from tests.http.stack import Api, Streamed
from tserve.domain.wire import HandlerFailed, JobReply
from tserve.services import inference

NEXT, LAST = {"ts_stream_next": "true"}, {"ts_stream_next": "false"}


def streamed(*pieces: str, end: JobReply | HandlerFailed | None, **headers: str) -> Streamed:
    return Streamed([JobReply(200, "", {**headers, **NEXT}, piece.encode()) for piece in pieces], end)


async def raw(api: Api, request: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    answer = b""
    async with await trio.open_tcp_stream(*api.inference.address) as stream:
        await stream.send_all(request)
        with trio.fail_after(10):
            while data := await stream.receive_some():
                answer += data
    return answer


POST = b"POST /predictions/noop HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


async def test_each_piece_is_a_chunk_of_its_own(api: Api) -> None:
    stream = streamed("one|", "two|", end=JobReply(200, "", LAST, b"end"), **{"content-type": "text/plain"})
    await api.up(lambda spec, request: stream)
    head, _, body = (await raw(api, POST)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
    common = [b"x-request-id", b"pragma", b"cache-control", b"expires", b"transfer-encoding", b"connection"]
    assert names == [b"content-type", b"ts_stream_next", *common]
    assert b"\r\nts_stream_next: true" in head
    assert body == b"4\r\none|\r\n4\r\ntwo|\r\n3\r\nend\r\n0\r\n\r\n"


async def test_an_empty_end_adds_no_chunk(api: Api) -> None:
    await api.up(lambda spec, request: streamed("one", end=JobReply(200, "", LAST, b"")))
    assert (await raw(api, POST)).endswith(b"\r\n\r\n3\r\none\r\n0\r\n\r\n")


async def test_the_connection_serves_on_after_a_stream(api: Api) -> None:
    await api.up(lambda spec, request: streamed("a", "b", end=JobReply(200, "", LAST, b"c")))
    async with api.inference.connect() as connection:
        for _ in range(3):
            answer = await connection.ask("POST", "/predictions/noop", b"x")
            assert (answer.status, answer.body, answer.header("connection")) == (200, b"abc", "keep-alive")


async def test_an_old_client_gets_a_stream_without_chunks(api: Api) -> None:
    await api.up(lambda spec, request: streamed("a", "b", end=JobReply(200, "", LAST, b"c")))
    answer = await raw(api, b"POST /predictions/noop HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nabc")
    assert b"chunked" not in answer


@pytest.mark.parametrize("end", [HandlerFailed(503, "Prediction failed", "trace"), None])
async def test_a_stream_that_breaks_lacks_its_last_chunk(api: Api, end: HandlerFailed | None) -> None:
    """Its status has been sent: the missing end is what still tells the client; no second head, no reset."""
    handler = streamed("one", "two", end=end)
    await api.up(lambda spec, request: handler)
    answer = await raw(api, POST)
    assert answer.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n")
    with pytest.raises(h11.RemoteProtocolError, match="incomplete chunked read"):
        async with api.inference.connect() as connection:
            await connection.ask("POST", "/predictions/noop", b"x")


async def test_a_failure_before_the_first_piece_is_an_error_as_ever(api: Api) -> None:
    await api.up(lambda spec, request: streamed(end=HandlerFailed(503, "Prediction failed", "trace")))
    answer = await api.inference.post("/predictions/noop")
    assert (answer.status, answer.json["message"]) == (503, "Prediction failed")


async def test_a_describe_call_joins_a_stream(api: Api) -> None:
    await api.up(lambda spec, request: streamed('{"a"', end=JobReply(200, "", LAST, b": 1}")))
    (described,) = (await api.management.get("/models/noop?customized=true")).json
    assert described["customizedMetadata"] == {"a": 1}


async def test_a_describe_call_whose_stream_breaks(api: Api) -> None:
    await api.up(lambda spec, request: streamed('{"a"', end=HandlerFailed(503, "Prediction failed", "trace")))
    answer = await api.management.get("/models/noop?customized=true")
    assert (answer.status, answer.json["message"]) == (503, "Prediction failed")


async def test_a_client_that_reads_nothing_is_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the server no more than what may wait for it, and nobody else anything."""
    monkeypatch.setattr(inference, "STREAM_BYTES", 1 << 20)
    pieces = ["x" * (1 << 16)] * 256
    await api.up(lambda spec, request: streamed(*pieces, end=JobReply(200, "", LAST, b"end")))
    answer = await raw(api, POST)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not answer.endswith(b"0\r\n\r\n")
    assert len(answer) < 256 << 16


# -- customized metadata


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b'{"data1": "1", "data2": "2"}', {"data1": "1", "data2": "2"}),
        (b'{"a": null, "b": {"c": null, "d": [1, null]}}', {"b": {"d": [1, None]}}),
        (b"[1, 2]", {}),
        (b"null", {}),
        (b"just text", {}),
        (b"\xff", {}),
        (b"[" * 100_000, {}),
    ],
)
async def test_what_a_handler_says_of_itself(api: Api, said: bytes, shown: object) -> None:
    await api.up(lambda spec, request: JobReply(200, "", {}, said))
    (described,) = (await api.management.get("/models/noop?customized=true")).json
    assert described["customizedMetadata"] == shown
    assert list(described)[-2:] == ["customizedMetadata", "tserve"]


async def test_a_handler_that_says_nothing_of_itself(api: Api) -> None:
    await api.up(lambda spec, request: JobReply(200, "", {}, b""))
    (described,) = (await api.management.get("/models/noop?customized=true")).json
    assert "customizedMetadata" not in described


async def test_how_a_handler_is_asked(api: Api) -> None:
    """With the client's own headers, and no inputs; `describe` is the server's."""
    asked: list[dict[str, str]] = []

    def handler(spec: object, request: object) -> JobReply:
        asked.append(request.headers)  # type: ignore[attr-defined]
        assert request.inputs == ()  # type: ignore[attr-defined]
        return JobReply(418, "", {"content-type": "text/x", "own": "header"}, b"{}")

    await api.up(handler)
    headers = [("X-Mine", "1"), ("Describe", "no")]
    answer = await api.management.ask("GET", "/models/noop?customized=true", headers=headers)
    assert asked[0]["describe"] == "True"
    assert asked[0]["X-Mine"] == "1"
    assert "Describe" not in asked[0]
    assert (answer.status, answer.header("content-type"), answer.header("own")) == (418, "text/x", "header")


async def test_a_handler_that_fails_to_describe(api: Api) -> None:
    await api.up(lambda spec, request: HandlerFailed(503, "Prediction failed", "trace"))
    answer = await api.management.get("/models/noop?customized=true")
    assert (answer.status, json.loads(answer.body)["message"]) == (503, "Prediction failed")


# -- over HTTP/2


async def reset_of(api: Api) -> int | None:
    """The error code that the server ends a stream with, None when it ends well."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    headers = [(":method", "POST"), (":path", "/predictions/noop"), (":scheme", "http"), (":authority", "localhost")]
    connection.send_headers(1, headers, end_stream=True)
    async with await trio.open_tcp_stream(*api.inference.address) as stream:
        with trio.fail_after(10):
            while True:
                await stream.send_all(connection.data_to_send())
                for event in connection.receive_data(await stream.receive_some()):
                    if isinstance(event, h2.events.StreamReset):
                        return int(event.error_code)
                    if isinstance(event, h2.events.StreamEnded):
                        return None


@pytest.mark.parametrize("end", [HandlerFailed(503, "Prediction failed", "trace"), None])
async def test_a_stream_over_http2_that_breaks_is_reset(api: Api, end: HandlerFailed | None) -> None:
    handler = streamed("one", "two", end=end)
    await api.up(lambda spec, request: handler)
    assert await reset_of(api) == h2.errors.ErrorCodes.INTERNAL_ERROR


async def test_a_stream_over_http2_ends(api: Api) -> None:
    await api.up(lambda spec, request: streamed("one", end=JobReply(200, "", LAST, b"end")))
    assert await reset_of(api) is None
