"""Unreadable images where a handler's rows are not the requests: behind envelopes, and in micro batches."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from ts.context import Context, RequestProcessor
from ts.handler_utils.micro_batching import MicroBatching
from ts.torch_handler._requests import UnreadableRows
from ts.torch_handler.request_envelope.base import BaseEnvelope
from ts.torch_handler.request_envelope.body import BodyEnvelope
from ts.torch_handler.request_envelope.json import JSONEnvelope
from ts.torch_handler.request_envelope.kserve import KServeEnvelope
from ts.torch_handler.vision_handler import VisionHandler


def picture(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def text(red: int) -> str:
    return base64.b64encode(picture(red)).decode()


class Reds(VisionHandler):
    """How red each image is; it notes how many rows came to each call, and the ids of their requests."""

    image_processing = staticmethod(lambda image: torch.tensor(image.getpixel((0, 0))[0]))

    def __init__(self) -> None:
        super().__init__()
        self.device = "cpu"
        self.calls: list[tuple[int, list[str]]] = []

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((len(data), list(self.context.request_ids.values()) if self.context else []))
        return data


def context_of(*ids: str) -> Context:
    context = Context("m", "/nowhere", {}, len(ids), None, "0.12.0")
    context.request_ids = dict(enumerate(ids))
    context.request_processor = [RequestProcessor({}) for _ in ids]
    return context


def statuses(context: Context) -> list[int]:
    return [context.get_response_status(idx)[0] for idx in range(len(context.request_processor or ()))]


Call = Callable[[type[BaseEnvelope], Reds, list[Any], Context], Any]


@pytest.fixture(params=["plain", "coroutine"])
def call(request: pytest.FixtureRequest) -> Call:
    """A batch through an envelope, around the handler or a coroutine that calls it."""

    def plain(envelope: type[BaseEnvelope], handler: Reds, rows: list[Any], context: Context) -> Any:
        return envelope(handler.handle).handle(rows, context)

    def coroutine(envelope: type[BaseEnvelope], handler: Reds, rows: list[Any], context: Context) -> Any:
        async def handle(data: Any, given: Any) -> Any:
            await asyncio.sleep(0)
            return handler.handle(data, given)

        async def wait() -> Any:
            return await envelope(handle).handle(rows, context)

        return asyncio.run(wait())

    return plain if request.param == "plain" else coroutine


def instances(*texts: Any) -> dict[str, Any]:
    return {"body": {"instances": list(texts)}}


@pytest.mark.parametrize("envelope", [JSONEnvelope, KServeEnvelope])
def test_the_instances_of_one_request_fail_together_and_the_bad_one_is_named(call: Call, envelope: Any) -> None:
    context, handler = context_of("a"), Reds()
    with pytest.raises(UnreadableRows, match=r"^Row 1: Not an image: the text is not base64") as caught:
        call(envelope, handler, [instances(text(1), "x", text(3))], context)
    assert list(caught.value.reasons) == [1]
    assert statuses(context) == [200]
    assert context._rows_are_requests


@pytest.mark.parametrize("envelope", [JSONEnvelope, KServeEnvelope])
def test_only_the_request_that_sent_it_fails(call: Call, envelope: Any) -> None:
    """The bad rows are 4 and 5 of the batch's instances, the third request's second and third."""
    context, handler = context_of("a", "b", "c", "d"), Reds()
    rows = [instances(text(1), text(2)), instances(text(3)), instances(text(4), "x", ""), instances(text(6))]
    answers = call(envelope, handler, rows, context)
    read = [json.loads(each) if isinstance(each, str) else each for each in answers]
    assert read[:2] + read[3:] == [{"predictions": [1, 2]}, {"predictions": [3]}, {"predictions": [6]}]
    assert isinstance(answers[2], UnreadableRows)
    assert list(answers[2].reasons) == [1, 2]
    assert str(answers[2]).startswith("Row 1: Not an image: the text is not base64")
    assert handler.calls == [(4, ["a", "b", "d"])]
    assert statuses(context) == [200] * 4
    assert context._rows_are_requests
    assert context.request_ids == {0: "a", 1: "b", 2: "c", 3: "d"}


def test_an_instance_for_each_request_makes_no_difference(call: Call) -> None:
    """Else the answer would depend on what others sent meanwhile."""
    context, handler = context_of("a", "b"), Reds()
    first, second = call(KServeEnvelope, handler, [instances("x"), instances(text(2))], context)
    assert (str(first)[:6], second) == ("Row 0:", {"predictions": [2]})
    assert statuses(context) == [200, 200]


def test_requests_that_all_fail_are_told_one_by_one(call: Call) -> None:
    handler = Reds()
    answers = call(KServeEnvelope, handler, [instances("x"), instances(text(1), "")], context_of("a", "b"))
    assert [list(each.reasons) for each in answers] == [[0], [1]]
    assert handler.calls == []


def test_rows_that_the_handler_made_itself_are_nobodys(call: Call) -> None:
    class Twice(Reds):
        def preprocess(self, data: Any) -> Any:
            return super().preprocess([*data, *data[:1], "x"])

    first, second = call(KServeEnvelope, Twice(), [instances(text(1)), instances(text(2))], context_of("a", "b"))
    assert first is second
    assert list(first.reasons) == [3]


def test_the_body_envelope_keeps_a_row_for_each_request(call: Call) -> None:
    context, handler = context_of("a", "b", "c"), Reds()
    answers = call(BodyEnvelope, handler, [{"body": picture(1)}, {"body": b"x"}, {"data": picture(3)}], context)
    assert (answers[0], list(answers[1]), answers[2]) == (1, ["error"], 3)
    assert statuses(context) == [200, 400, 200]
    assert handler.calls == [(2, ["a", "c"])]


class Flat(BaseEnvelope):
    """As somebody writes one."""

    def parse_input(self, data: list[Any]) -> Any:
        return [each for row in data for each in row["body"]]

    def format_output(self, results: Any) -> Any:
        return [results]


def test_of_an_envelope_of_ones_own_nothing_is_known(call: Call) -> None:
    context = context_of("a")
    with pytest.raises(UnreadableRows, match=r"^Row 2: No image"):
        call(Flat, Reds(), [{"body": [picture(1), picture(2), b""]}], context)
    assert statuses(context) == [200]
    assert context._rows_are_requests
    assert call(Flat, Reds(), [{"body": [picture(1), picture(2)]}], context) == [[1, 2]]


class Micro(Reds):
    def __init__(self) -> None:
        super().__init__()
        self.handle = MicroBatching(self, micro_batch_size=2)  # type: ignore[method-assign]


@pytest.fixture
def micro() -> Any:
    handler = Micro()
    yield handler
    handler.handle.shutdown()  # type: ignore[attr-defined]


def test_micro_batches_answer_the_readable_ones(micro: Micro) -> None:
    """Bad rows stand in two micro batches, one of them at its second place."""
    ids = "abcdefg"
    context = context_of(*ids)
    rows = [{"body": b"x" if row in (3, 4) else picture(row)} for row in range(7)]
    answers = micro.handle(rows, context)
    assert [answers[row] for row in (0, 1, 2, 5, 6)] == [0, 1, 2, 5, 6]
    assert ["Not an image" in answers[row]["error"] for row in (3, 4)] == [True, True]
    assert statuses(context) == [200, 200, 200, 400, 400, 200, 200]
    assert context.request_ids == dict(enumerate(ids))


def test_rows_of_micro_batches_are_named_by_their_place_in_the_batch(micro: Micro) -> None:
    with pytest.raises(UnreadableRows, match=r"^Row 3: No image"):
        micro.handle.handle([picture(0), picture(1), picture(2), b"", picture(4)])  # type: ignore[attr-defined]


def test_micro_batches_behind_an_envelope(micro: Micro) -> None:
    context = context_of("a", "b")
    rows = [instances(text(0), text(1), text(2)), instances("x")]
    first, second = KServeEnvelope(micro.handle).handle(rows, context)
    assert first == {"predictions": [0, 1, 2]}
    assert list(second.reasons) == [0]
    assert statuses(context) == [200, 200]
