"""What BaseHandler loads, and what it says when it refuses (spec/inference.md section 13)."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.torch_handler.base_handler import BaseHandler

# TorchScript is what archives hold, whatever torch thinks of its future.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Prepare = Callable[..., Context]


def request(context: Context, *headers: dict[str, Any]) -> Context:
    context.request_processor = [RequestProcessor(each) for each in headers]
    return context


def refusal(context: Context, kind: type[Exception] = RuntimeError) -> str:
    handler = BaseHandler()
    with pytest.raises(kind) as caught:
        handler.initialize(context)
    assert not handler.initialized
    return str(caught.value)


def test_eager_model_end_to_end(archive: Prepare, tmp_path: Path, linear: str, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "weights.pt")
    labels = json.dumps({"0": "price"})
    context = archive({"net.py": linear, "index_to_name.json": labels}, modelFile="net.py", serializedFile="weights.pt")
    handler = BaseHandler()
    handler.initialize(context)
    assert handler.initialized
    assert handler.mapping == {"0": "price"}
    assert (str(handler.get_device()), handler.map_location) == ("cpu", "cpu")
    assert handler.model_pt_path == str(tmp_path / "weights.pt")
    assert handler.manifest is context.manifest
    assert handler.handle([[1.0, 1.0], [0.0, 2.0]], request(context, {}, {})) == [[6.0], [7.0]]
    assert handler.context is context


def test_eager_model_without_weights(archive: Prepare, linear: str) -> None:
    handler = BaseHandler()
    handler.initialize(archive({"net.py": linear}, modelFile="net.py"))
    assert type(handler.model).__name__ == "TinyLinear"
    assert (handler.model_pt_path, handler.model.training) == (None, False)


def test_torchscript_model_end_to_end(archive: Prepare, script: str) -> None:
    context = archive(serializedFile=script)
    handler = BaseHandler()
    handler.initialize(context)
    assert handler.mapping is None
    assert handler.handle([[1.0, 1.0]], request(context, {})) == [[6.0]]


def test_inference_needs_no_gradients(archive: Prepare, script: str) -> None:
    handler = BaseHandler()
    handler.initialize(archive(serializedFile=script))
    assert handler.inference(torch.tensor([[0.0, 0.0]])).is_inference()


def test_subclass_hooks_load_the_model(archive: Prepare, tmp_path: Path) -> None:
    class Own(BaseHandler):
        asked: Any

        def _load_torchscript_model(self, model_pt_path: str) -> Any:
            self.asked = model_pt_path
            return torch.nn.Identity()

        def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
            self.asked = (model_dir, model_file, model_pt_path)
            return torch.nn.Identity()

    handler = Own()
    handler.initialize(archive(serializedFile="absent.pt"))
    assert handler.asked == str(tmp_path / "absent.pt")
    handler.initialize(archive(modelFile="absent.py"))
    assert handler.asked == (str(tmp_path), "absent.py", None)


def test_gpu_id_without_a_gpu_means_cpu(archive: Prepare, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    context = archive(serializedFile=script)
    context.system_properties["gpu_id"] = 0
    handler = BaseHandler()
    handler.initialize(context)
    assert str(handler.device) == "cpu"


def test_gpu_id_picks_the_cuda_device(archive: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    context = archive(serializedFile="absent.pt")
    context.system_properties["gpu_id"] = 3
    handler = BaseHandler()
    with pytest.raises(RuntimeError, match=r"absent\.pt"):
        handler.initialize(context)
    assert (str(handler.device), handler.map_location) == ("cuda:3", "cuda")


def test_nothing_named_lists_the_folder(archive: Prepare) -> None:
    text = refusal(archive({"notes.txt": "", "net.bin": ""}))
    assert text.startswith("No model weights could be loaded: the manifest names no serializedFile or modelFile")
    assert "holds net.bin, notes.txt." in text


def test_no_manifest(archive: Prepare) -> None:
    context = archive()
    context.manifest = None
    assert "the archive has no manifest, but the model folder holds no files." in refusal(context)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("net.so", "'net.so' is a model compiled ahead of time, which is loaded only when the model's yaml says"),
        ("net.pth", "must be TorchScript (.pt), an exported program (.pt2), ONNX (.onnx) or compiled ahead of time"),
        ("net.pt2", "'net.pt2' is not an exported program."),
    ],
)
def test_other_files_are_refused_by_name(archive: Prepare, name: str, reason: str) -> None:
    text = refusal(archive({name: ""}, serializedFile=name))
    assert text.startswith("No model weights could be loaded: ")
    assert reason in text
    assert repr(name) in text


def test_named_file_that_is_not_there(archive: Prepare, linear: str) -> None:
    for context in (
        archive({"net.py": linear}, serializedFile="w.pt"),
        archive(modelFile="net.py", serializedFile="w.pt"),
        archive(serializedFile="w.pt2"),
        archive(serializedFile="w.onnx"),
        archive(serializedFile="w.so", yaml={"pt2": {"export": {"aot_compile": True}}}),
    ):
        name = context.manifest["model"]["serializedFile"]
        assert f"the manifest's serializedFile is {name!r}, but the model folder holds net.py." in refusal(context)


def test_state_dict_without_model_file_says_what_is_missing(
    archive: Prepare, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    torch.save(state, tmp_path / "w.pt")
    text = refusal(archive(serializedFile="w.pt"))
    assert "'w.pt' is not a TorchScript file. If it holds a state dict, the archive needs a modelFile" in text


def test_missing_model_file(archive: Prepare) -> None:
    text = refusal(archive({"handler.py": ""}, modelFile="model.py"))
    assert text.startswith("Missing the model.py file: the manifest's modelFile is 'model.py', but ")
    assert text.endswith("holds handler.py.")


@pytest.mark.parametrize(
    ("source", "found"),
    [("class A: pass\nclass B: pass", "defines 2: A, B."), ("from torch.nn import Linear", "defines 0: none.")],
)
def test_model_file_must_define_exactly_one_class(archive: Prepare, source: str, found: str) -> None:
    text = refusal(archive({"several.py": source}, modelFile="several.py"), ValueError)
    assert text == f"Expected only one class as model definition. 'several.py' {found}"


def test_model_file_whose_name_is_taken(archive: Prepare, linear: str) -> None:
    """Python would quietly hand out its own `json` here."""
    text = refusal(archive({"json.py": linear}, modelFile="json.py"))
    assert "'json.py' cannot be imported: the module name 'json' already belongs to" in text


def test_weights_that_do_not_fit_name_file_and_class(archive: Prepare, tmp_path: Path, linear: str) -> None:
    torch.save({"layer.weight": torch.zeros(5, 5)}, tmp_path / "w.pt")
    text = refusal(archive({"net.py": linear}, modelFile="net.py", serializedFile="w.pt"))
    assert text.startswith("The weights of 'w.pt' do not fit TinyLinear of 'net.py': ")
    assert "layer.bias" in text


@pytest.mark.parametrize("content", [b"", b"hello, these are no weights", b"junk", b"PK\x03\x04 cut off"])
def test_damaged_weights_name_the_file(archive: Prepare, tmp_path: Path, content: bytes, linear: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    text = refusal(archive({"net.py": linear}, modelFile="net.py", serializedFile="w.pt"))
    assert text.startswith("No model weights could be loaded: 'w.pt' cannot be read as a state dict.")


def test_weights_with_other_objects_need_torchs_own_switch(
    archive: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linear: str, state: dict[str, torch.Tensor]
) -> None:
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    context = archive({"extras.py": "class Note: pass", "net.py": linear}, modelFile="net.py", serializedFile="w.pt")
    weights = {name: value.clone() for name, value in state.items()}
    vars(weights["layer.bias"])["note"] = importlib.import_module("extras").Note()  # travels along with the tensor
    torch.save(weights, tmp_path / "w.pt")
    text = refusal(context, pickle.UnpicklingError)
    assert text.startswith("No model weights could be loaded: 'w.pt' is refused because it asks for extras.Note")
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1" in text

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    handler = BaseHandler()
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        handler.initialize(context)
    assert handler.handle([[1.0, 1.0]], request(context, {})) == [[6.0]]
