"""JSON as the recorded server prints it (spec/management.md section 0)."""

from __future__ import annotations

import json


def json_text(value: object) -> bytes:
    """Two spaces, nothing escaped that need not be, no newline at the end; UTF-8, lone surrogates are `?`."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "replace")
