"""How BaseHandler answers a batch: predict, explain, describe, and the time it took (spec/inference.md section 13)."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.torch_handler.base_handler import BaseHandler


class Talkative(BaseHandler):
    """Skips `__init__` and `initialize`, as many handlers do."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return data * 2

    def get_insights(self, tensor: Any, raw: Any, target: Any) -> list[Any]:
        return [tensor.tolist(), raw, target]

    def describe_handle(self) -> Any:
        return {"labels": 2}

    def preprocess(self, data: Any) -> Any:
        return torch.tensor([row["body"] for row in data])


class Timers:
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def add_time(self, *args: Any) -> None:
        self.seen.append(args)


def context_for(*headers: dict[str, Any]) -> Context:
    context = Context("m", ".", None, 1, None, "0.12.0")
    context.request_processor = [RequestProcessor(each) for each in headers]
    return context


@pytest.mark.parametrize("headers", [{}, {"explain": "False"}, {"explain": "true"}, {"describe": "true"}])
def test_predicts_unless_a_header_says_exactly_true(headers: dict[str, str]) -> None:
    assert Talkative().handle([{"body": [1, 2]}], context_for(headers)) == [[2, 4]]


def test_describe_skips_preprocess() -> None:
    assert Talkative().handle([{}], context_for({"describe": "True"})) == [{"labels": 2}]


def test_describe_is_none_by_default() -> None:
    assert BaseHandler().handle([{}], context_for({"describe": "True"})) == [None]


@pytest.mark.parametrize(
    ("row", "raw", "target"),
    [
        ({"body": [1]}, [1], 0),
        ({"body": [1], "data": "d", "target": 4}, "d", 4),
        ({"body": [1], "target": None}, [1], 0),
    ],
)
def test_explain_asks_get_insights(row: dict[str, Any], raw: Any, target: int) -> None:
    handler = Talkative()
    assert handler.handle([row], context_for({"explain": "True"})) == [[[1]], raw, target]
    assert handler.explain is True


def test_explain_of_rows_that_are_no_dicts() -> None:
    assert Talkative().explain_handle(torch.tensor([1]), [[1, 2]]) == [[1], None, 0]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_explain_without_get_insights_says_so(archive: Callable[..., Context], script: str) -> None:
    context = archive(serializedFile=script)
    handler = BaseHandler()
    handler.initialize(context)
    context.request_processor = [RequestProcessor({"explain": "True"})]
    with pytest.raises(NotImplementedError, match="BaseHandler has no get_insights"):
        handler.handle([[1.0, 1.0]], context)


def test_handler_time_goes_to_metrics_if_there_are_any() -> None:
    context = context_for({})
    context.metrics = timers = Timers()
    Talkative().handle([{"body": [1]}], context)
    ((name, value, idx, unit),) = timers.seen
    assert (name, idx, unit) == ("HandlerTime", None, "ms")
    assert 0 <= value < 60_000
    context.metrics = None
    assert Talkative().handle([{"body": [1]}], context) == [[2]]


def test_subclass_may_declare_abstract_methods() -> None:
    class Half(BaseHandler):
        @abc.abstractmethod
        def colour(self) -> str: ...

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
