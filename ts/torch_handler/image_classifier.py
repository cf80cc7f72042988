"""The stock handler `image_classifier`: an image in, its likeliest classes out."""

from __future__ import annotations

from typing import Any

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler.vision_handler import VisionHandler
from ts.utils.util import map_class_to_label


class ImageClassifier(VisionHandler):
    """For models of (rows, 3, 224, 224), normalised as for ImageNet, to (rows, classes) of logits."""

    topk = 5

    def set_max_result_classes(self, topk: int) -> None:
        self.topk = topk

    def get_max_result_classes(self) -> int:
        return self.topk

    @timed
    def postprocess(self, data: Any) -> Any:
        """By row the `topk` likeliest `{label: probability}`, the likeliest first; all, if there are fewer classes."""
        chances, classes = torch.softmax(data, dim=1).topk(min(self.topk, data.shape[1]), dim=1)
        return map_class_to_label(chances.tolist(), self.mapping, classes.tolist())
