"""A listener's description of itself as routes: the recorded document, the true one, and the page for people.

Each is made when it is first asked for, and kept as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Final

from tserve.http.guard import Guard
from tserve.http.openapi import PATH, document
from tserve.http.openapi_recorded import listener_document
from tserve.http.openapi_shapes import DOCUMENT
from tserve.http.operations import STRING, Answer, Operation
from tserve.http.render import JSON_TYPE, to_json
from tserve.http.routes import ANY, Call, Reply, Route, Table

if TYPE_CHECKING:
    from tserve.http.docs import Page

PAGE_PATH: Final = "/tserve/docs"
_TAG: Final = "description"
_READ: Final = frozenset({"GET", "HEAD"})
_RECORDED: Final = {200: Answer("An OpenAPI document, of TorchServe's making: it is not all true.", DOCUMENT)}

API: Final = Operation(
    id="apiDescription", tag=_TAG, summary="The recorded description of this listener", answers=_RECORDED
)
OLD_API: Final = Operation(
    id="oldApiDescription",
    tag=_TAG,
    summary="The recorded description of this listener, by its old path",
    answers=_RECORDED,
    shown=("GET",),
    deprecated=True,
)
TRUE_API: Final = Operation(
    id="openapi",
    tag=_TAG,
    summary="What this listener serves, as an OpenAPI document",
    answers={200: Answer("This document.", DOCUMENT)},
)
PAGE: Final = Operation(
    id="docs",
    tag=_TAG,
    summary="What this listener serves, as a page for people",
    answers={200: Answer("An HTML page.", STRING, "text/html; charset=utf-8")},
)


def with_descriptions(roles: Sequence[str], tables: Sequence[Table], guard: Guard) -> list[Route]:
    """The routes of a listener with these roles, and those that describe all of them, which come first."""
    described: list[Route] = []
    api = _Descriptions(tuple(roles), described, guard)
    described += [
        Route(frozenset({"OPTIONS"}), "/", api.recorded, API),
        Route(ANY, "/api-description", api.recorded, OLD_API),
        Route(_READ, PATH, api.true, TRUE_API),
        Route(_READ, PAGE_PATH, api.page, PAGE),
        *chain.from_iterable(tables),
    ]
    return described


class _Descriptions:
    def __init__(self, roles: tuple[str, ...], routes: Sequence[Route], guard: Guard) -> None:
        self._roles = roles
        self._routes = routes
        self._guard = guard

    async def recorded(self, call: Call) -> Reply:
        return Reply(200, listener_document(self._roles), (JSON_TYPE,))

    async def true(self, call: Call) -> Reply:
        return Reply(200, self._true, (JSON_TYPE,))

    async def page(self, call: Call) -> Reply:
        return Reply(200, self._page.at(call.header("host")), self._page.headers)

    @cached_property
    def _true(self) -> bytes:
        return to_json(document(self._routes, self._guard.needed_scopes))

    @cached_property
    def _page(self) -> Page:
        from tserve.http.docs import page_of  # not at start

        return page_of(document(self._routes, self._guard.needed_scopes), self._roles)
