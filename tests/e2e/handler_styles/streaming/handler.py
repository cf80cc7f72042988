"""Tokens one by one, as they are made; what `handle` returns is the last of them."""

import logging

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.torch_handler.base_handler import BaseHandler

logger = logging.getLogger(__name__)


class Storyteller(BaseHandler):
    def initialize(self, ctx):
        self.tokens = ctx.model_yaml_config["handler"]["tokens"]
        self.initialized = True

    def preprocess(self, requests):
        prompts = []
        for idx, request in enumerate(requests):
            prompts.append(request["body"]["prompt"])
            self.context.set_response_content_type(idx, "text/event-stream")
        return prompts

    def inference(self, prompts):
        story = [f"{prompt}:" for prompt in prompts]
        for token in self.tokens:
            send_intermediate_predict_response(
                story, self.context.request_ids, "Intermediate Prediction success", 200, self.context
            )
            story = [f" {token}" for _ in prompts]
        return [f"{last}." for last in story]

    def postprocess(self, inference_outputs):
        logger.info("Generated text: '%s'", inference_outputs)
        return inference_outputs
