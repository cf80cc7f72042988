"""The envelope that hands over the contents of the rows, so that `base_handler` can make a tensor of them."""

from __future__ import annotations

import contextlib
from typing import Any

from ts.torch_handler.request_envelope.base import BaseEnvelope


class BodyEnvelope(BaseEnvelope):
    def parse_input(self, data: list[Any]) -> list[Any]:
        return [self.content_of(row) for row in data]

    def _kind_of_rows(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # one row for each request

    def format_output(self, results: Any) -> Any:
        return results
