"""The stock handler `object_detector`: an image of any size in, boxes with labels and scores out."""

from __future__ import annotations

from typing import Any

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler import _images
from ts.torch_handler._transforms import tensor_of_image
from ts.torch_handler.vision_handler import VisionHandler
from ts.utils.util import map_class_to_label


class ObjectDetector(VisionHandler):
    """For models that answer each image by a dict of the tensors `boxes`, `labels` and `scores`."""

    image_processing: Any = tensor_of_image()
    threshold = 0.5

    @timed
    def preprocess(self, data: Any) -> Any:
        """One tensor (rows, 3, height, width); a list of tensors (3, height, width) if the sizes differ."""
        images = [image.to(self.device) for image in _images.tensors_of(data, self.image_processing, "ObjectDetector")]
        return torch.stack(images) if len({image.shape for image in images}) == 1 else images

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """What the model finds; a scripted detector of torchvision takes lists and answers its losses as well."""
        batched = isinstance(data, torch.Tensor) and not _wants_list(self.model)
        with torch.inference_mode():
            found = self.model(data if batched else list(data), *args, **kwargs)
        return found[1] if isinstance(found, tuple) else found

    @timed
    def postprocess(self, data: Any) -> Any:
        """By row a list of `{label: [x1, y1, x2, y2], "score": score}`, of scores of `threshold` or more."""
        return [self._shown(row) for row in data]

    def _shown(self, row: Any) -> list[dict[str, Any]]:
        sure = row["scores"] >= self.threshold
        boxes, labels, scores = (row[key][sure].tolist() for key in ("boxes", "labels", "scores"))
        named = map_class_to_label([[box] for box in boxes], self.mapping, [[label] for label in labels])
        return [each | {"score": score} for each, score in zip(named, scores, strict=True)]


def _wants_list(model: Any) -> bool:
    """Whether a TorchScript model is declared for a list of images."""
    if not isinstance(model, torch.jit.ScriptModule):
        return False
    declared = model.forward.schema.arguments  # type: ignore[attr-defined]
    return len(declared) > 1 and str(declared[1].type).startswith("List[Tensor")
