"""What handlers of pipeline-parallel models derive from; they load the model and split it by `get_pipeline_driver`."""

from __future__ import annotations

import abc
import os
from typing import Any

import torch

from ts.torch_handler.base_handler import BaseHandler


class BasePippyHandler(BaseHandler, abc.ABC):
    """`local_rank`, `rank` and `world_size` are what torchrun says; without it, those of a single process."""

    def initialize(self, context: Any) -> None:
        """Connect the processes of the model with each other.  Loads no model."""
        from ts.handler_utils.distributed.pt_pippy import initialize_rpc_workers

        self.context = context
        self.manifest = context.manifest
        self.model_yaml_config = context.model_yaml_config
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = self.local_rank % torch.cuda.device_count() if torch.cuda.is_available() else torch.device("cpu")
        initialize_rpc_workers(self.local_rank, self.world_size, context)
