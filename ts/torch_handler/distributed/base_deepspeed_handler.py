"""What handlers of DeepSpeed models derive from; they load the model themselves and wrap it by `get_ds_engine`."""

from __future__ import annotations

import abc
import os
from typing import Any

from ts.torch_handler._optional import needed
from ts.torch_handler.base_handler import BaseHandler


class BaseDeepSpeedHandler(BaseHandler, abc.ABC):
    """`device` is the number of the accelerator that torchrun gave to this process."""

    def initialize(self, context: Any) -> None:
        """Raises ModuleNotFoundError without deepspeed.  Loads no model."""
        needed("deepspeed", "deepspeed", f"{type(self).__name__} runs models")
        self.context = context
        self.manifest = context.manifest
        self.model_yaml_config = context.model_yaml_config
        self.device = int(os.environ.get("LOCAL_RANK", "0"))
