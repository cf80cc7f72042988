"""PredictionException: a status and a sentence of the handler's own for the whole batch."""

from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException


class StrictHandler(BaseHandler):
    def initialize(self, context):
        self.limit = context.model_yaml_config["handler"]["limit"]
        self.initialized = True

    def handle(self, data, context):
        text = data[0]["body"]
        if not isinstance(text, str):
            raise PredictionException("Send text/plain.", 415)
        if len(text) > self.limit:
            raise PredictionException(f"No more than {self.limit} characters.", 413)
        if not text:
            raise PredictionException("Nothing was sent.")
        return [text[::-1]]
