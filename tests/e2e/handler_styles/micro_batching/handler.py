"""A batch in micro batches: MicroBatching takes the place of `handle` and calls the steps from threads of its own."""

import torch

from ts.handler_utils.micro_batching import MicroBatching
from ts.torch_handler.base_handler import BaseHandler


class PipelinedHandler(BaseHandler):
    def __init__(self):
        super().__init__()
        self.handle = MicroBatching(self)

    def initialize(self, ctx):
        super().initialize(ctx)
        settings = ctx.model_yaml_config["micro_batching"]
        self.handle.parallelism = settings["parallelism"]
        self.handle.micro_batch_size = settings["micro_batch_size"]

    def preprocess(self, data):
        return torch.tensor([[float(number) for number in row["body"].split()] for row in data])

    def postprocess(self, data):
        size = len(data)
        return [{"sums": row, "rows": size} for row in data.tolist()]
