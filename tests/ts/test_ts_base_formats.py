"""Models that are no longer Python behind BaseHandler: exported programs, AOTInductor, ONNX."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.torch_handler._exported import run_onnx
from ts.torch_handler.base_handler import BaseHandler

pytestmark = [
    # torch's own, of its exporter and of what it is about to drop
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

Prepare = Callable[..., Context]
AOT = {"pt2": {"export": {"aot_compile": True}}}
# y = x · (2, 3) + 1 as ONNX operator Gemm, any number of rows (IR version 8, operator set 13).
ONNX = (
    b'\x08\x08:g\n\x12\n\x01x\n\x01w\n\x01b\x12\x01y"\x04Gemm\x12\x01g*\x13\x08\x02\x08\x01\x10\x01"\x08\x00\x00\x00@'
    b'\x00\x00@@B\x01w*\r\x08\x01\x10\x01"\x04\x00\x00\x80?B\x01bZ\x14\n\x01x\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n'
    b"\n\x02\x08\x02b\x14\n\x01y\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x01B\x04\n\x00\x10\r"
)
# s = a + b and d = a - b, rows of two numbers (as above).
TWO_OUTPUTS = (
    b'\x08\x08:{\n\x0e\n\x01a\n\x01b\x12\x01s"\x03Add\n\x0e\n\x01a\n\x01b\x12\x01d"\x03Sub\x12\x01gZ\x14\n\x01a\x12'
    b"\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x02Z\x14\n\x01b\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x02"
    b"b\x14\n\x01s\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x02b\x14\n\x01d\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12"
    b"\x01n\n\x02\x08\x02B\x04\n\x00\x10\r"
)
# The compiler's options save seconds, not correctness.
COMPILE = """
import sys, torch, torch._inductor
layer = torch.nn.Linear(2, 1).eval()
layer.load_state_dict({"weight": torch.tensor([[2.0, 3.0]]), "bias": torch.tensor([1.0])})
program = torch.export.export(layer, (torch.zeros(4, 2),), dynamic_shapes=({0: torch.export.Dim("rows")},))
quick = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[1], inductor_configs=quick)
"""


@pytest.fixture
def layer(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    layer = torch.nn.Linear(2, 1).eval()
    layer.load_state_dict({name.removeprefix("layer."): value for name, value in state.items()})
    return layer


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of AOTInductor, and beside it the library that is in it; 20 s of compiling."""
    if not shutil.which("c++"):
        pytest.skip("AOTInductor compiles C++, and there is no c++")
    folder = tmp_path_factory.mktemp("compiled")
    package = folder / "net.pt2"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE, package], check=False, capture_output=True, text=True
    )
    assert package.exists(), done.stderr
    with zipfile.ZipFile(package) as content:
        (library,) = (name for name in content.namelist() if name.endswith(".so"))
        (folder / "net.so").write_bytes(content.read(library))
    return folder


def answers(context: Context) -> Any:
    """What a fresh handler answers to two rows."""
    handler = BaseHandler()
    handler.initialize(context)
    context.request_processor = [RequestProcessor({}), RequestProcessor({})]
    return handler.handle([[1.0, 1.0], [0.0, 2.0]], context)


def test_exported_program(archive: Prepare, tmp_path: Path, layer: torch.nn.Module) -> None:
    rows = ({0: torch.export.Dim("rows")},)
    torch.export.save(torch.export.export(layer, (torch.zeros(4, 2),), dynamic_shapes=rows), str(tmp_path / "net.pt2"))
    assert answers(archive(serializedFile="net.pt2")) == [[6.0], [7.0]]


def test_archive_that_is_no_exported_program(archive: Prepare, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as content:
        content.writestr("net/readme", "no program")
    with pytest.raises(RuntimeError, match=r"No model weights could be loaded: 'net\.pt2' is not an exported program"):
        answers(archive(serializedFile="net.pt2"))


@pytest.mark.process
def test_package_and_library_compiled_ahead_of_time(archive: Prepare, tmp_path: Path, compiled: Path) -> None:
    for name in ("net.pt2", "net.so"):
        shutil.copy(compiled / name, tmp_path / name)
        assert answers(archive(serializedFile=name, yaml=AOT)) == [[6.0], [7.0]]


def test_library_that_is_none(archive: Prepare) -> None:
    with pytest.raises(RuntimeError, match=r"No model weights could be loaded: 'net\.so' cannot be loaded: "):
        answers(archive({"net.so": "junk"}, serializedFile="net.so", yaml=AOT))


@pytest.mark.parametrize("yaml", [None, {}, {"pt2": "inductor"}, {"pt2": {"export": {"aot_compile": False}}}])
def test_library_needs_the_yaml(archive: Prepare, yaml: Any) -> None:
    with pytest.raises(RuntimeError, match=r"only when the model's yaml says `pt2: \{export: \{aot_compile: true\}\}`"):
        answers(archive({"net.so": ""}, serializedFile="net.so", yaml=yaml))


def test_hooks_of_a_subclass_load_the_library(archive: Prepare, tmp_path: Path) -> None:
    class Own(BaseHandler):
        def _use_torch_export_aot_compile(self) -> bool:
            return True

        def _load_torch_export_aot_compile(self, model_so_path: str) -> Any:
            assert model_so_path == str(tmp_path / "net.so")
            return torch.nn.Identity()

    handler = Own()
    handler.initialize(archive(serializedFile="net.so"))
    assert handler.inference(torch.tensor([1.0])).tolist() == [1.0]


def test_onnx(archive: Prepare, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is optional and not installed")
    (tmp_path / "net.onnx").write_bytes(ONNX)
    context = archive(serializedFile="net.onnx")
    assert answers(context) == [[6.0], [7.0]]
    handler = BaseHandler()
    handler.initialize(context)
    assert [each.name for each in handler.model.get_inputs()] == ["x"]
    rows = torch.tensor([[1.0, 1.0]])
    assert handler.inference({"x": rows}).tolist() == handler.inference([rows]).tolist() == [[6.0]]


@pytest.fixture
def onnx(archive: Prepare, tmp_path: Path) -> Callable[[bytes], BaseHandler]:
    """A handler that has loaded this model."""

    def onnx(content: bytes) -> BaseHandler:
        pytest.importorskip("onnxruntime", reason="onnxruntime is optional and not installed")
        (tmp_path / "net.onnx").write_bytes(content)
        handler = BaseHandler()
        handler.initialize(archive(serializedFile="net.onnx"))
        return handler

    return onnx


ROWS = [[1.0, 1.0], [0.0, 2.0]]
FEEDS = {
    "tensor": torch.tensor(ROWS),
    "tensor with gradients": torch.tensor(ROWS, requires_grad=True),
    "array": np.array(ROWS, dtype=np.float32),
    "lists": ROWS,
    "array by name": {"x": np.array(ROWS, dtype=np.float32)},
    "lists by name": {"x": ROWS},
    "one array in a list": [np.array(ROWS, dtype=np.float32)],
}


@pytest.mark.parametrize("feed", FEEDS)
def test_onnx_takes_tensors_arrays_and_lists(onnx: Callable[[bytes], BaseHandler], feed: str) -> None:
    assert onnx(ONNX).inference(FEEDS[feed]).tolist() == [[6.0], [7.0]]


def test_onnx_of_several_inputs_and_outputs(onnx: Callable[[bytes], BaseHandler]) -> None:
    handler = onnx(TWO_OUTPUTS)
    outputs = handler.inference((ROWS, torch.ones(2, 2)))
    assert [output.tolist() for output in outputs] == [[[2.0, 2.0], [1.0, 3.0]], [[0.0, 0.0], [-1.0, 1.0]]]


def test_onnx_that_torch_exported(onnx: Callable[[bytes], BaseHandler], tmp_path: Path, layer: torch.nn.Module) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is optional and not installed")
    rows = ({0: torch.export.Dim("rows")},)
    file = tmp_path / "exported.onnx"
    torch.onnx.export(layer, (torch.zeros(4, 2),), str(file), dynamic_shapes=rows, external_data=False, verbose=False)
    assert onnx(file.read_bytes()).inference(torch.tensor(ROWS)).tolist() == [[6.0], [7.0]]


def test_onnx_computes_on_the_workers_share_of_threads(onnx: Callable[[bytes], BaseHandler]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert onnx(ONNX).model.get_session_options().intra_op_num_threads == 3
    finally:
        torch.set_num_threads(threads)


class Session:
    """In place of onnxruntime's, where that is not installed: sums up what it is fed, and keeps it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.names, self.outputs = [f"x{place}" for place in range(inputs)], outputs
        self.fed: dict[str, Any] = {}

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.names]

    def run(self, names: None, arrays: dict[str, Any]) -> list[Any]:
        self.fed = arrays
        return [sum(arrays.values())] * self.outputs


@pytest.mark.parametrize("data", [ROWS, torch.tensor(ROWS), np.array(ROWS, dtype=np.float32), [torch.tensor(ROWS)]])
def test_a_session_is_fed_arrays_of_32_bits(data: Any) -> None:
    session = Session(1, 1)
    assert run_onnx(session, data).tolist() == ROWS
    assert isinstance(session.fed["x0"], np.ndarray)
    assert session.fed["x0"].dtype == np.float32


def test_a_session_of_several_inputs_is_fed_by_their_order() -> None:
    session = Session(2, 2)
    results = run_onnx(session, [[1.0, 2.0], np.array([3, 4])])
    assert [result.tolist() for result in results] == [[4.0, 6.0]] * 2
    assert session.fed["x1"].tolist() == [3, 4]
    with pytest.raises(ValueError, match="shorter"):
        run_onnx(session, [[1.0, 2.0]])


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is not None, reason="onnxruntime is installed")
def test_onnx_without_its_runtime_names_the_package(archive: Prepare, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(ONNX)
    with pytest.raises(ModuleNotFoundError) as caught:
        answers(archive(serializedFile="net.onnx"))
    assert str(caught.value) == (
        "BaseHandler runs 'net.onnx' with the package onnxruntime, which is not installed: pip install onnxruntime"
    )
    assert caught.value.name == "onnxruntime"
