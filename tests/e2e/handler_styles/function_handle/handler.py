"""A module with a function `handle`: called once without data, to load the model, then with each batch."""

import json
import logging

import torch

logger = logging.getLogger(__name__)
model = None


def handle(data, context):
    global model
    if not data:
        path = context.manifest["model"]["serializedFile"]
        model = torch.jit.load(path).eval()  # the working folder is the model's
        logger.info("model %s is loaded", context.model_name)
        return None
    answers = []
    for row in data:
        payload = row.get("data") or row.get("body")
        if isinstance(payload, (bytes, bytearray)):
            payload = json.loads(payload.decode("utf-8"))
        with torch.no_grad():
            answers.append(model(torch.tensor(payload, dtype=torch.float32)).tolist())
    return answers
