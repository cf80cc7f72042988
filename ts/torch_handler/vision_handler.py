"""What handlers of images share: reading them, and explaining an answer by the pixels it comes from."""

from __future__ import annotations

import abc
from typing import Any

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler import _images
from ts.torch_handler._attribution import IntegratedGradients, target_of
from ts.torch_handler._transforms import imagenet
from ts.torch_handler.base_handler import BaseHandler


class VisionHandler(BaseHandler, abc.ABC):
    """A row's `data` or `body` is an image: bytes of a file, the same as base64 text, or nested lists of numbers.

    `image_processing` makes the tensor of a Pillow image; subclasses put their own in its place.
    """

    image_processing: Any = imagenet()

    def initialize(self, context: Any) -> None:
        """As BaseHandler; `limit_max_image_pixels=false` lifts Pillow's bound of pixels for the whole process."""
        super().initialize(context)
        self.ig = IntegratedGradients(self.model)
        limited = context.system_properties.get("limit_max_image_pixels", True)
        _images.prepare(type(self).__name__, limited=limited)

    @timed
    def preprocess(self, data: Any) -> Any:
        """Rows to one tensor (rows, channels, height, width).  UnreadableImages, a ValueError, names the bad rows."""
        images = _images.tensors_of(data, self.image_processing, type(self).__name__)
        return torch.stack(images).to(self.device)

    def handle(self, data: Any, context: Any) -> Any:
        """As BaseHandler, but a row without a readable image is answered 400 and does not fail the others."""
        try:
            return super().handle(data, context)
        except _images.UnreadableImages as error:
            return self._handle_readable(data, context, error.reasons)

    def _handle_readable(self, data: Any, context: Any, reasons: dict[int, str]) -> list[Any]:
        answers: dict[int, Any] = {row: {"error": reason} for row, reason in reasons.items()}
        readable = [row for row in range(len(data)) if row not in reasons]
        if readable:
            with _images.only_rows(context, readable):
                results = super().handle([data[row] for row in readable], context)
            answers.update(zip(readable, results, strict=True))
        for row in reasons:
            context.set_response_status(400, "Bad Request", row)
        return [answers[row] for row in range(len(data))]

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> Any:
        """Integrated gradients of each image in 15 steps, nested lists in the shape of the input."""
        return self.ig.attribute(tensor_data, target=target_of(target), n_steps=15).tolist()
