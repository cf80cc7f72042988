"""Answers as bytes: JSON the way the recorded server prints it, and the headers that every answer has.

Source: spec/management.md section 0 (headers and their order, JSON style).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tserve.domain.json_text import json_text
from tserve.domain.wire import JobReply
from tserve.errors import InternalServer, TserveError
from tserve.http.routes import Reply
from tserve.services.inference import Stream

HEADERS_BYTES = 32 << 10  # common clients refuse a line of 64 KiB
_STATUSES = range(200, 1000)
_BODILESS = (204, 304)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
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
    """With a newline at the end."""
    return json_text(value) + b"\n"


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


def handler_reply(reply: JobReply, rest: Stream | None = None) -> Reply:
    """What the handler answered, if HTTP can carry it.  Raises InternalServer."""
    if reply.status not in _STATUSES:
        raise InternalServer(f"The handler set a status that HTTP does not allow: {reply.status}", code=503)
    headers = tuple((name, value.strip()) for name, value in reply.headers.items())
    if sum(len(name) + len(value) for name, value in headers) > HEADERS_BYTES:
        raise InternalServer(f"The handler set more than {HEADERS_BYTES} bytes of headers.", code=503)
    for name, value in headers:
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise InternalServer(f"The handler set a header that HTTP does not allow: {name!r}: {value!r}", code=503)
    if reply.status in _BODILESS:
        return Reply(reply.status, b"", headers)
    return Reply(reply.status, reply.body, headers, rest)


def all_headers(reply: Reply, request_id: str, cors: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The reply's own headers, then the common ones in the recorded order.

    A handler cannot set what is the server's: the request id and the framing.  Errors close the connection, as
    recorded.
    """
    own = [(name, value) for name, value in reply.headers if name.lower() not in _SERVERS]
    whole = reply.rest is None
    length = ("content-length", str(len(reply.body))) if whole else ("transfer-encoding", "chunked")
    connection = ("connection", "close" if reply.status >= 400 else "keep-alive")
    return [*own, ("x-request-id", request_id), *cors, *_ALWAYS, length, connection]
