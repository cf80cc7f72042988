"""The one place where a request is let in or turned away: before its path means anything, and its body is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tserve.domain.access import RULES, Rule, rule_of_nothing
from tserve.domain.browsers import Browsers
from tserve.http.routes import Route
from tserve.services.authorization import Authorization

Headers = Iterable[tuple[bytes, bytes]]
_AUTHORITY = (b"host", b":authority")


class Guard:
    """Of one listener; `roles` are what it serves."""

    def __init__(self, roles: Sequence[str], browsers: Browsers, authorization: Authorization) -> None:
        self._browsers = browsers
        self._authorization = authorization
        self._elsewhere = rule_of_nothing(roles)

    def check_browser(self, headers: Headers) -> None:
        """Whoever asks, and whatever for.  Raises Forbidden."""
        hosts, origins, sites = [], [], []
        for name, value in headers:
            lowered = name.lower()
            if lowered in _AUTHORITY:
                hosts.append(value.decode("latin-1"))
            elif lowered == b"origin":
                origins.append(value.decode("latin-1"))
            elif lowered == b"sec-fetch-site":
                sites.append(value.decode("latin-1"))
        self._browsers.check(hosts, origins, sites)

    def check_token(self, route: Route | None, headers: Headers, peer: str, *, bare: bool) -> None:
        """`route` None is nowhere.  Raises InvalidKey, TooManyWrongTokens, InternalServer."""
        rule = self._elsewhere if route is None else self.rule_of(route)
        given: list[str] = []
        if self._authorization.is_on:
            given = [value.decode("latin-1") for name, value in headers if name.lower() == b"authorization"]
        self._authorization.check(rule, given, peer, bare=bare)

    def passed_on(self, headers: Headers) -> tuple[tuple[str, str], ...]:
        """What handlers may see: not the token, which is for this server."""
        hides = self._authorization.is_on
        return tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in headers
            if not (hides and name.lower() == b"authorization")
        )

    def needed_scopes(self, route: Route) -> list[str]:
        """Any of these; none where no token is asked for, at least not of everyone."""
        rule = self.rule_of(route)
        if rule is None or rule.anyone_bare or not self._authorization.needs_token(rule):
            return []
        return sorted(rule.scopes)

    @staticmethod
    def rule_of(route: Route) -> Rule | None:
        return RULES.get(route.operation.id)
