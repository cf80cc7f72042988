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
    PayloadTooLarge,
    ResourceNotFound,
    TserveError,
)
from tserve.http.descriptions import with_descriptions
from tserve.http.guard import Guard
from tserve.http.params import Query, split_path
from tserve.http.render import all_headers, error_reply, json_reply
from tserve.http.routes import Call, Reply, Route, Router, Table
from tserve.metrics.recorder import Metrics
from tserve.services.inference import Stream

REQUEST_LINE_LIMIT = 4096
HEADER_LIMIT = 8192
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})
_log = logging.getLogger("tserve.http")
# Some releases of Quart say so; the others leave it to the connection, which cancels the request.
_ClientLeft: type[Exception] = getattr(base, "ClientDisconnectedError", ConnectionError)


def make_app(
    roles: Sequence[str],
    tables: Sequence[Table],
    *,
    max_request_size: int,
    cors: Sequence[tuple[str, str]],
    guard: Guard,
    metrics: Metrics | None = None,
) -> QuartTrio:
    """An app for a listener with these roles: it serves the routes of `tables`, of equal ones the first."""
    name, metrics = "-".join(roles), metrics or Metrics()
    app = _App(name, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=max_request_size, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)
    router = Router(with_descriptions(roles, tables, guard))
    answering = _Answering(router, guard, max_request_size, preflights=bool(cors))

    @app.before_request
    async def answer() -> Response:
        request_id = str(uuid.uuid4())
        reply = await answering.reply(request_id)
        metrics.http_answered(name, _shown(request.method), _pattern(), reply.status)
        response = Response(reply.body if reply.rest is None else _Parts(reply.body, reply.rest), reply.status)
        response.headers.clear()
        response.headers.extend(all_headers(reply, request_id, cors))
        return response

    return app


class _App(QuartTrio):
    def create_url_adapter(self, request: object) -> None:
        """Nothing for Quart to route by; what it would make of the Host header fails on some that clients send."""


def _is_preflight() -> bool:
    """A browser asks whether a page of another origin may send a request; the headers of each answer say it."""
    return request.method == "OPTIONS" and "access-control-request-method" in request.headers


def _pattern() -> str:
    """Of the route that the current request has matched; empty for none."""
    return str(request.scope["state"].get("route", ""))


def _shown(method: str) -> str:
    """Clients may invent methods, and so must not fill a metric with them."""
    return method if method in _METHODS else "other"


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


class _Answering:
    """What becomes of one request after the other: limits, guard, route, handler."""

    def __init__(self, router: Router, guard: Guard, max_request_size: int, *, preflights: bool) -> None:
        self._router = router
        self._guard = guard
        self._max_request_size = max_request_size
        self._preflights = preflights

    async def reply(self, request_id: str) -> Reply:
        """The answer to the current request, whatever happens."""
        try:
            return await self._route(request_id)
        except TserveError as e:
            return error_reply(e)
        except Exception as e:  # the last resort of both HTTP ports; the traceback is in the log
            _log.exception("%s %s failed", request.method, request.path)
            return error_reply(InternalServer(f"Internal server error: {type(e).__name__}", cause={"reason": "bug"}))

    async def _route(self, request_id: str) -> Reply:
        scope = request.scope
        raw_path, raw_query = scope["raw_path"].partition(b"?")[0], scope["query_string"]
        _check_size(raw_path, raw_query)
        self._guard.check_browser(scope["headers"])
        if self._preflights and _is_preflight():
            return json_reply(200, {})
        peer = request.remote_addr or ""
        found = self._find(raw_path)
        reached = None if isinstance(found, TserveError) else found[0]
        self._guard.check_token(reached, scope["headers"], peer, bare=not raw_query)
        if isinstance(found, TserveError):
            raise found
        route, args, rest = found
        scope["state"]["route"] = route.pattern
        call = Call(
            method=request.method,
            args=args,
            rest=rest,
            query=Query(raw_query, route.operation.query, free=bool(route.operation.free_query)),
            headers=self._guard.passed_on(scope["headers"]),
            body=self._body,
            actor=peer,
            request_id=request_id,
            at_end=scope["state"]["at_end"].callback,
        )
        return await route.handler(call)

    def _find(self, raw_path: bytes) -> tuple[Route, dict[str, str], tuple[str, ...]] | TserveError:
        """Where the current request leads, or why nowhere."""
        try:
            path = split_path(raw_path)
            return ResourceNotFound() if path is None else self._router.find(request.method, path)
        except TserveError as error:
            return error

    async def _body(self) -> bytes:
        data = bytearray()
        try:
            async for part in request.body:
                data += part
                # Quart counts as well, but some of its releases only once they have read everything.
                if len(data) > self._max_request_size:
                    raise PayloadTooLarge(self._max_request_size)
        except RequestEntityTooLarge:
            raise PayloadTooLarge(self._max_request_size) from None
        except _ClientLeft:
            raise BadRequest("The client left before the request body was complete.") from None
        return bytes(data)


def _check_size(raw_path: bytes, raw_query: bytes) -> None:
    """Of the current request's head.  Raises BadRequest."""
    line = len(request.method) + len(raw_path) + len(raw_query) + bool(raw_query) + len("  HTTP/1.1")
    headers = sum(len(name) + len(value) + 4 for name, value in request.scope["headers"])
    if line > REQUEST_LINE_LIMIT or headers > HEADER_LIMIT:
        raise BadRequest("Invalid HTTP message.", cause={"reason": "too_long", "allowed": _LIMITS})


_LIMITS = f"a request line of {REQUEST_LINE_LIMIT} and headers of {HEADER_LIMIT} bytes"
