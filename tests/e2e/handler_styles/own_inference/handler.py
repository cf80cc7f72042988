"""`inference` overridden: a loop around the model, steered by `handler:` of the model's yaml."""

import torch

from ts.torch_handler.base_handler import BaseHandler


class GrowthHandler(BaseHandler):
    def initialize(self, ctx):
        super().initialize(ctx)
        settings = ctx.model_yaml_config.get("handler", {})
        self.steps = settings.get("steps", 1)
        self.ceiling = settings["limits"]["ceiling"]

    def preprocess(self, data):
        return torch.as_tensor([row["body"] for row in data], dtype=torch.float32, device=self.device)

    def inference(self, data, *args, **kwargs):
        with torch.inference_mode():
            for _ in range(self.steps):
                data = torch.clamp(self.model(data), max=self.ceiling)
        return data
