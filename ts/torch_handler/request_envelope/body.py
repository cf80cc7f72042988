"""The envelope that hands over the contents of the rows, so that `base_handler` can make a tensor of them."""

from __future__ import annotations

from typing import Any

from ts.torch_handler.request_envelope.base import BaseEnvelope


class BodyEnvelope(BaseEnvelope):
    def parse_input(self, data: list[Any]) -> list[Any]:
        return [self.content_of(row) for row in data]

    def format_output(self, results: Any) -> Any:
        return results
