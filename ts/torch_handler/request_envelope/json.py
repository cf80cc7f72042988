"""The envelope `{"instances": [...]}` to `{"predictions": [...]}` as text, with Base64 for what JSON cannot hold."""

from __future__ import annotations

import base64
import json
from typing import Any

from ts.torch_handler.request_envelope._rows import Asked, RowEnvelope, instances_of, plain


class JSONEnvelope(RowEnvelope):
    def read(self, row: Any, idx: int) -> Asked:
        return Asked([_decoded(instance) for instance in instances_of(self.content_of(row))])

    def write(self, asked: Asked, results: Any, idx: int) -> str:
        return json.dumps({"predictions": plain(results)})


def _decoded(instance: Any) -> Any:
    """`{"b64": text}`, as an instance or as a member of one, is the bytes it stands for."""
    if not isinstance(instance, dict):
        return instance
    if set(instance) == {"b64"}:
        return _bytes(instance["b64"])
    return {key: _bytes(value["b64"]) if _is_b64(value) else value for key, value in instance.items()}


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"}


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError('"b64" in the request body is not a string')
    try:
        return base64.b64decode(text)
    except ValueError as error:
        raise ValueError(f'"b64" in the request body is not Base64: {error}') from error
