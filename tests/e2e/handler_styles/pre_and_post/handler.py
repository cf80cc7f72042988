"""BaseHandler does the loading and the inference; only what comes in and goes out is the model's own."""

import torch

from ts.torch_handler.base_handler import BaseHandler


class MatrixHandler(BaseHandler):
    def __init__(self):
        super(MatrixHandler, self).__init__()
        self.calls = 0

    def preprocess(self, data):
        self.calls += 1
        return torch.stack([torch.tensor(row.get("data") or row.get("body")) for row in data]).to(self.device)

    def postprocess(self, inference_output):
        return [{"prediction": row, "call": self.calls} for row in inference_output.tolist()]
