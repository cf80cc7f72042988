"""The older way: a class on BaseHandler, one object of it in the module, and a function that asks it."""

import torch

from ts.torch_handler.base_handler import BaseHandler


class AdderService(BaseHandler):
    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") for row in data]
        return torch.tensor([[float(number) for number in bytes(row).decode().split(",")] for row in rows])

    def postprocess(self, data):
        return [{"sum": value} for value in data.flatten().tolist()]


_service = AdderService()


def handle(data, context):
    try:
        if not _service.initialized:
            _service.initialize(context)
        if data is None:
            return None
        data = _service.preprocess(data)
        data = _service.inference(data)
        return _service.postprocess(data)
    except Exception as e:
        raise e
