"""Envelopes around a handler: what it gets of a batch, and what its clients get (spec/inference.md section 14.2)."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.torch_handler.request_envelope.base import BaseEnvelope
from ts.torch_handler.request_envelope.body import BodyEnvelope
from ts.torch_handler.request_envelope.json import JSONEnvelope
from ts.torch_handler.request_envelope.kserve import KServeEnvelope
from ts.utils.util import list_classes_from_module

Handler = Callable[[Any, Any], Any]


def context_of(*headers: dict[str, Any]) -> Context:
    """For a batch of as many requests; their ids are r0, r1, …"""
    context = Context("m", "/nowhere", {"model": {"modelName": "archived", "modelVersion": "1.0"}}, 1, None, "0.12.0")
    context.request_ids = {place: f"r{place}" for place in range(len(headers))}
    context.request_processor = [RequestProcessor(each) for each in headers]
    return context


def same(data: Any, context: Any) -> Any:
    return data


def never(data: Any, context: Any) -> Any:
    raise AssertionError(data)


def bodies(*contents: Any) -> list[dict[str, Any]]:
    return [{"body": content} for content in contents]


@pytest.mark.parametrize("name", ["body", "json", "kserve", "kservev2"])
def test_a_module_has_one_class(name: str) -> None:
    module = importlib.import_module(f"ts.torch_handler.request_envelope.{name}")
    (envelope,) = list_classes_from_module(module)
    assert issubclass(envelope, BaseEnvelope)


@pytest.mark.parametrize("name", ["body", "json", "kserve", "kservev2"])
def test_loading_and_describing_are_none_of_its_business(name: str) -> None:
    (envelope,) = list_classes_from_module(importlib.import_module(f"ts.torch_handler.request_envelope.{name}"))
    calls: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        calls.append(data)
        return "as it is"

    assert envelope(handle).handle(None, Context("m", "/", None, 1, None, "0.12.0")) == "as it is"
    assert envelope(handle).handle([], context_of()) == "as it is"
    assert envelope(handle).handle([{}], context_of({"describe": "True"})) == "as it is"
    assert calls == [None, [], [{}]]


class Upper(BaseEnvelope):
    """As somebody writes one: with state between the two."""

    def parse_input(self, data: list[Any]) -> Any:
        self.count = len(data)
        return [self.content_of(row) for row in data]

    def format_output(self, results: Any) -> Any:
        return [f"{result.upper()} of {self.count} {self.context.model_name}" for result in results]


def test_an_envelope_of_ones_own() -> None:
    assert Upper(same).handle(bodies("a", "b"), context_of({}, {})) == ["A of 2 m", "B of 2 m"]
    assert Upper(lambda data, context: None).handle(bodies("a"), context_of({})) is None
    assert Upper(lambda data, context: []).handle(bodies("a"), context_of({})) == []


def test_batches_that_run_at_once_do_not_share_what_an_envelope_keeps() -> None:
    release = asyncio.Event()

    async def handle(data: Any, context: Any) -> Any:
        if len(data) == 1:
            await release.wait()
        else:
            release.set()
        return data

    async def both(envelope: BaseEnvelope) -> list[Any]:
        one, two = envelope.handle(bodies("a"), context_of({})), envelope.handle(bodies("b", "c"), context_of({}, {}))
        return await asyncio.gather(one, two)

    assert asyncio.run(both(Upper(handle))) == [["A of 1 m"], ["B of 2 m", "C of 2 m"]]


# ---- body


def test_body_hands_over_what_the_rows_carry() -> None:
    rows = [{"body": [1.0]}, {"data": bytearray(b"x"), "body": b"y"}, {"data": b"", "body": {}}, {}, {"data": []}]
    expected = [[1.0], bytearray(b"x"), {}, None, []]
    assert BodyEnvelope(same).handle(rows, context_of(*[{}] * 5)) == expected


def test_body_lets_results_through() -> None:
    answer = torch.ones(2)
    assert BodyEnvelope(lambda data, context: answer).handle(bodies([1]), context_of({})) is answer


# ---- json and kserve: instances


@pytest.mark.parametrize("body", [{"instances": [1, 2]}, b'{"instances": [1, 2]}', bytearray(b'{"instances": [1, 2]}')])
@pytest.mark.parametrize("name", ["body", "data"])
def test_instances_to_predictions(name: str, body: Any) -> None:
    got: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        got.append(data)
        return [value * 10 for value in data]

    rows = [{name: body}]
    assert JSONEnvelope(handle).handle(rows, context_of({})) == ['{"predictions": [10, 20]}']
    assert KServeEnvelope(handle).handle(rows, context_of({})) == [{"predictions": [10, 20]}]
    assert got == [[1, 2], [1, 2]]


def test_every_row_of_a_batch_gets_its_own_answers() -> None:
    rows = bodies({"instances": [1, 2, 3]}, {"instances": []}, {"instances": [4]})
    expected = [[1, 2, 3], [], [4]]
    context = context_of({}, {}, {})
    assert KServeEnvelope(same).handle(rows, context) == [{"predictions": part} for part in expected]
    assert JSONEnvelope(same).handle(rows, context) == [json.dumps({"predictions": part}) for part in expected]


def test_no_instances_need_no_handler() -> None:
    assert KServeEnvelope(never).handle(bodies({"instances": []}), context_of({})) == [{"predictions": []}]


def test_each_row_says_whether_it_asks_to_explain() -> None:
    rows = bodies({"instances": [1]}, {"instances": [2]}, {"instances": [3]})
    context = context_of({"explain": "False"}, {"explain": "True"}, {})
    answers = KServeEnvelope(same).handle(rows, context)
    assert answers == [{"predictions": [1]}, {"explanations": [2]}, {"predictions": [3]}]


@pytest.mark.parametrize("results", [[1, 2, 3], {"classes": ["a"]}, "text", 0.5, ([1],)])
def test_one_row_gets_whatever_the_handler_returned(results: Any) -> None:
    def handle(data: Any, context: Any) -> Any:
        return results

    (answer,) = KServeEnvelope(handle).handle(bodies({"instances": [1, 2]}), context_of({}))
    assert answer == json.loads(json.dumps({"predictions": results}))


@pytest.mark.parametrize("results", [None, [], {}, ""])
def test_nothing_is_passed_on_as_it_is(results: Any) -> None:
    def handle(data: Any, context: Any) -> Any:
        return results

    assert KServeEnvelope(handle).handle(bodies({"instances": [1]}), context_of({})) == results


@pytest.mark.parametrize(
    "results",
    [torch.tensor([[1.5], [2.5]]), np.array([[1.5], [2.5]]), [torch.tensor([1.5]), np.array([2.5])], ([1.5], [2.5])],
)
def test_tensors_and_arrays_become_lists(results: Any) -> None:
    def handle(data: Any, context: Any) -> Any:
        return results

    rows = bodies({"instances": [1]}, {"instances": [2]})
    answers = KServeEnvelope(handle).handle(rows, context_of({}, {}))
    assert answers == [{"predictions": [[1.5]]}, {"predictions": [[2.5]]}]
    assert JSONEnvelope(handle).handle(rows[:1], context_of({})) == ['{"predictions": [[1.5], [2.5]]}']


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([1, 2, 3], "list of 3"),
        ({"a": 1, "b": 2}, "dict of 2"),
        ("ab", "str of 2"),
        (7, "int"),
    ],
)
def test_answers_that_cannot_be_dealt_out_are_refused(results: Any, said: str) -> None:
    """Not even an answer per request is taken for one: a client must never see what was made for another."""

    def handle(data: Any, context: Any) -> Any:
        return results

    rows = bodies({"instances": [1]}, {"instances": [2]})
    with pytest.raises(ValueError, match=f"the handler returned {said} for the 2 inputs of 2 requests; .*batch_size=1"):
        KServeEnvelope(handle).handle(rows, context_of({}, {}))


BAD_INSTANCES = [
    (b"zz", "the request body is not JSON: Expecting value"),
    (b"\xff\xfe\xfd", "the request body is not JSON"),
    (b"[" * 100_000, "the request body is not JSON"),
    ([1], "the request body is not a JSON object but a list"),
    (b"null", "the request body is not a JSON object but null"),
    (None, "the request body is not a JSON object but null"),
    ({"inputs": []}, 'the request body has no "instances"'),
    ({"instances": {}}, '"instances" in the request body is not a list'),
]


@pytest.mark.parametrize("envelope", [JSONEnvelope, KServeEnvelope])
@pytest.mark.parametrize(("body", "message"), BAD_INSTANCES)
def test_a_body_that_makes_no_sense_says_why(envelope: type[BaseEnvelope], body: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        envelope(never).handle(bodies(body), context_of({}))


def test_a_bad_row_fails_alone_and_the_others_keep_their_places() -> None:
    seen: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        seen.append([(value, context.get_request_id(i), context.get_request_header(i, "who"))
                     for i, value in enumerate(data)])  # fmt: skip
        context.set_response_status(201, "", 1)
        return data

    context = context_of({"who": "a"}, {"who": "bad"}, {"who": "c"})
    rows = bodies({"instances": [1]}, b"zz", {"instances": [3]})
    first, bad, last = KServeEnvelope(handle).handle(rows, context)
    assert (first, last) == ({"predictions": [1]}, {"predictions": [3]})
    assert isinstance(bad, ValueError)
    assert seen == [[(1, "r0", "a"), (3, "r2", "c")]]
    assert [context.get_response_status(i)[0] for i in range(3)] == [200, 200, 201]
    assert context.get_request_id(1) == "r1", "the context counts all requests again"


def test_rows_that_are_all_bad_never_reach_the_handler() -> None:
    errors = KServeEnvelope(never).handle(bodies(b"zz", {"x": 1}), context_of({}, {}))
    assert [type(error) for error in errors] == [ValueError, ValueError]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_the_handler_raises_is_raised(asynchronous: bool) -> None:
    def fail(data: Any, context: Any) -> Any:
        raise RuntimeError("mine")

    async def fail_later(data: Any, context: Any) -> Any:
        raise RuntimeError("mine")

    handler = fail_later if asynchronous else fail
    rows = bodies({"instances": [1]}, {"instances": [2]})
    with pytest.raises(RuntimeError, match=r"^mine$"):
        outcome = KServeEnvelope(handler).handle(rows, context_of({}, {}))
        asyncio.run(outcome)


def test_coroutine_handlers() -> None:
    async def handle(data: Any, context: Any) -> Any:
        await asyncio.sleep(0)
        return [value * 2 for value in data]

    async def answers() -> Any:
        return await KServeEnvelope(handle).handle(
            bodies({"instances": [1]}, b"zz", {"instances": [2, 3]}), context_of({}, {}, {})
        )

    first, bad, last = asyncio.run(answers())
    assert (first, last) == ({"predictions": [2]}, {"predictions": [4, 6]})
    assert isinstance(bad, ValueError)


def test_json_decodes_base64() -> None:
    text = base64.b64encode(b"\x00\xff").decode()
    instances = [{"b64": text}, {"image": {"b64": text}, "name": "x", "deep": {"b64": text, "more": 1}}, "plain"]
    got: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        got.extend(data)
        return [len(data)]

    JSONEnvelope(handle).handle(bodies({"instances": instances}), context_of({}))
    assert got == [b"\0\xff", {"image": b"\0\xff", "name": "x", "deep": {"b64": text, "more": 1}}, "plain"]


@pytest.mark.parametrize("wrong", ["é", "a", 5])
def test_json_refuses_what_is_no_base64(wrong: Any) -> None:
    with pytest.raises(ValueError, match='"b64" in the request body is not'):
        JSONEnvelope(never).handle(bodies({"instances": [{"b64": wrong}]}), context_of({}))
