"""Answers as bytes: JSON the way the recorded server prints it, and the headers that every answer has.

Source: spec/management.md section 0 (headers and their order, JSON style).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tserve.errors import TserveError
from tserve.http.routes import Reply

JSON_TYPE = ("content-type", "application/json")
_ALWAYS = (
    ("pragma", "no-cache"),
    ("cache-control", "no-cache; no-store, must-revalidate, private"),
    ("expires", "Thu, 01 Jan 1970 00:00:00 UTC"),
)
# What belongs to the server: the request id, the framing, and what HTTP/2 forbids.
_SERVERS = frozenset(
    [
        "x-request-id",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
    ]
)


def to_json(value: object) -> bytes:
    """Two spaces, nothing escaped that need not be, a newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def json_reply(status: int, value: object) -> Reply:
    return Reply(status, to_json(value), (JSON_TYPE,))


def status_reply(status: int, text: str) -> Reply:
    return json_reply(status, {"status": text})


def error_reply(error: TserveError) -> Reply:
    """The error object of every port; what tserve knows beyond the sentence stands in `tserve`."""
    body: dict[str, object] = {"code": error.code, "type": error.type_name, "message": error.message}
    if error.cause:
        body["tserve"] = error.cause
    return json_reply(error.code, body)


def all_headers(reply: Reply, request_id: str, cors: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The reply's own headers, then the common ones in the recorded order.

    A handler cannot set what is the server's: the request id and the framing.  Errors close the connection, as
    recorded.
    """
    own = [(name, value) for name, value in reply.headers if name.lower() not in _SERVERS]
    length = ("content-length", str(len(reply.body)))
    connection = ("connection", "close" if reply.status >= 400 else "keep-alive")
    return [*own, ("x-request-id", request_id), *cors, *_ALWAYS, length, connection]
