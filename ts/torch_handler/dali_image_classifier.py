"""The place of TorchServe's stock handler of that name, for images read by NVIDIA DALI."""

from __future__ import annotations

from ts.torch_handler.dali_handler import DALIHandler


class DALIImageClassifier(DALIHandler):
    """Refuses to be initialised, with what to do."""
