"""The place of TorchServe's base for handlers that read images by NVIDIA DALI."""

from __future__ import annotations

from typing import Any

from ts.torch_handler._elsewhere import not_driven
from ts.torch_handler.image_classifier import ImageClassifier


class DALIHandler(ImageClassifier):
    """Subclasses that bring `initialize` and `preprocess` of their own work; nothing here runs a DALI pipeline."""

    def initialize(self, context: Any) -> None:
        """Raises ImportError, which says what to do."""
        instead = "image_classifier reads the same images on the CPU; or write a handler that runs the pipeline."
        raise not_driven(type(self).__name__, "NVIDIA DALI", "nvidia-dali-cuda120", instead)
