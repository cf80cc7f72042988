"""Writes on from a prompt, and sends each word as soon as it is there.

A request is JSON: `prompt`, and if wanted `words`, `temperature` (0 always takes the likeliest character) and `seed`.
One that cannot be read gets 400, its neighbours in the batch are written on.
"""

from __future__ import annotations

from typing import Any

import torch
from author import Author

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.torch_handler.base_handler import BaseHandler


class WriterHandler(BaseHandler):
    def initialize(self, context: Any) -> None:
        super().initialize(context)
        torch.set_num_threads(1)  # a character at a time is too little to share

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        with torch.inference_mode():
            authors = [self.begin(row.get("body"), place, context) for place, row in enumerate(data)]
            words = next_words(authors)
            # The last piece is what is returned: so it is known to be the last before it is sent.
            while any(author.left for author in authors if isinstance(author, Author)):
                send_intermediate_predict_response(words, context.request_ids, "ok", 200, context)
                words = next_words(authors)
        return words

    def begin(self, asked: Any, place: int, context: Any) -> Author | str:
        """A text, or what is said instead of one."""
        context.set_response_content_type(place, "text/plain; charset=utf-8")
        try:
            return Author(self.model, self.device, asked)
        except ValueError as error:
            context.set_response_status(400, "Bad Request", place)
            return f"{error}\n"


def next_words(authors: list[Author | str]) -> list[str]:
    """A word of each; what is said instead of a text is said once."""
    words = [author.word() if isinstance(author, Author) else author for author in authors]
    authors[:] = ["" if isinstance(author, str) else author for author in authors]
    return words
