"""How handlers and envelopes are used: a check for each, of the class or module and a folder to work in."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.ts.names import Check, asks_for, context_of, defaults, has
from ts.context import Context


class Doubles(torch.nn.Module):
    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return data * 2


def scripted(folder: Path) -> dict[str, str]:
    torch.jit.save(torch.jit.script(Doubles()), str(folder / "model.pt"))
    return {"serializedFile": "model.pt"}


# -- handlers


def base_handler(cls: Any, folder: Path) -> None:
    class Mine(cls):  # type: ignore[misc]
        def preprocess(self, data: Any) -> Any:
            return super().preprocess([row["data"] for row in data])

    handler = Mine()
    context = context_of(folder, scripted(folder))
    handler.initialize(context)
    assert (handler.initialized, handler.map_location) == (True, "cpu")
    assert handler.handle([{"data": [1.0]}], context) == [[2.0]]
    assert handler.handle.__func__ is cls.handle
    for name in ("inference", "postprocess", "explain_handle", "describe_handle", "get_device"):
        assert callable(getattr(handler, name))


def vision_handler(cls: Any, folder: Path) -> None:
    """An image in memory, to the tensor that the model gets."""
    image = pytest.importorskip("PIL.Image")
    stored = io.BytesIO()
    image.new("RGB", (300, 260), (255, 0, 0)).save(stored, "PNG")

    class Mine(cls):  # type: ignore[misc]
        def inference(self, data: Any) -> Any:
            return [list(data.shape)]

        def postprocess(self, data: Any) -> Any:
            return data

    handler = Mine()
    context = context_of(folder, scripted(folder))
    handler.initialize(context)
    assert handler.handle([{"body": bytearray(stored.getvalue())}], context) == [[1, 3, 224, 224]]
    assert hasattr(handler, "image_processing")


def image_classifier(cls: Any, folder: Path) -> None:
    vision_handler(cls, folder)
    handler = cls()
    handler.initialize(context_of(folder, scripted(folder)))
    handler.mapping = {str(number): f"label {number}" for number in range(6)}
    assert handler.topk == 5
    assert handler.get_max_result_classes() == 5
    handler.set_max_result_classes(2)
    (found,) = handler.postprocess(torch.tensor([[0.0, 1.0, 9.0, 2.0, 3.0, 4.0]]))
    assert list(found) == ["label 2", "label 5"]


def image_segmenter(cls: Any, folder: Path) -> None:
    from ts.torch_handler.vision_handler import VisionHandler

    assert issubclass(cls, VisionHandler)
    scores = {"out": torch.tensor([[[[0.0, 5.0]], [[5.0, 0.0]]]])}  # two classes, a picture of two pixels
    (picture,) = cls().postprocess(scores)
    classes = [[pixel[0] for pixel in row] for row in picture]
    assert classes == [[1.0, 0.0]]


def object_detector(cls: Any, folder: Path) -> None:
    from ts.torch_handler.vision_handler import VisionHandler

    assert issubclass(cls, VisionHandler)
    handler = cls()
    handler.mapping = {"1": "cat"}
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0]])
    found = handler.postprocess([{"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.9, 0.1])}])
    assert found == [[{"cat": [1.0, 2.0, 3.0, 4.0], "score": pytest.approx(0.9)}]]


def dali_handler(cls: Any, folder: Path) -> None:
    """It is there to be subclassed; by itself it says what is missing."""

    class Mine(cls):  # type: ignore[misc]
        def initialize(self, context: Any) -> None:
            self.initialized = True

    assert Mine().postprocess
    with pytest.raises((NotImplementedError, ImportError), match="nvidia-dali"):
        cls().initialize(context_of(folder))


def text_handler(cls: Any, folder: Path) -> None:
    class Mine(cls):  # type: ignore[misc]
        def preprocess(self, data: Any) -> Any:
            text = self._expand_contractions(self._remove_html_tags(data))
            return self._tokenize(self._remove_punctuation(self._remove_accented_characters(text)))

    torch.save({"a": 1}, folder / "source_vocab.pt")
    handler = Mine()
    handler.initialize(context_of(folder, scripted(folder)))
    assert handler.source_vocab == {"a": 1}
    assert handler.preprocess("It isn't <b>Café</b>!") == ["it", "is", "not", "cafe"]
    assert handler.get_source_vocab_path(context_of(folder)) == str(folder / "source_vocab.pt")


def text_classifier(cls: Any, folder: Path) -> None:
    from ts.torch_handler.text_handler import TextHandler

    assert issubclass(cls, TextHandler)
    torch.save({"<unk>": 0, "good": 1, "day": 2, "good day": 3}, folder / "source_vocab.pt")
    handler = cls()
    handler.initialize(context_of(folder, scripted(folder)))
    numbers, _ = handler.preprocess([{"data": "Good day"}])
    assert sorted(numbers.tolist()) == [1, 2, 3]
    handler.mapping = {"0": "no", "1": "yes"}
    assert handler.postprocess(torch.tensor([[0.0, 0.0]])) == [{"no": 0.5, "yes": 0.5}]


def pippy_handler(cls: Any, folder: Path) -> None:
    class Mine(cls):  # type: ignore[misc]
        pass

    with pytest.raises(ValueError, match=r"MASTER_ADDR|environment variable"):
        Mine().initialize(context_of(folder, yaml={"pippy": {}}))


def deepspeed_handler(cls: Any, folder: Path) -> None:
    class Mine(cls):  # type: ignore[misc]
        pass

    if has("deepspeed"):
        Mine().initialize(context_of(folder))
    else:
        asks_for("deepspeed", lambda: Mine().initialize(context_of(folder)))


def contraction_map(mapping: Any, folder: Path) -> None:
    assert (mapping["can't"], mapping["isn't"]) == ("cannot", "is not")
    assert len(mapping) > 50


def mock_context(cls: Any, folder: Path) -> None:
    assert defaults(cls).keys() == {
        *("model_pt_file", "model_dir", "model_file"),
        *("gpu_id", "model_name", "model_yaml_config_file"),
    }
    expected = {"model_pt_file": "model.pt", "model_file": "model.py", "gpu_id": "0", "model_name": "mnist"}
    assert expected.items() <= defaults(cls).items()
    (folder / "config.yaml").write_text("handler: {depth: 3}")
    context = cls(model_dir=str(folder), model_name="mine", model_yaml_config_file="config.yaml")
    assert isinstance(context, Context)
    assert context.model_name == "mine"
    assert context.manifest["model"] == {"modelName": "mine", "serializedFile": "model.pt", "modelFile": "model.py"}
    assert context.system_properties["model_dir"] == str(folder)
    assert context.model_yaml_config == {"handler": {"depth": 3}}
    assert context.get_request_header(0, "explain") == "False"
    context.explain = True
    assert context.get_request_header(0, "explain") == "True"
    context.metrics.add_time("HandlerTime", 1.0, None, "ms")


# -- envelopes


def envelope(rows: list[Any], seen: Any, returned: Any, answers: Any) -> Check:
    """A handler in it sees `seen` of `rows`, and what it returns becomes `answers`."""

    def check(module: ModuleType, folder: Path) -> None:
        from ts.torch_handler.request_envelope.base import BaseEnvelope

        own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
        (cls,) = (each for each in own if issubclass(each, BaseEnvelope))
        calls: list[Any] = []
        context = context_of(folder)

        def handle(data: Any, given: Any) -> Any:
            assert given is context
            calls.append(data)
            return returned

        result = cls(handle).handle(rows, context)
        assert calls == [seen]
        assert [json.loads(each) if isinstance(each, str) else each for each in result] == answers

    return check


def base_envelope(cls: Any, folder: Path) -> None:
    class Mine(cls):  # type: ignore[misc]
        def parse_input(self, data: Any) -> Any:
            return [row["body"] for row in data]

        def format_output(self, results: Any) -> Any:
            return [f"<{each}>" for each in results]

    assert Mine(lambda data, context: data[::-1]).handle([{"body": 1}, {"body": 2}], context_of(folder)) == [
        "<2>",
        "<1>",
    ]


V2_INPUT = {"name": "in", "shape": [2], "datatype": "INT64", "data": [1, 2]}


def kserve_v2(module: ModuleType, folder: Path) -> None:
    (cls,) = (each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__)
    context = context_of(folder, {"modelName": "m"})
    seen: list[Any] = []

    def handle(data: Any, given: Any) -> Any:
        seen.append(data)
        return [[3, 4]]

    (answer,) = cls(handle).handle([{"body": {"id": "mine", "inputs": [V2_INPUT]}}], context)
    answer = json.loads(answer) if isinstance(answer, str) else answer
    assert seen == [[V2_INPUT]]
    assert (answer["id"], answer["model_name"]) == ("mine", "m")
    (output,) = answer["outputs"]
    assert (output["name"], output["data"], output["shape"]) == ("in", [3, 4], [2])
