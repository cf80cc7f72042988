"""The image transforms of the stock handlers: sizes and margins as torchvision documents them, and its pixels."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ts.torch_handler._transforms import CenterCrop, Resize
from ts.torch_handler.image_classifier import ImageClassifier

# By the size of an image: its size once the shorter side is 256.  The longer one is cut off to a whole number.
RESIZED = {
    (333, 500): (256, 384),
    (500, 333): (384, 256),
    (1, 1000): (256, 256_000),
    (1000, 1): (256_000, 256),
    (256, 256): (256, 256),
    (257, 256): (257, 256),
    (256, 700): (256, 700),
    (257, 258): (256, 256),
    (300, 301): (256, 256),
    (640, 427): (383, 256),
    (3, 2): (384, 256),
    (1, 1): (256, 256),
}


@pytest.mark.parametrize("size", RESIZED)
def test_the_shorter_side_is_scaled_and_the_longer_one_follows(size: tuple[int, int]) -> None:
    assert Resize(256)(Image.new("L", size)).size == RESIZED[size]


# By width and height, size of the crop: where it begins in the image; before 0 is a margin.
CROPPED = {
    ((256, 256), 224): (16, 16),
    ((257, 256), 224): (16, 16),  # 16.5: a half goes to the even number
    ((259, 256), 224): (18, 16),  # 17.5
    ((256, 301), 224): (16, 38),  # 38.5
    ((225, 227), 224): (0, 2),  # 0.5 and 1.5
    ((224, 224), 224): (0, 0),
    ((4, 6), 8): (-2, -1),
    ((5, 7), 8): (-1, 0),  # the odd pixel of a margin is behind the image
    ((3, 9), 8): (-2, 0),
    ((2, 11), 8): (-3, 2),
}


@pytest.mark.parametrize("case", CROPPED)
def test_where_the_middle_is(case: tuple[tuple[int, int], int]) -> None:
    """Each pixel tells its place, counted from 1; a margin is 0."""
    (width, height), size = case
    left, top = CROPPED[case]
    for across, begin, side in ((True, left, width), (False, top, height)):
        image = Image.new("I", (width, height))
        image.putdata([(column if across else row) + 1 for row in range(height) for column in range(width)])
        crop = CenterCrop(size)(image)
        assert crop.size == (size, size)
        middle = [crop.getpixel((at, size // 2) if across else (size // 2, at)) for at in range(size)]
        assert middle == [place + 1 if 0 <= place < side else 0 for place in range(begin, begin + size)]


def test_any_image_passes_the_pipeline_and_the_steps_see_rgb() -> None:
    """A handler that takes the pipeline apart finds the resize first, as in TorchServe."""
    seen = []
    pipeline = ImageClassifier.image_processing
    watched = type(pipeline)([lambda image: seen.append(image.mode) or image, *pipeline.transforms])
    grey = Image.new("L", (300, 260), 200)
    assert torch.equal(watched(grey), pipeline(grey.convert("RGB")))
    assert seen == ["RGB"]
    assert isinstance(pipeline.transforms[0], Resize)


@pytest.mark.parametrize("size", [*(size for size in RESIZED if max(size) < 1000), (301, 257), (259, 256), (2, 90)])
def test_the_pipeline_gives_torchvisions_pixels(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is optional and not installed")
    theirs = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    image = Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 100).convert("RGB")
    assert torch.equal(ImageClassifier.image_processing(image), theirs(image))


@pytest.mark.parametrize("case", CROPPED)
def test_the_middle_is_torchvisions(case: tuple[tuple[int, int], int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is optional and not installed")
    image = Image.effect_mandelbrot(case[0], (-2, -1.5, 1, 1.5), 100)
    assert CenterCrop(case[1])(image).tobytes() == transforms.CenterCrop(case[1])(image).tobytes()
