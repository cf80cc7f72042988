"""`describe_handle`: what a describe call with `customized=true` says of the model."""

from ts.torch_handler.base_handler import BaseHandler


class DescribedHandler(BaseHandler):
    def initialize(self, context):
        self.labels = ["cat", "dog"]
        self.input_shape = context.model_yaml_config["handler"]["input_shape"]
        self.initialized = True

    def preprocess(self, data):
        return data

    def inference(self, data):
        return [self.labels[len(row["body"]) % 2] for row in data]

    def postprocess(self, data):
        return data

    def describe_handle(self):
        return {"labels": self.labels, "input": {"shape": self.input_shape, "type": "text"}, "unknown": None}
