"""Sentences to vectors: the mean over a sentence's tokens, of length one, so that a dot product is their likeness.

A request is a text, or JSON with `text`; the answer is a list of 384 numbers.  A batch is embedded at once.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from ts.torch_handler.base_handler import BaseHandler

LONGEST = 256  # tokens; what is longer is cut, as the model was trained


class EmbeddingHandler(BaseHandler):
    def initialize(self, context: Any) -> None:
        folder = context.system_properties["model_dir"]
        gpu = context.system_properties["gpu_id"]
        self.device = torch.device(f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).to(self.device).eval()
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> list[str | None]:
        """The text of each request; None where there is none, which gets 400 and harms no neighbour."""
        texts = [text_of(row.get("data", row.get("body"))) for row in data]
        for place, text in enumerate(texts):
            if text is None:
                self.context.set_response_status(400, "Bad Request", place)
        return texts

    def inference(self, texts: list[str | None]) -> list[Any]:
        there = [text for text in texts if text is not None]
        if not there:
            return [None] * len(texts)
        tokens = self.tokenizer(there, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        tokens = tokens.to(self.device)
        with torch.inference_mode():
            states = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            means = (states * mask).sum(1) / mask.sum(1)
            vectors = iter(torch.nn.functional.normalize(means, dim=1).tolist())
        return [None if text is None else next(vectors) for text in texts]

    def postprocess(self, vectors: list[Any]) -> list[Any]:
        refusal = {"error": 'send a text, or JSON like {"text": "a sentence"}'}
        return [refusal if vector is None else vector for vector in vectors]


def text_of(given: Any) -> str | None:
    if isinstance(given, dict):
        given = given.get("text")
    if isinstance(given, bytes | bytearray):
        given = given.decode("utf-8", "replace")
    return given if isinstance(given, str) and given.strip() else None
