"""What handlers of images share: reading them, and explaining an answer by the pixels it comes from."""

from __future__ import annotations

import abc
from typing import Any

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler import _images
from ts.torch_handler._attribution import IntegratedGradients, target_of
from ts.torch_handler._requests import UnreadableRows, answer_the_readable
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
        """Rows to one tensor (rows, channels, height, width).  UnreadableRows, a ValueError, names the bad ones."""
        images = _images.tensors_of(data, self.image_processing, type(self).__name__)
        return torch.stack(images).to(self.device)

    def handle(self, data: Any, context: Any) -> Any:
        """As BaseHandler, but a request without a readable image is answered 400 and does not fail the others.

        Behind an envelope the rows are no requests: there UnreadableRows is raised, and it is the envelope's to tell.
        """
        try:
            return super().handle(data, context)
        except UnreadableRows as error:
            return answer_the_readable(super().handle, data, context, error)

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> Any:
        """Integrated gradients of each image in 15 steps, nested lists in the shape of the input."""
        return self.ig.attribute(tensor_data, target=target_of(target), n_steps=15).tolist()
