"""The image transforms of the stock handlers, on Pillow and torch alone, with torchvision's results.

Handlers that import torchvision themselves get the same pipelines made of torchvision's classes, so that code which
takes them apart or mixes them finds what it expects.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ts.torch_handler._optional import needed

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Compose:
    """Call `transforms` one after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    """Scale the shorter side to `size` pixels, bilinear, over all pixels that fall into one (antialiased)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image) -> Image:
        width, height = image.size
        if min(width, height) == self.size:
            return image
        longer = int(self.size * max(width, height) / min(width, height))
        size = (self.size, longer) if width <= height else (longer, self.size)
        return image.resize(size, needed("PIL.Image", "pillow", "Resize scales images").Resampling.BILINEAR)


class CenterCrop:
    """The middle `size` x `size` pixels; an image that has fewer gets a black margin."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image) -> Image:
        left, top = (self._start(side) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))

    def _start(self, side: int) -> int:
        """As torchvision rounds: a half goes to the even number, and the odd pixel of a margin to its far side."""
        spare = side - self.size
        return round(spare / 2) if spare > 0 else -(-spare // 2)


class ToTensor:
    """An image of 8 bits to a float tensor (channels, height, width) between 0 and 1."""

    def __call__(self, image: Image) -> torch.Tensor:
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = values.view(image.height, image.width, len(image.getbands())).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255)


class Normalize:
    """Subtract the mean of each channel, and divide by its standard deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = mean, std

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(each, dtype=tensor.dtype).view(-1, 1, 1) for each in (self.mean, self.std))
        return tensor.sub(mean).div(std)


def to_rgb(image: Image) -> Image:
    """Any image to three channels of 8 bits; what is transparent is black, of 16 bits the upper 8 count."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        pillow = needed("PIL.Image", "pillow", "to_rgb converts images")
        opaque = pillow.new("RGBA", image.size, (0, 0, 0, 255))
        image = pillow.alpha_composite(opaque, image.convert("RGBA"))
    return image.convert("RGB")


def _of_rgb(compose: type[Any]) -> type[Any]:
    """A Compose that gets every image in RGB, without a transform for it: handlers count those that follow."""

    class RGBCompose(compose):  # type: ignore[misc]
        def __call__(self, image: Any) -> Any:
            return super().__call__(to_rgb(image) if hasattr(image, "mode") else image)

    return RGBCompose


class Pipeline:
    """A class attribute that is made on first use: by then it is known whether the handler uses torchvision."""

    def __init__(self, *steps: tuple[str, Any]) -> None:
        """`steps` are names of transforms, with the arguments of each."""
        self._steps = steps
        self._made: Any = None

    def __get__(self, handler: Any, owner: type | None = None) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> Any:
        # A class of torchvision can be expected only where somebody imported it; doing so here would cost a second.
        source = sys.modules.get("torchvision.transforms") or sys.modules[__name__]
        return _of_rgb(source.Compose)([getattr(source, name)(*arguments) for name, arguments in self._steps])


def tensor_of_image() -> Any:
    return Pipeline(("ToTensor", ()))


def imagenet() -> Any:
    """Shorter side to 256 pixels, the middle 224 x 224, normalised by ImageNet's mean and deviation."""
    return Pipeline(
        ("Resize", (256,)),
        ("CenterCrop", (224,)),
        ("ToTensor", ()),
        ("Normalize", (IMAGENET_MEAN, IMAGENET_STD)),
    )
