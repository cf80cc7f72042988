"""`torch.compile` by yaml, IPEX by environment: what is asked for is done, or the log says why not."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.torch_handler._faster import compile_options
from ts.torch_handler.base_handler import BaseHandler

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Prepare = Callable[..., Context]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.INFO, "ts")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def initialized(context: Context) -> BaseHandler:
    """A handler that answers right, whatever became of its model."""
    handler = BaseHandler()
    handler.initialize(context)
    context.request_processor = [RequestProcessor({})]
    assert len(handler.handle([[1.0, 1.0]], context)) == 1
    return handler


def is_compiled(handler: BaseHandler) -> bool:
    return isinstance(handler.model, torch._dynamo.eval_frame.OptimizedModule)


@pytest.mark.parametrize(
    ("pt2", "options"),
    [
        (None, None),
        ({}, None),
        ({"compile": {"enable": True}}, {}),
        (
            {"compile": {"enable": True, "backend": "aot_eager", "dynamic": True}},
            {"backend": "aot_eager", "dynamic": True},
        ),
        ({"compile": {"enable": False, "backend": "eager"}}, None),
        ({"compile": {"backend": "eager"}}, None),
        ({"export": {"aot_compile": True}}, None),
        ("eager", {"backend": "eager"}),
        ({"backend": "eager", "dynamic": False}, {"backend": "eager", "dynamic": False}),
    ],
)
def test_forms_of_the_yaml(pt2: Any, options: dict[str, Any] | None) -> None:
    assert compile_options({"pt2": pt2}) == options


@pytest.mark.parametrize("pt2", [5, ["eager"], {"compile": "eager"}, {"compile": None}])
def test_other_forms_are_ignored_with_a_word(pt2: Any, said: Callable[[], str]) -> None:
    assert compile_options({"pt2": pt2}) is None
    assert "yaml `pt2` must be" in said()


@pytest.mark.parametrize("pt2", ["eager", {"backend": "eager"}])
def test_old_forms_are_called_deprecated(pt2: Any, said: Callable[[], str]) -> None:
    assert compile_options({"pt2": pt2}) == {"backend": "eager"}
    assert "deprecated" in said()


@pytest.mark.parametrize("config", [None, "text", [1], {}])
def test_no_yaml_no_options(config: Any) -> None:
    assert compile_options(config) is None


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_model_is_compiled(archive: Prepare, linear: str, backend: str, said: Callable[[], str]) -> None:
    yaml = {"pt2": {"compile": {"enable": True, "backend": backend}}}
    handler = initialized(archive({"net.py": linear}, modelFile="net.py", yaml=yaml))
    assert is_compiled(handler)
    assert "is compiled by torch.compile" in said()


def test_model_is_as_it_was_without_yaml(archive: Prepare, linear: str) -> None:
    assert not is_compiled(initialized(archive({"net.py": linear}, modelFile="net.py", yaml={})))


def test_unknown_backend_is_said_and_the_model_runs_without(
    archive: Prepare, linear: str, said: Callable[[], str]
) -> None:
    yaml = {"pt2": {"compile": {"enable": True, "backend": "turbo"}}}
    handler = initialized(archive({"net.py": linear}, modelFile="net.py", yaml=yaml))
    assert not is_compiled(handler)
    assert "turbo is not a known torch.compile backend" in said()
    assert "failed, so the model runs without: " in said()


def test_wrong_option_is_said_and_the_model_runs_without(
    archive: Prepare, linear: str, said: Callable[[], str]
) -> None:
    yaml = {"pt2": {"compile": {"enable": True, "backend": "eager", "speed": "high"}}}
    assert not is_compiled(initialized(archive({"net.py": linear}, modelFile="net.py", yaml=yaml)))
    assert "failed, so the model runs without: TypeError" in said()


def test_torchscript_is_compiled_too(archive: Prepare, script: str) -> None:
    yaml = {"pt2": {"compile": {"enable": True, "backend": "eager"}}}
    context = archive(serializedFile=script, yaml=yaml)
    handler = initialized(context)
    assert handler.handle([[1.0, 1.0]], context) == [[6.0]]


@pytest.mark.skipif(importlib.util.find_spec("intel_extension_for_pytorch") is not None, reason="IPEX is installed")
def test_ipex_that_is_not_there_is_said(
    archive: Prepare, script: str, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_IPEX_ENABLE", "true")
    initialized(archive(serializedFile=script))
    assert "pip install intel_extension_for_pytorch" in said()


def test_ipex_is_not_asked_for_by_other_values(
    archive: Prepare, script: str, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_IPEX_ENABLE", "false")
    initialized(archive(serializedFile=script))
    assert "intel_extension" not in said()
