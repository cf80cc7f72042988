"""The stock handlers of images, on tiny models: what they read, answer, refuse and explain."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ts.context import Context, RequestProcessor
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.image_segmenter import ImageSegmenter
from ts.torch_handler.object_detector import ObjectDetector
from ts.torch_handler.vision_handler import VisionHandler

Prepare = Callable[..., Context]
Start = Callable[..., tuple[Any, Context]]

# Channel means become logits, so that red, green or blue is what an image shows.
COLOURS = """
import torch

class Colours(torch.nn.Module):
    def forward(self, images):
        means = images.mean(dim=(2, 3))
        return torch.cat([means, -means - 9, torch.zeros(len(images), 1) - 99], dim=1)
"""
HALVES = """
import torch

class Halves(torch.nn.Module):
    def forward(self, images):
        return {"out": torch.stack([images[:, 0], images[:, 2]], dim=1) * 50}
"""
BOXES = """
import torch

class Boxes(torch.nn.Module):
    def forward(self, images):
        return [
            {
                "boxes": torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]], [1.0, 1.0, 2.0, 2.0]]),
                "labels": torch.tensor([1, 2]),
                "scores": torch.stack([image.max(), torch.tensor(0.25)]),
            }
            for image in images
        ]
"""
NAMES = json.dumps({"0": "red", "1": ["n01", "green"], "2": "blue", "3": "c", "4": "m", "5": "y", "6": "none"})


def picture(colour: str, size: tuple[int, int] = (300, 260), mode: str = "RGB", kind: str = "PNG") -> bytearray:
    file = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(file, kind)
    return bytearray(file.getvalue())


@pytest.fixture
def start(archive: Prepare) -> Start:
    """A handler of `kind` that has loaded the eager model of `source`, and its context for `size` requests."""

    def start(kind: type[BaseHandler], source: str, size: int = 1, **headers: str) -> tuple[Any, Context]:
        context = archive({"net.py": source, "index_to_name.json": NAMES}, modelFile="net.py")
        context.request_processor = [RequestProcessor(dict(headers)) for _ in range(size)]
        handler = kind()
        handler.initialize(context)
        return handler, context

    return start


def best(answers: list[dict[str, float]]) -> list[str]:
    return [next(iter(answer)) for answer in answers]


def test_top_five_with_their_chances_in_order(start: Start) -> None:
    handler, context = start(ImageClassifier, COLOURS)
    (answer,) = handler.handle([{"body": picture("#ff8000")}], context)
    assert list(answer)[:3] == ["red", "green", "blue"]
    assert len(answer) == 5
    chances = list(answer.values())
    assert chances == sorted(chances, reverse=True)
    assert 0.99 < sum(chances) < 1


@pytest.mark.parametrize("topk", [1, 2, 7, 50])
def test_number_of_classes_shown(start: Start, topk: int) -> None:
    handler, context = start(ImageClassifier, COLOURS)
    handler.set_max_result_classes(topk)
    assert handler.get_max_result_classes() == topk
    (answer,) = handler.handle([{"body": picture("blue")}], context)
    assert len(answer) == min(topk, 7)
    assert best([answer]) == ["blue"]


def test_number_of_classes_as_class_attribute(start: Start) -> None:
    class Two(ImageClassifier):
        topk = 2

    handler, context = start(Two, COLOURS)
    assert [len(answer) for answer in handler.handle([{"body": picture("red")}], context)] == [2]


def test_without_labels_the_class_is_the_label(start: Start, tmp_path: Path) -> None:
    handler, context = start(ImageClassifier, COLOURS)
    handler.mapping = None
    assert best(handler.handle([{"body": picture("blue")}], context)) == ["2"]


def test_a_batch_of_every_form_of_image(start: Start) -> None:
    handler, context = start(ImageClassifier, COLOURS, size=7)
    numbers = torch.zeros(3, 224, 224)
    numbers[1] = 5
    rows = [
        {"body": picture("red")},
        {"data": bytes(picture("lime", kind="JPEG"))},
        {"body": base64.b64encode(picture("blue")).decode()},
        {"body": numbers.tolist()},
        {"data": picture("red", (224, 900)), "body": picture("blue")},
        {"body": picture("lime", mode="RGBA")},
        picture("blue", (9, 5)),
    ]
    answers = handler.handle(rows, context)
    assert best(answers) == ["red", "green", "blue", "green", "red", "green", "blue"]
    assert [context.get_response_status(row)[0] for row in range(7)] == [200] * 7


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I", "I;16", "CMYK", "YCbCr"])
def test_any_mode_becomes_three_channels(start: Start, mode: str) -> None:
    grey = ImageClassifier.image_processing(Image.new("RGB", (30, 30), "white").convert("L"))
    image = Image.new("I;16", (30, 30), 65535) if mode == "I;16" else Image.new("RGB", (30, 30), "white").convert(mode)
    if mode == "I":
        image = image.point(lambda value: value * 257)
    torch.testing.assert_close(ImageClassifier.image_processing(image), grey)


def test_transparent_is_black() -> None:
    clear = ImageClassifier.image_processing(Image.new("RGBA", (30, 30), (255, 255, 255, 0)))
    torch.testing.assert_close(clear, ImageClassifier.image_processing(Image.new("RGB", (30, 30), "black")))
    palette = Image.new("P", (30, 30), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.info["transparency"] = 1
    torch.testing.assert_close(ImageClassifier.image_processing(palette), clear)


@pytest.mark.parametrize("size", [(256, 256), (300, 260), (40, 1000), (1000, 40), (8, 8), (1, 1), (640, 427)])
def test_transform_gives_the_middle_normalised(size: tuple[int, int]) -> None:
    """A horizontal ramp keeps its middle at the middle; all of it as the mean and deviation of ImageNet say."""
    ramp = Image.linear_gradient("L").rotate(90).resize(size)
    tensor = ImageClassifier.image_processing(ramp)
    assert tensor.shape == (3, 224, 224)
    assert tensor.dtype == torch.float32
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    brightness = tensor * std.view(3, 1, 1) + mean.view(3, 1, 1)
    torch.testing.assert_close(brightness[0], brightness[2], atol=1e-5, rtol=0)
    assert brightness.min() + 1e-6 >= 0
    assert brightness.max() <= 1 + 1e-6
    # turning the image about its middle turns the tensor about its own
    turned = ImageClassifier.image_processing(ramp.rotate(180))
    torch.testing.assert_close(turned.flip(1, 2), tensor, atol=0.05, rtol=0)


def test_a_subclass_brings_its_own_transform(start: Start) -> None:
    class Inverted(ImageClassifier):
        image_processing = staticmethod(lambda image: 1 - VisionHandler.image_processing(image))

    handler, context = start(Inverted, COLOURS)
    assert best(handler.handle([{"body": picture("yellow")}], context)) == ["blue"]
    handler.image_processing = lambda image: torch.tensor([0.0, 9.0, 0.0]).view(3, 1, 1)
    assert best(handler.handle([{"body": picture("yellow")}], context)) == ["green"]


def test_the_stock_transform_can_be_taken_apart() -> None:
    names = [type(each).__name__ for each in ImageClassifier.image_processing.transforms]
    assert names == ["Resize", "CenterCrop", "ToTensor", "Normalize"]
    assert ImageClassifier().image_processing is VisionHandler.image_processing


UNREADABLE = {
    "text": (bytearray(b"hello"), "Not an image: no known format"),
    "nothing": (bytearray(), "No image: send it"),
    "no base64": ("a", "the text is not base64"),
    "json": ({"image": "x"}, "its numbers make no tensor"),
    "ragged": ([[1, 2], [3]], "its numbers make no tensor"),
    "cut off": (picture("red")[:80], "The image is broken"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_image_fails_its_own_row_only(start: Start, case: str) -> None:
    sent, reason = UNREADABLE[case]
    handler, context = start(ImageClassifier, COLOURS, size=3)
    context.request_ids = {0: "a", 1: "b", 2: "c"}
    processors = context.request_processor
    answers = handler.handle([{"body": picture("red")}, {"body": sent}, {"body": picture("blue")}], context)
    assert (best([answers[0]]), best([answers[2]])) == (["red"], ["blue"])
    assert list(answers[1]) == ["error"]
    assert reason in answers[1]["error"]
    assert [context.get_response_status(row) for row in (0, 1, 2)] == [(200, None), (400, "Bad Request"), (200, None)]
    assert context.request_processor is processors
    assert context.request_ids == {0: "a", 1: "b", 2: "c"}


def test_what_a_subclass_says_by_row_stays_with_its_row(start: Start) -> None:
    class Marking(ImageClassifier):
        def postprocess(self, data: Any) -> Any:
            for row in range(len(data)):
                self.context.set_response_header(row, "x-id", self.context.get_request_id(row))
            return super().postprocess(data)

    handler, context = start(Marking, COLOURS, size=3)
    context.request_ids = {0: "a", 1: "b", 2: "c"}
    handler.handle([{"body": b"x"}, {"body": picture("red")}, {"body": picture("blue")}], context)
    assert [context.get_response_headers(row) for row in range(3)] == [{}, {"x-id": "b"}, {"x-id": "c"}]


def test_a_batch_of_unreadable_images_is_answered_row_by_row(start: Start) -> None:
    handler, context = start(ImageClassifier, COLOURS, size=2)
    answers = handler.handle([{}, {"body": b"x"}], context)
    assert [list(answer) for answer in answers] == [["error"], ["error"]]
    assert [context.get_response_status(row)[0] for row in (0, 1)] == [400, 400]


def test_preprocess_alone_names_every_bad_row(start: Start) -> None:
    handler, _ = start(ImageClassifier, COLOURS)
    with pytest.raises(ValueError, match=r"^Row 0: No image.*Row 2: Not an image"):
        handler.preprocess([{}, {"body": picture("red")}, {"body": b"x"}])


def test_bound_of_pixels(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    handler, context = start(ImageClassifier, COLOURS)
    (answer,) = handler.handle([{"body": picture("red")}], context)
    assert answer["error"].startswith("The image is too large: ")
    context.system_properties["limit_max_image_pixels"] = False
    handler.initialize(context)
    assert Image.MAX_IMAGE_PIXELS is None
    assert best(handler.handle([{"body": picture("red")}], context)) == ["red"]


def test_explanation_of_a_linear_model_is_exact(start: Start) -> None:
    """There the attribution of each input is its value times its weight: here 1 / pixels for the target's channel."""
    handler, context = start(ImageClassifier, COLOURS, size=2, explain="True")
    rows = [{"body": picture("red"), "target": bytearray(b"1")}, {"body": picture("lime")}]
    explanations = torch.tensor(handler.handle(rows, context))
    images = handler.preprocess(rows)
    expected = torch.zeros_like(images)
    expected[:, 1] = images[:, 1] / (224 * 224)
    torch.testing.assert_close(explanations, expected)


def test_explanation_adds_up_for_a_curved_model(start: Start) -> None:
    source = COLOURS.replace("return", "means = torch.tanh(means)\n        return")
    handler, _ = start(ImageClassifier, source)
    images = handler.preprocess([{"body": picture("red")}])
    total = torch.tensor(handler.get_insights(images, None, 0)).sum()
    with torch.no_grad():
        difference = handler.model(images)[0, 0] - handler.model(torch.zeros_like(images))[0, 0]
    torch.testing.assert_close(total, difference, atol=1e-4, rtol=0)


def test_segmenter_gives_class_and_chance_by_pixel(start: Start) -> None:
    handler, context = start(ImageSegmenter, HALVES, size=2)
    pixels = torch.tensor(handler.handle([{"body": picture("red")}, {"body": picture("blue")}], context))
    assert pixels.shape == (2, 224, 224, 2)
    assert (pixels[0, ..., 0] == 0).all()
    assert (pixels[1, ..., 0] == 1).all()
    torch.testing.assert_close(pixels[..., 1], torch.ones(2, 224, 224))


def test_detector_gives_boxes_above_the_threshold(start: Start) -> None:
    handler, context = start(ObjectDetector, BOXES, size=2)
    rows = [{"body": picture("white", (30, 20))}, {"body": picture("black", (30, 20))}]
    assert handler.handle(rows, context) == [[{"green": [0.0, 0.0, 30.0, 20.0], "score": 1.0}], []]
    handler.threshold = 0.2
    found = handler.handle(rows, context)
    assert [[next(iter(each)) for each in row] for row in found] == [["green", "blue"], ["blue"]]
    handler.mapping = None
    assert [[next(iter(each)) for each in row] for row in handler.handle(rows, context)] == [["1", "2"], ["2"]]


def test_detector_takes_images_of_different_sizes(start: Start) -> None:
    handler, context = start(ObjectDetector, BOXES, size=2)
    rows = [{"body": picture("white", (30, 20))}, {"body": picture("white", (7, 9), mode="L")}]
    boxes = [row[0]["green"] for row in handler.handle(rows, context)]
    assert boxes == [[0.0, 0.0, 30.0, 20.0], [0.0, 0.0, 7.0, 9.0]]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_detector_takes_a_list_and_tells_its_losses(archive: Prepare, tmp_path: Path) -> None:
    class Scripted(torch.nn.Module):
        def forward(self, images: list[torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
            found: list[dict[str, torch.Tensor]] = []
            for image in images:
                width = float(image.shape[2])
                box = torch.tensor([[0.0, 0.0, width, 1.0]])
                found.append({"boxes": box, "labels": torch.tensor([3]), "scores": torch.ones(1)})
            losses: dict[str, torch.Tensor] = {}
            return losses, found

    torch.jit.script(Scripted()).save(str(tmp_path / "net.pt"))
    context = archive(serializedFile="net.pt")
    context.request_processor = [RequestProcessor({})]
    handler = ObjectDetector()
    handler.initialize(context)
    answer = handler.handle([{"body": picture("red", (6, 5))}], context)
    assert answer == [[{"3": [0.0, 0.0, 6.0, 1.0], "score": 1.0}]]


class Times:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def add_time(self, name: str, *_: Any) -> None:
        self.seen.append(name)


@pytest.mark.parametrize(
    ("kind", "source"), [(ImageClassifier, COLOURS), (ObjectDetector, BOXES), (ImageSegmenter, HALVES)]
)
def test_steps_are_timed_once_each(start: Start, kind: type[BaseHandler], source: str) -> None:
    handler, context = start(kind, source)
    context.model_yaml_config = {"handler": {"profile": True}}
    context.metrics = times = Times()
    handler.handle([{"body": picture("red")}], context)
    steps = ["ts_handler_preprocess", "ts_handler_inference", "ts_handler_postprocess"]
    assert times.seen == [*steps, "HandlerTime"]
