"""`get_insights`: what /explanations asks for.  A linear model is explained by its weights."""

import torch

from ts.torch_handler.base_handler import BaseHandler


class ScorecardHandler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row.get("data") or row.get("body")["data"] for row in data])

    def get_insights(self, tensor_data, raw_data, target=0):
        weights = self.model.layer.weight[int(target)]
        return [{"target": int(target), "shares": (weights * row).tolist(), "raw": raw_data} for row in tensor_data]
