"""Routes as data: what a listener serves, matched on decoded path segments.

One table per API; a listener serves one or more of them.  The order of checks is the contract's: an unknown path
is 404, a known path with another method 405 (spec/management.md section 1.3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tserve.errors import MethodNotAllowed, ResourceNotFound
from tserve.http.operations import Operation
from tserve.http.params import Query
from tserve.services.inference import Stream


class AllBut:
    """All methods but these."""

    def __init__(self, *methods: str) -> None:
        self._methods = frozenset(methods)

    def __contains__(self, method: object) -> bool:
        return method not in self._methods


ANY = AllBut()
ANY_BUT_OPTIONS = AllBut("OPTIONS")


@dataclass(frozen=True, slots=True)
class Call:
    """One request, parsed: `args` are the path's named segments, `rest` what a trailing `...` took.

    `headers` keep the client's spelling and order.  `body()` reads the whole body, once; it raises PayloadTooLarge.
    `actor` is the client's address.  `at_end(f)` has `f()` called when the request is over, whatever becomes of it.
    """

    method: str
    args: dict[str, str]
    rest: tuple[str, ...]
    query: Query
    headers: tuple[tuple[str, str], ...]
    body: Callable[[], Awaitable[bytes]]
    actor: str
    request_id: str
    at_end: Callable[[Callable[[], None]], object]

    def header(self, name: str) -> str:
        """The first header of that lower-case name, empty when there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: `headers` come before the ones that every answer has.

    `rest`, where there is one, is what follows `body`, part by part.
    """

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    rest: Stream | None = None


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """`pattern`: literal segments, `{name}` for any one, a last `...` for the rest.

    `{name}:word` is a segment that contains `:word`; the name is what stands before it.  `operation` is what the
    OpenAPI document says of it.
    """

    methods: frozenset[str] | AllBut
    pattern: str
    handler: Handler
    operation: Operation
    segments: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(s for s in self.pattern.split("/") if s))

    def match(self, path: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]] | None:
        segments, rest = self.segments, ()
        if segments and segments[-1] == "...":
            segments = segments[:-1]
            path, rest = path[: len(segments)], tuple(path[len(segments) :])  # type: ignore[assignment]
        if len(segments) != len(path):
            return None
        args = {}
        for want, have in zip(segments, path, strict=True):
            if want.startswith("{"):
                name, _, mark = want[1:].partition("}")
                if mark not in have:
                    return None
                args[name] = have.rpartition(mark)[0] if mark else have
            elif want != have:
                return None
        return args, rest


Table = Sequence[Route]


class Router:
    """The routes of a listener, in their order; those that a path can match are found by its first segment."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        heads = {self._head(route.segments) for route in routes}
        self._others = self._behind("")
        self._by_head = {head: self._behind(head) for head in heads}

    @staticmethod
    def _head(path: Sequence[str]) -> str:
        return path[0] if path else ""

    def _behind(self, head: str) -> tuple[Route, ...]:
        firsts = ((route, self._head(route.segments)) for route in self._routes)
        return tuple(route for route, first in firsts if first == head or first.startswith("{"))

    def find(self, method: str, path: Sequence[str]) -> tuple[Route, dict[str, str], tuple[str, ...]]:
        """The first route that takes a request, and what its pattern takes from the path.

        Raises ResourceNotFound, MethodNotAllowed.
        """
        known = False
        for route in self._by_head.get(self._head(path), self._others):
            matched = route.match(path)
            if matched is None:
                continue
            if method in route.methods:
                return route, *matched
            known = True
        raise MethodNotAllowed if known else ResourceNotFound
