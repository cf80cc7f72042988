"""Stock handlers by bare name, as the worker's loader takes them; those that are known by name only; test helpers."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.distributed.base_deepspeed_handler import BaseDeepSpeedHandler
from ts.torch_handler.unit_tests.test_utils.mock_context import MockContext
from tserve.child.diagnosis import LoadFailed
from tserve.child.loader import load
from tserve.domain.plan import WorkerSpec

STOCK = [
    "base_handler",
    "image_classifier",
    "image_segmenter",
    "object_detector",
    "text_classifier",
    "dali_image_classifier",
    "vllm_handler",
    "trt_llm_handler",
]
OPTIONAL = ["torchvision", "captum", "onnxruntime", "transformers", "nvidia.dali", "deepspeed", "vllm", "PIL"]


@pytest.mark.parametrize("name", STOCK)
def test_module_defines_exactly_one_class(name: str) -> None:
    module = importlib.import_module(f"ts.torch_handler.{name}")
    own = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    assert len(own) == 1
    assert issubclass(own[0], BaseHandler)
    assert not hasattr(module, "handle")


def test_no_optional_package_is_imported_by_the_stock_handlers() -> None:
    code = (
        f"import importlib, sys\nfor name in {STOCK!r}: importlib.import_module('ts.torch_handler.' + name)\n"
        f"print([name for name in {OPTIONAL!r} if name in sys.modules])"
    )
    root = Path(importlib.import_module("ts").__file__ or "").parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr


NET = """
import torch

class Net(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))
"""


@pytest.fixture
def in_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """What the worker's loader makes of a model folder; the process is as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    path, modules = list(sys.path), set(sys.modules)

    def prepare(handler: str, **model: str) -> Any:
        spec = WorkerSpec("m", str(tmp_path), handler, 1, manifest={"model": model})
        return load(spec)

    yield prepare
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_image_classifier_without_a_file_of_its_own(in_worker: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "index_to_name.json").write_text(json.dumps({"0": "a", "1": "b", "2": "c"}))
    model = in_worker("image_classifier", modelFile="net.py")
    model.context.request_processor = [RequestProcessor({})]
    numbers = torch.zeros(3, 2, 2)
    numbers[1] = 9
    (answer,) = model.entry([{"body": numbers.tolist()}], model.context)
    assert next(iter(answer)) == "b"
    assert set(answer) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("name", "engine", "package"),
    [
        ("dali_handler", "NVIDIA DALI", "pip install nvidia-dali-cuda120"),
        ("dali_image_classifier", "NVIDIA DALI", "pip install nvidia-dali-cuda120"),
        ("vllm_handler", "vLLM", "pip install vllm"),
        ("trt_llm_handler", "TensorRT-LLM", "pip install tensorrt-llm"),
    ],
)
def test_engines_that_are_not_driven_say_so(name: str, engine: str, package: str) -> None:
    module = importlib.import_module(f"ts.torch_handler.{name}")
    (kind,) = (each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__)
    with pytest.raises(ImportError) as caught:
        kind().initialize(Context("m", ".", {}, 1, None, "0.12.0"))
    assert f"{kind.__name__} is known by name only: tserve does not drive {engine}" in str(caught.value)
    assert str(caught.value).endswith(package)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_deepspeed_is_asked_for_by_name() -> None:
    class Own(BaseDeepSpeedHandler):
        pass

    with pytest.raises(ModuleNotFoundError) as caught:
        Own().initialize(Context("m", ".", {}, 1, None, "0.12.0"))
    assert (caught.value.name, str(caught.value)) == (
        "deepspeed",
        "Own runs models with the package deepspeed, which is not installed: pip install deepspeed",
    )


def test_mock_context_serves_a_handler(tmp_path: Path, linear: str, state: dict[str, torch.Tensor]) -> None:
    (tmp_path / "tinynet.py").write_text(linear)
    (tmp_path / "model.yaml").write_text("handler: {depth: 3}")
    torch.save(state, tmp_path / "w.pt")
    context = MockContext("w.pt", str(tmp_path), "tinynet.py", model_name="m", model_yaml_config_file="model.yaml")
    assert context.manifest == {"model": {"modelName": "m", "serializedFile": "w.pt", "modelFile": "tinynet.py"}}
    assert context.model_yaml_config == {"handler": {"depth": 3}}
    handler = BaseHandler()
    sys.path.insert(0, str(tmp_path))
    try:
        handler.initialize(context)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("tinynet", None)
    assert handler.handle([[1.0, 1.0]], context) == [[6.0]]
    assert [metric.name for metric in context.metrics.store] == ["HandlerTime"]
    context.explain = True
    with pytest.raises(NotImplementedError, match="cannot explain"):
        handler.handle([[1.0, 1.0]], context)


def test_mock_context_by_default() -> None:
    context = MockContext()
    assert context.manifest == {"model": {"modelName": "mnist", "serializedFile": "model.pt", "modelFile": "model.py"}}
    assert Path(context.system_properties["model_dir"]).is_absolute()
    assert (context.model_yaml_config, context.explain) == ({}, False)
    assert context.get_request_header(0, "explain") == "False"
    assert context.get_request_header(0, "describe") is None


PIPPY = """
import torch.distributed.rpc as rpc
from ts.context import Context
from ts.torch_handler.distributed.base_pippy_handler import BasePippyHandler

class Own(BasePippyHandler):
    pass

handler = Own()
handler.initialize(Context("m", ".", {"model": {}}, 1, None, "0.12.0", model_yaml_config={"handler": {}}))
print(handler.local_rank, handler.rank, handler.world_size, rpc.get_worker_info().name, handler.model_yaml_config)
rpc.shutdown()
"""


@pytest.mark.process
def test_pippy_handler_connects_the_processes() -> None:
    root = Path(importlib.import_module("ts").__file__ or "").parent.parent
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PIPPY],
        env=os.environ | torchrun | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "0 0 1 worker0 {'handler': {}}", done.stderr


def refused(in_worker: Callable[..., Any], handler: str, **model: str) -> LoadFailed:
    with pytest.raises(LoadFailed) as caught:
        in_worker(handler, **model)
    return caught.value


def test_what_the_server_reports_of_refusals(in_worker: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    failure = refused(in_worker, "text_classifier", modelFile="net.py")
    assert (failure.reason, failure.file, failure.hopeless) == ("missing_file", "source_vocab.pt", True)
    (tmp_path / "source_vocab.pt").write_text("junk")
    failure = refused(in_worker, "text_classifier", modelFile="net.py")
    assert (failure.reason, failure.file, failure.hopeless) == ("bad_weights", "source_vocab.pt", True)
    failure = refused(in_worker, "vllm_handler")
    assert (failure.reason, failure.hopeless) == ("import_error", True)
    assert "tserve does not drive vLLM itself" in failure.detail


def test_the_logger_comes_with_the_base_handler() -> None:
    from ts.torch_handler.base_handler import BaseHandler, logger

    assert logger.name == BaseHandler.__module__


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is not None, reason="onnxruntime is installed")
def test_a_missing_package_is_a_missing_requirement(in_worker: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    failure = refused(in_worker, "base_handler", serializedFile="net.onnx")
    assert (failure.reason, failure.hopeless) == ("missing_requirement", True)
    assert "pip install onnxruntime" in failure.detail
