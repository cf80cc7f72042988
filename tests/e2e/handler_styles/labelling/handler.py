"""Classes by name: `index_to_name.json` in the archive, `self.mapping` in the handler, `map_class_to_label` between."""

import torch

from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import map_class_to_label


class LabellingHandler(BaseHandler):
    top = 2

    def preprocess(self, data):
        return torch.tensor([row["body"]["features"] for row in data])

    def postprocess(self, data):
        scores, classes = torch.topk(data, self.top, dim=1)
        return map_class_to_label(scores.tolist(), self.mapping, classes.tolist())
