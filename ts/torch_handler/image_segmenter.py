"""The stock handler `image_segmenter`: an image in, the class of each pixel out."""

from __future__ import annotations

from typing import Any

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler.vision_handler import VisionHandler


class ImageSegmenter(VisionHandler):
    """For models of (rows, 3, 224, 224) to `{"out": (rows, classes, height, width)}` of logits."""

    @timed
    def postprocess(self, data: Any) -> Any:
        """By row and pixel the likeliest class and its probability: nested lists [height][width][2]."""
        chances, classes = torch.softmax(data["out"], dim=1).max(dim=1)
        return torch.stack((classes.to(chances.dtype), chances), dim=3).tolist()
