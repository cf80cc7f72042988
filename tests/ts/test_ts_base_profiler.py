"""ENABLE_TORCH_PROFILER: a trace per batch, and the same answers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.torch_handler.base_handler import BaseHandler

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Prepare = Callable[..., Context]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "1")
    return folder


class Explaining(BaseHandler):
    def get_insights(self, tensor: Any, raw: Any, target: Any) -> list[Any]:
        return [tensor.tolist()]


class Bare(BaseHandler):
    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return data * 2


def asked(context: Context, **headers: str) -> Context:
    context.request_processor = [RequestProcessor(headers)]
    return context


def names_in(trace: Path) -> set[str]:
    return {event["name"] for event in json.loads(trace.read_text())["traceEvents"] if "name" in event}


def test_prediction_leaves_a_trace_named_for_the_model(archive: Prepare, script: str, temporary: Path) -> None:
    context = asked(archive(serializedFile=script, modelName="m"))
    handler = BaseHandler()
    handler.initialize(context)
    assert handler.handle([[1.0, 1.0]], context) == [[6.0]]
    (trace,) = (temporary / "pytorch_profiler" / "m").iterdir()
    assert trace.name.endswith(".pt.trace.json")
    assert {"preprocess", "inference", "postprocess"} <= names_in(trace)


def test_explanation_is_profiled_too(archive: Prepare, script: str, temporary: Path) -> None:
    context = asked(archive(serializedFile=script, modelName="m"), explain="True")
    handler = Explaining()
    handler.initialize(context)
    assert handler.handle([[1.0, 1.0]], context) == [[[1.0, 1.0]]]
    (trace,) = (temporary / "pytorch_profiler" / "m").iterdir()
    assert {"preprocess", "explain"} <= names_in(trace)


def test_handler_that_skips_init_and_initialize(temporary: Path) -> None:
    context = asked(Context("m", ".", None, 1, None, "0.12.0"))
    assert Bare().handle([[1.0]], context) == [[2.0]]
    assert len(list((temporary / "pytorch_profiler").iterdir())) == 1


def test_own_arguments_of_the_profiler(temporary: Path) -> None:
    seen: list[Any] = []
    handler = Bare()
    handler.profiler_args = {"on_trace_ready": seen.append, "record_shapes": False}
    assert handler.handle([[1.0]], asked(Context("m", ".", None, 1, None, "0.12.0"))) == [[2.0]]
    assert len(seen) == 1
    assert not (temporary / "pytorch_profiler").exists()


def test_a_describe_call_is_answered_and_not_profiled(temporary: Path) -> None:
    context = asked(Context("m", ".", None, 1, None, "0.12.0"), describe="True")
    assert Bare().handle([{}], context) == [None]
    assert list(temporary.iterdir()) == []
