"""The one check of tokens, for every port and protocol: what is asked for, and the token that came with it.

Two kinds of tokens count: the three keys of the key file, as upstream has them, and named tokens.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from tserve.domain.access import METRICS, TOKEN, Rule, Scope
from tserve.domain.tokens import NamedToken, digest_of, present
from tserve.errors import InternalServer, InvalidKey, TooManyWrongTokens

_BEARER: Final = re.compile(r"Bearer[ \t]+(\S+)")
WRONG_TOKENS: Final = 10  # a minute from one address, before they are answered 429
PERIOD_S: Final = 60.0
MOST_PEERS: Final = 10_000
_log = logging.getLogger("tserve.tokens")


@dataclass(frozen=True, slots=True)
class Key:
    """One of the key file: `expires_at` in epoch seconds, None for never."""

    text: str = field(repr=False)
    expires_at: float | None = None

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


Keys = Mapping[Scope, Key]


@dataclass(frozen=True, slots=True)
class _Known:
    """A token that is one of ours: what it is good for, and whether it still is."""

    scopes: frozenset[Scope]
    expired: bool


class Authorization:
    """`keys` and `named` are replaced as a whole when they change; `keys` None is no check at all.

    Everything is decided from memory, at once.
    """

    def __init__(
        self,
        keys: Keys | None,
        *,
        metrics_need_token: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keys = keys
        self.named: Mapping[str, NamedToken] = MappingProxyType({})
        self._metrics_need_token = metrics_need_token
        self._clock = clock
        self._wrong = WrongTokens()

    @property
    def is_on(self) -> bool:
        return self.keys is not None

    def needs_token(self, rule: Rule) -> bool:
        return self.is_on and not rule.anyone and (self._metrics_need_token or rule != METRICS)

    def check(self, rule: Rule | None, headers: Sequence[str], peer: str, *, bare: bool = False) -> None:
        """`headers` are the values of all `Authorization` headers, `bare` says that there is no query string.

        Raises InvalidKey, TooManyWrongTokens, and InternalServer for what has no rule: nothing is open by oversight.
        """
        if rule is None:
            raise InternalServer("Nobody may ask for this.", cause={"reason": "no_rule"})
        if not self.needs_token(rule) or (bare and rule.anyone_bare):
            return
        reason = self._why_not(rule, headers)
        if reason is None:
            return
        if reason == "wrong_token" and (retry_s := self._wrong.count(peer)):
            raise TooManyWrongTokens(retry_s)
        needed = sorted(rule.scopes)
        raise InvalidKey(renewing=rule == TOKEN, cause={"reason": reason, "needed": needed})

    def _why_not(self, rule: Rule, headers: Sequence[str]) -> str | None:
        if not headers:
            return "no_token"
        match = _BEARER.fullmatch(headers[0].strip(" \t"))
        if match is None or len(headers) > 1:  # of two, who knows which one a proxy has looked at
            return "malformed"
        known = self._known(match[1])
        if known is None:
            return "wrong_token"
        if known.expired:
            return "expired"
        return None if known.scopes & rule.scopes else "wrong_scope"

    def _known(self, text: str) -> _Known | None:
        now = self._clock()
        presented = present(text)
        if presented is not None:
            token = self.named.get(presented.id)
            matches = presented.is_of(token)
            return _Known(token.scopes, token.is_expired(now)) if token is not None and matches else None
        digest, found = digest_of(text), None
        for scope, key in (self.keys or {}).items():  # all of them, always
            if hmac.compare_digest(digest, digest_of(key.text)):
                found = _Known(frozenset([scope]), key.is_expired(now))
        return found


class WrongTokens:
    """Counts them by address; a right token is none of its business, so that nobody can be locked out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[str, tuple[float, int]] = {}

    def count(self, peer: str) -> int:
        """One more from this address: 0, or the seconds to wait when there were too many."""
        now, address = self._clock(), network_of(peer)
        begun, count = self._counts.pop(address, (now, 0))
        if now >= begun + PERIOD_S:
            begun, count = now, 0
        self._counts[address] = begun, count + 1
        if count == WRONG_TOKENS:
            _log.warning("more than %d wrong tokens within a minute from %s", WRONG_TOKENS, peer)
        if len(self._counts) > MOST_PEERS:  # the one that was heard of longest ago
            del self._counts[next(iter(self._counts))]
        return 0 if count < WRONG_TOKENS else max(1, round(begun + PERIOD_S - now))


def network_of(peer: str) -> str:
    """Who has one IPv6 address has 2^64 of them."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))
