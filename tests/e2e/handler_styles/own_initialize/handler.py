"""`initialize` overridden: everything is taken from the context, nothing from BaseHandler."""

import json
import logging
import os
from abc import ABC

import torch

from ts.context import Context
from ts.torch_handler.base_handler import BaseHandler

logger = logging.getLogger(__name__)


class OffsetHandler(BaseHandler, ABC):
    def __init__(self):
        super().__init__()
        self.initialized = False

    def initialize(self, ctx: Context):
        self.manifest = ctx.manifest
        properties = ctx.system_properties
        model_dir = properties.get("model_dir")
        self.device = torch.device(
            "cuda:" + str(properties.get("gpu_id"))
            if torch.cuda.is_available() and properties.get("gpu_id") is not None
            else "cpu"
        )
        serialized_file = self.manifest["model"]["serializedFile"]
        self.model = torch.jit.load(os.path.join(model_dir, serialized_file), map_location=self.device)
        self.model.eval()
        setup_path = os.path.join(model_dir, "setup_config.json")
        with open(setup_path) as setup_file:
            self.setup_config = json.load(setup_file)
        self.settings = ctx.model_yaml_config["handler"]
        self.known = {
            "name": ctx.model_name,
            "manifest name": self.manifest["model"]["modelName"],
            "version": self.manifest["model"]["modelVersion"],
            "folder": os.path.samefile(model_dir, os.getcwd()),
            "batch": properties["batch_size"],
            "server": properties.get("server_name"),
            "gpu": properties.get("gpu_id"),
        }
        logger.info("Model %s loaded successfully", ctx.model_name)
        self.initialized = True

    def preprocess(self, requests):
        return torch.tensor([float(request.get("body")) for request in requests], device=self.device)

    def inference(self, data, *args, **kwargs):
        return self.model(data) + self.settings["offset"] * self.setup_config["sign"]

    def postprocess(self, data):
        return [{"value": value, **self.known} for value in data.tolist()]
