"""One batch through a handler: decoding, results and failures (spec/inference.md sections 2, 3 and 4.2)."""

from __future__ import annotations

import io
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from ts.context import Context
from ts.torch_handler.request_envelope.kserve import KServeEnvelope
from ts.utils.util import PredictionException
from tserve.child.batches import answer
from tserve.child.loader import Model
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import Answers, HandlerFailed, Input, JobReply, JobRequest, Kind, decode_reply, encode_reply

Handler = Callable[[Any, Any], Any]
SPEC = WorkerSpec("m", ".", "h.py", 8)


def run(
    handler: Handler, *requests: JobRequest, pieces: list[Any] | None = None, **fields: object
) -> Answers | HandlerFailed:
    """The answer as the server gets it, over the wire; `pieces` takes what came before it."""
    model = Model(handler, Context("m", ".", None, 8, None, "0"))
    spec = WorkerSpec("m", ".", "h.py", 8, **fields)  # type: ignore[arg-type]

    def send(answers: Answers) -> None:
        assert pieces is not None, "nothing was to be streamed"
        pieces.append(decode_reply(encode_reply(0, answers, kind=Kind.PIECE)))

    return decode_reply(encode_reply(0, answer(model, spec, list(requests or [request()]), send)))


def request(*inputs: Input, number: str = "id-1", **headers: str) -> JobRequest:
    return JobRequest(number, headers, inputs or (Input("body", "", b""),))


def unexpected(answers: Answers) -> None:
    raise AssertionError("nothing was to be streamed")


def replies(outcome: Answers | HandlerFailed) -> list[JobReply]:
    assert isinstance(outcome, list), outcome
    assert not any(isinstance(part, HandlerFailed) for part in outcome), outcome
    return cast(list[JobReply], outcome)


def seen(value: Input, **fields: object) -> Any:
    """What a handler gets for an input."""
    rows: list[Any] = []

    def handler(data: Any, context: Any) -> Any:
        rows.extend(data)
        return [""]

    replies(run(handler, request(value), **fields))
    return rows[0][value.name]


# -- inputs


@pytest.mark.parametrize(
    ("content_type", "value", "expected"),
    [
        ("application/json", b'{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        ("application/json", b"3", 3),
        ("application/json", b"{", bytearray(b"{")),
        ("application/json", b"", bytearray()),
        ("application/json", b"\xff", bytearray(b"\xff")),
        ("application/json", b"[" * 100_000, bytearray(b"[" * 100_000)),
        ("Application/JSON", b"{}", bytearray(b"{}")),
        ("application/jsonlines", b"{}", bytearray(b"{}")),
        ("text/plain", "grün".encode(), "grün"),
        ("text", b"x", "x"),
        ("text/plain", b"\xff", bytearray(b"\xff")),
        ("Text/plain", b"x", bytearray(b"x")),
        ("application/octet-stream", b"\0\xff", bytearray(b"\0\xff")),
        ("", b"raw", bytearray(b"raw")),
        ("", b"", bytearray()),
    ],
)
def test_decoding_follows_the_content_type(content_type: str, value: bytes, expected: object) -> None:
    found = seen(Input("body", content_type, value))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_decoding_can_be_turned_off(content_type: str) -> None:
    found = seen(Input("body", content_type, b"1"), decode_input=False)
    assert (found, type(found)) == (bytearray(b"1"), bytearray)


def test_undecodable_input_is_said_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    seen(Input("picture", "application/json", b"{"))
    assert "input 'picture' is not application/json" in capsys.readouterr().err


def test_rows_are_dicts_by_input_name() -> None:
    rows: list[Any] = []

    def handler(data: Any, context: Any) -> Any:
        rows.append(data)
        return [""] * len(data)

    two = request(Input("a", "text/plain", b"1"), Input("b", "", b"2"), Input("a", "text/plain", b"last"))
    run(handler, two, JobRequest("id-2", {}, ()))
    assert rows == [[{"a": "last", "b": bytearray(b"2")}, {}]]


def test_a_handler_sees_ids_and_headers_of_each_request() -> None:
    found: list[Any] = []

    def handler(data: Any, context: Any) -> Any:
        for index in range(len(data)):
            found.append((context.get_request_id(index), context.get_all_request_header(index)))
        return [""] * len(data)

    one = request(Input("body", "text/plain", b"x"), number="one", Accept="*/*", explain="False")
    two = request(Input("accept", "a/b", b"x"), number="two", accept="header wins")
    run(handler, one, two)
    assert found == [
        ("one", {"body": {"content-type": "text/plain"}, "Accept": "*/*", "explain": "False"}),
        ("two", {"accept": "header wins"}),
    ]


# -- results


@pytest.mark.parametrize(
    ("output", "body"),
    [
        (b"\0\xff", b"\0\xff"),
        (bytearray(b"ab"), b"ab"),
        (b"", b""),
        ("grün", "grün".encode()),
        ("", b""),
        (None, b"null"),
        (True, b"true"),
        (7, b"7"),
        (2.5, b"2.5"),
        (math.nan, b"NaN"),
        (math.inf, b"Infinity"),
        ([1, "a"], b'[\n  1,\n  "a"\n]'),
        ([], b"[]"),
        ((1, 2), b"[\n  1,\n  2\n]"),
        (OrderedDict(b="grün", a=None), b'{\n  "b": "gr\\u00fcn",\n  "a": null\n}'),
        ({1: 2}, b'{\n  "1": 2\n}'),
    ],
)
def test_encoding(output: object, body: bytes) -> None:
    assert run(lambda data, context: [output]) == [JobReply(200, "", {}, body)]


def test_a_tensor_is_saved() -> None:
    (reply,) = replies(run(lambda data, context: [torch.tensor([1.5, 2.0])]))
    assert torch.equal(torch.load(io.BytesIO(reply.body)), torch.tensor([1.5, 2.0]))
    assert reply.headers == {}


def test_each_request_gets_its_own() -> None:
    outcome = run(lambda data, context: ["a", b"b", {"c": 1}], request(), request(), request())
    assert [reply.body for reply in replies(outcome)] == [b"a", b"b", b'{\n  "c": 1\n}']


def test_headers_and_status_that_the_handler_sets() -> None:
    def handler(data: Any, context: Any) -> Any:
        context.set_response_content_type(0, "image/png")
        context.set_response_header(0, "X-Custom", "1")
        context.set_response_status(code=429, phrase="Slow Down", idx=1)
        return ["one", "two"]

    assert run(handler, request(), request()) == [
        JobReply(200, "", {"content-type": "image/png", "X-Custom": "1"}, b"one"),
        JobReply(429, "Slow Down", {}, b"two"),
    ]


def test_nothing_is_left_for_the_next_batch() -> None:
    def handler(data: Any, context: Any) -> Any:
        if data[0]["body"] == b"first":
            context.set_response_header(0, "X-Custom", "1")
            context.set_all_response_status(500, "no")
        return [""]

    model = Model(handler, Context("m", ".", None, 8, None, "0"))
    answer(model, SPEC, [request(Input("body", "", b"first"))], unexpected)
    assert answer(model, SPEC, [request()], unexpected) == [JobReply(200, "", {}, b"")]


def test_an_answer_that_is_too_large_fails_alone() -> None:
    outcome = run(lambda data, context: ["x" * 11, "x" * 10], request(), request(), max_response_size=10)
    assert outcome == [
        HandlerFailed(500, "Response of 11 bytes is larger than max_response_size, 10 bytes."),
        JobReply(200, "", {}, b"x" * 10),
    ]


# -- failures


def failure(outcome: Answers | HandlerFailed) -> tuple[int, str]:
    assert isinstance(outcome, HandlerFailed)
    return outcome.code, outcome.message


def only_failure(outcome: Answers | HandlerFailed) -> HandlerFailed:
    assert isinstance(outcome, list)
    (failed,) = outcome
    assert isinstance(failed, HandlerFailed)
    return failed


def raising(error: BaseException) -> Handler:
    def handler(data: Any, context: Any) -> Any:
        raise error

    return handler


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("bad"), 503, "Prediction failed"),
        (KeyError("data"), 503, "Prediction failed"),
        (RecursionError(), 503, "Prediction failed"),
        (Unspeakable(), 503, "Prediction failed"),
        (ExceptionGroup("two", [ValueError(), KeyError()]), 503, "Prediction failed"),
        (RuntimeError("CUDA error: device-side assert"), 507, "Out of resources"),
        (ValueError("CUDA"), 507, "Out of resources"),
        (MemoryError(), 507, "Out of resources"),
        (PredictionException("of my own"), 500, "of my own"),
        (PredictionException("of my own", 404), 404, "of my own"),
        (PredictionException("of my own", 513), 513, "of my own"),
        (PredictionException("of my own", 200), 200, "of my own"),
        (PredictionException("of my own", 413), 507, "of my own"),
        (PredictionException("of my own", "x"), 500, "of my own"),  # type: ignore[arg-type]
        (PredictionException("of my own", None), 500, "of my own"),  # type: ignore[arg-type]
        (PredictionException(("not", "text")), 500, "('not', 'text')"),  # type: ignore[arg-type]
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_a_handler_raises(error: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(raising(error), request(), request())
    assert failure(outcome) == (code, message)
    assert isinstance(outcome, HandlerFailed)
    assert "in handler" in outcome.detail, "the traceback"
    assert "in handler" in capsys.readouterr().err


class Wordless(Exception):
    def __str__(self) -> str:
        raise SystemExit


class Unfinished(PredictionException):
    def __init__(self) -> None:
        """Does not tell the base class anything."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PredictionException(Wordless()), 500, ""),  # type: ignore[arg-type]
        (Unfinished(), 500, ""),
        (Wordless(), 503, "Prediction failed"),
    ],
)
def test_errors_without_words(error: Exception, code: int, message: str) -> None:
    assert failure(run(raising(error))) == (code, message)


def test_what_is_told_of_a_failure_is_bounded() -> None:
    outcome = run(raising(PredictionException("x" * (1 << 20))))
    assert isinstance(outcome, HandlerFailed)
    assert (outcome.message, len(outcome.detail)) == ("x" * (64 << 10), 16 << 10)

    class Verbose(dict[str, object]):
        def items(self) -> Any:
            raise ValueError("y" * (1 << 20))

    failed = only_failure(run(lambda data, context: [Verbose(a=1)]))
    assert (failed.message, len(failed.detail)) == ("Unsupported model output data type.", 16 << 10)


def test_a_failure_of_a_handler_that_closed_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr("sys.stderr", log)
    assert failure(run(raising(ValueError("no")))) == (503, "Prediction failed")
    assert only_failure(run(lambda data, context: [object()])).message == "Unsupported model output data type."


@pytest.mark.parametrize("output", [None, "text", b"bytes", {"0": 1}, ("a",), torch.zeros(1), iter([1])])
def test_what_is_no_list(output: object) -> None:
    outcome = run(lambda data, context: output)
    assert failure(outcome) == (503, "Invalid model predict output")
    assert isinstance(outcome, HandlerFailed)
    assert outcome.detail == f"the handler returned {type(output).__name__}"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_the_wrong_length(count: int) -> None:
    outcome = run(lambda data, context: [""] * count, request(), request())
    assert outcome == HandlerFailed(503, "number of batch response mismatched", f"{count} answers for 2 requests")


def circle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


class Explosive(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("boom")


@pytest.mark.parametrize(
    "output",
    [object(), {1, 2}, {"a": b"bytes in a dict"}, circle(), "\ud800", memoryview(b"x"), 1j, Explosive(a=1)],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_encoded_fails_alone(output: object) -> None:
    outcome = run(lambda data, context: ["fine", output], request(), request())
    assert isinstance(outcome, list)
    fine, failed = outcome
    assert fine == JobReply(200, "", {}, b"fine")
    assert isinstance(failed, HandlerFailed)
    assert (failed.code, failed.message) == (503, "Unsupported model output data type.")
    assert failed.detail


def test_a_request_that_an_envelope_cannot_read_fails_alone() -> None:
    def handle(data: Any, context: Any) -> Any:
        return data

    good, bad = Input("body", "application/json", b'{"instances": [1]}'), Input("body", "", b"zz")
    outcome = run(KServeEnvelope(handle).handle, request(good), request(bad), request(good))
    assert isinstance(outcome, list)
    first, failed, last = outcome
    assert isinstance(first, JobReply)
    assert json.loads(first.body) == {"predictions": [1]}
    assert first == last
    assert isinstance(failed, HandlerFailed)
    assert (failed.code, failed.message) == (503, "Prediction failed")
    assert "ValueError: the request body is not JSON" in failed.detail


def test_an_exit_is_the_end_of_the_process() -> None:
    with pytest.raises(SystemExit):
        run(raising(SystemExit(3)))


# -- streams


def pieces_of(context: Any, *texts: str) -> None:
    for text in texts:
        context._send_pieces([text, f"{text} for two"])


def test_pieces_come_before_the_answer() -> None:
    def handler(data: Any, context: Any) -> Any:
        context.set_response_content_type(0, "text/plain")
        pieces_of(context, "one", "two")
        return ["end", "end"]

    pieces: list[Any] = []
    outcome = run(handler, request(), request(), pieces=pieces)
    goes_on = {"content-type": "text/plain", "ts_stream_next": "true"}
    assert [[part.body for part in piece] for piece in pieces] == [[b"one", b"one for two"], [b"two", b"two for two"]]
    assert [piece[0].headers for piece in pieces] == [goes_on, goes_on]
    assert [part.headers for part in replies(outcome)] == [
        {"content-type": "text/plain", "ts_stream_next": "false"},
        {"ts_stream_next": "false"},
    ]


@pytest.mark.parametrize("bad", [["one"], ["one", "two", "three"], ["one", object()], ["one", "x" * 200]])
def test_a_piece_that_cannot_be_sent_is_the_handlers_error(bad: list[Any]) -> None:
    pieces: list[Any] = []

    def handler(data: Any, context: Any) -> Any:
        context._send_pieces(bad)
        return ["end", "end"]

    outcome = run(handler, request(), request(), pieces=pieces, max_response_size=100)
    assert failure(outcome) == (503, "Prediction failed")
    assert not pieces


def test_nothing_can_be_streamed_once_the_batch_is_answered() -> None:
    kept: list[Any] = []

    def handler(data: Any, context: Any) -> Any:
        kept.append(context._send_pieces)
        return ["end"]

    run(handler)
    with pytest.raises(RuntimeError, match="answered"):
        kept[0](["late"])


def test_stopping_criteria_say_which_answers_go_on() -> None:
    """Of a continuous batch: True ends, False goes on, None leaves the header alone (spec/inference.md section 6)."""

    def handler(data: Any, context: Any) -> Any:
        context.stopping_criteria = [lambda output: True, lambda output: output != "more", lambda output: None]
        return ["end", "more", "plain"]

    outcome = run(handler, request(), request(), request())
    assert [part.headers for part in replies(outcome)] == [
        {"ts_stream_next": "false"},
        {"ts_stream_next": "true"},
        {},
    ]


def test_a_stopping_criterion_that_fails() -> None:
    def handler(data: Any, context: Any) -> Any:
        context.stopping_criteria = [lambda output: output["gone"], lambda output: True]
        return [{}, "end"]

    outcome = run(handler, request(), request())
    assert isinstance(outcome, list)
    failed, fine = outcome
    assert isinstance(failed, HandlerFailed)
    assert (failed.code, failed.message) == (503, "Prediction failed")
    assert "KeyError: 'gone'" in failed.detail
    assert isinstance(fine, JobReply)


def test_stopping_criteria_are_of_one_batch_only() -> None:
    def handler(data: Any, context: Any) -> Any:
        if data[0]["body"] == b"first":
            context.stopping_criteria = [lambda output: False]
        return [""]

    model = Model(handler, Context("m", ".", None, 8, None, "0"))
    answer(model, SPEC, [request(Input("body", "", b"first"))], unexpected)
    assert answer(model, SPEC, [request()], unexpected) == [JobReply(200, "", {}, b"")]


def test_a_coroutine_handler_without_the_switch_says_which() -> None:
    async def handler(data: Any, context: Any) -> Any:
        return [""]

    outcome = run(handler)
    assert failure(outcome) == (503, "Invalid model predict output")
    assert isinstance(outcome, HandlerFailed)
    assert "asyncCommunication" in outcome.detail
