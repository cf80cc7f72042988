"""KServe's protocol v1: `{"instances": [...]}` to `{"predictions": [...]}`, or to `{"explanations": [...]}`."""

from __future__ import annotations

from typing import Any

from ts.torch_handler.request_envelope._rows import Asked, RowEnvelope, instances_of, plain


class KServeEnvelope(RowEnvelope):
    def read(self, row: Any, idx: int) -> Asked:
        return Asked(instances_of(self.content_of(row)))

    def write(self, asked: Asked, results: Any, idx: int) -> dict[str, Any]:
        explain = self.context is not None and self.context.get_request_header(idx, "explain") == "True"
        return {"explanations" if explain else "predictions": plain(results)}
