"""What a browser sends without its user's knowledge, told apart from what a client sends (docs/security.md).

A page from anywhere can have a browser send requests to this machine, as a page of another origin, or, with a name
of its own that leads here, as one of the same (DNS rebinding).  Browsers say the first in `Origin` and
`Sec-Fetch-Site`, and the second shows in `Host`; pages can forge none of them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from tserve.errors import Forbidden

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z]+)?\]|[^\[\]:@/\s]+)(?::[0-9]{0,5})?")
_ORIGIN: Final = re.compile(r"https?://(.+)", re.IGNORECASE)
_OWN_SITES: Final = ("same-origin", "none")
_SHOWN: Final = 100  # characters of what a client sent


class Browsers:
    """`hosts` are the names of this server, `.example.org` for all below it, `*` for any.

    Numbers and `localhost` always count: no page can be at those but one of this machine or network.  `origin` is
    that of `cors_allowed_origin`, or empty.
    """

    def __init__(self, hosts: Iterable[str], origin: str = "") -> None:
        names = {name.lower().rstrip(".") for name in hosts}
        self._any = "*" in names
        self._names = {name for name in names if not name.startswith(".")} | {"localhost"}
        self._domains = (*(name for name in names if name.startswith(".")), ".localhost")
        self._origin = origin or None
        self._is_ours = lru_cache(maxsize=256)(self._is_our_host)

    def check(self, hosts: Sequence[str], origins: Sequence[str], sites: Sequence[str]) -> None:
        """The values of all `Host`, `Origin` and `Sec-Fetch-Site` headers.  Raises Forbidden."""
        for host in hosts:
            if not self._is_ours(host):
                raise Forbidden(
                    f"This server does not go by the name in Host: {host[:_SHOWN]}. If it shall, add the name to "
                    "allowed_hosts.",
                    cause={"reason": "foreign_host", "value": host[:_SHOWN], "setting": "allowed_hosts"},
                )
        if self._origin == "*" or not (origins or sites):
            return
        for origin in origins:
            if origin != self._origin and not _is_same_origin(origin, hosts):
                raise _cross_site("Origin", origin)
        if not (origins and all(origin == self._origin for origin in origins)):
            for site in sites:
                if site not in _OWN_SITES:
                    raise _cross_site("Sec-Fetch-Site", site)

    def _is_our_host(self, host: str) -> bool:
        """An empty one is none at all: browsers always have one."""
        match = _AUTHORITY.fullmatch(host)
        if match is None:
            return host == ""
        name = match[1].lower().rstrip(".")
        return self._any or _is_number(name) or name in self._names or name.endswith(self._domains)


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_same_origin(origin: str, hosts: Sequence[str]) -> bool:
    """Browsers write both the same way, without the port that goes without saying."""
    match = _ORIGIN.fullmatch(origin)
    return match is not None and bool(hosts) and all(match[1].lower() == host.lower() for host in hosts)


def _cross_site(name: str, value: str) -> Forbidden:
    return Forbidden(
        f"A web page from elsewhere may not ask this server, says {name}: {value[:_SHOWN]}. If it shall, "
        "cors_allowed_origin must be its origin.",
        cause={"reason": "cross_site", "value": value[:_SHOWN], "setting": "cors_allowed_origin"},
    )
