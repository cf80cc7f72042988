"""The Quart-Trio app of a listener: limits, routing over our own tables, errors in the contract's form.

Quart's router is not used: it redirects, merges slashes and answers OPTIONS by itself, which the contract forbids.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence

from quart import Response, request
from quart.wrappers import base
from quart_trio import QuartTrio
from werkzeug.exceptions import RequestEntityTooLarge

from tserve.errors import (
    BadRequest,
    InternalServer,
    MethodNotAllowed,
    NotYetBuilt,
    PayloadTooLarge,
    ResourceNotFound,
    TserveError,
)
from tserve.http.params import Query, split_path
from tserve.http.render import all_headers, error_reply, json_reply
from tserve.http.routes import Call, Reply, Table, find
from tserve.services.inference import Stream

REQUEST_LINE_LIMIT = 4096
HEADER_LIMIT = 8192
_log = logging.getLogger("tserve.http")
# Some releases of Quart say so; the others leave it to the connection, which cancels the request.
_ClientLeft: type[Exception] = getattr(base, "ClientDisconnectedError", ConnectionError)


def make_app(
    name: str, tables: Sequence[Table], *, max_request_size: int, cors: Sequence[tuple[str, str]]
) -> QuartTrio:
    """An app that serves the routes of `tables`, the first match winning."""
    app = QuartTrio(name, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=max_request_size, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)
    table = [route for each in tables for route in each]

    @app.before_request
    async def answer() -> Response:
        request_id = str(uuid.uuid4())
        reply = json_reply(200, {}) if cors and _is_preflight() else await _reply(table, request_id, max_request_size)
        response = Response(reply.body if reply.rest is None else _Parts(reply.body, reply.rest), reply.status)
        response.headers.clear()
        response.headers.extend(all_headers(reply, request_id, cors))
        return response

    return app


def _is_preflight() -> bool:
    """A browser asks whether a page of another origin may send a request; the headers of each answer say it."""
    return request.method == "OPTIONS" and "access-control-request-method" in request.headers


class _Parts:
    """The body of a streamed answer, each part in a chunk of its own."""

    def __init__(self, first: bytes, rest: Stream) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def __aiter__(self) -> _Parts:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)


async def _reply(table: Table, request_id: str, max_request_size: int) -> Reply:
    """The answer to the current request, whatever happens."""
    try:
        return await _route(table, request_id, max_request_size)
    except TserveError as e:
        return error_reply(e)
    except Exception as e:  # the last resort of both HTTP ports; the traceback is in the log
        _log.exception("%s %s failed", request.method, request.path)
        return error_reply(InternalServer(f"Internal server error: {type(e).__name__}", cause={"reason": "bug"}))


async def _route(table: Table, request_id: str, max_request_size: int) -> Reply:
    scope = request.scope
    raw_path, raw_query = scope["raw_path"].partition(b"?")[0], scope["query_string"]
    line = len(request.method) + len(raw_path) + len(raw_query) + bool(raw_query) + len("  HTTP/1.1")
    headers = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if line > REQUEST_LINE_LIMIT or headers > HEADER_LIMIT:
        raise BadRequest("Invalid HTTP message.", cause={"reason": "too_long", "allowed": _LIMITS})
    path = split_path(raw_path)
    if path is None:
        raise ResourceNotFound
    if path == ["api-description"] or (not path and request.method == "OPTIONS"):
        raise NotYetBuilt("The API description is not served by this release yet.")
    if not path:
        raise MethodNotAllowed
    handler, args, rest = find(table, request.method, path)

    async def body() -> bytes:
        data = bytearray()
        try:
            async for part in request.body:
                data += part
                # Quart counts as well, but some of its releases only once they have read everything.
                if len(data) > max_request_size:
                    raise PayloadTooLarge(max_request_size)
        except RequestEntityTooLarge:
            raise PayloadTooLarge(max_request_size) from None
        except _ClientLeft:
            raise BadRequest("The client left before the request body was complete.") from None
        return bytes(data)

    call = Call(
        method=request.method,
        args=args,
        rest=rest,
        query=Query(raw_query),
        headers=tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]),
        body=body,
        actor=request.remote_addr or "",
        request_id=request_id,
        at_end=scope["state"]["at_end"].callback,
    )
    return await handler(call)


_LIMITS = f"a request line of {REQUEST_LINE_LIMIT} and headers of {HEADER_LIMIT} bytes"
