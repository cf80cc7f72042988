"""Which addresses a source may be fetched from: a pure decision about one IP address at a time.

Deny by default (DESIGN.md section 10).  IPv4 is what the IANA registry of special-purpose addresses leaves over; IPv6
is the one block given out for the public internet, less what carries an IPv4 address inside it: a gateway on the way
would deliver that to the address inside.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _table(rows: dict[str, str]) -> tuple[tuple[Network, str], ...]:
    return tuple((ipaddress.ip_network(network), what) for network, what in rows.items())


_FORBIDDEN_V4: Final = _table(
    {
        "0.0.0.0/8": "unspecified",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "private",  # shared with the provider; one provider's metadata service is in it
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "metadata",  # a public number that one provider uses for its host agent
        "169.254.0.0/16": "link-local",  # most providers' metadata services are in it
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "reserved",  # another provider's metadata service is in it
        "192.0.2.0/24": "reserved",
        "192.88.99.0/24": "embedded IPv4",  # relays of 6to4
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "reserved",
        "198.51.100.0/24": "reserved",
        "203.0.113.0/24": "reserved",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
    }
)
_PUBLIC_V6: Final = ipaddress.ip_network("2000::/3")
_FORBIDDEN_V6: Final = _table(
    {
        "::/128": "unspecified",
        "::1/128": "loopback",
        "::/96": "embedded IPv4",
        "::ffff:0:0/96": "embedded IPv4",  # mapped
        "::ffff:0:0:0/96": "embedded IPv4",  # translated
        "64:ff9b::/96": "embedded IPv4",  # NAT64
        "64:ff9b:1::/48": "embedded IPv4",  # NAT64 of a site
        "2001::/32": "embedded IPv4",  # Teredo
        "2001::/23": "reserved",
        "2001:db8::/32": "reserved",
        "2002::/16": "embedded IPv4",  # 6to4
        "3fff::/20": "reserved",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "fec0::/10": "private",
        "ff00::/8": "multicast",
    }
)
_ISATAP: Final = (0x00005EFE, 0x02005EFE)  # bits 64 to 95 of an address with an IPv4 address behind them


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """`networks` are allowed whatever they are; `allow_all` allows every address."""

    networks: Sequence[Network] = ()
    allow_all: bool = False

    def objection(self, address: str) -> str | None:
        """What speaks against a connection to this address, in one or two words; None when nothing does."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if self.allow_all or any(found in network for network in self.networks):
            return None
        if found.version == 4:
            return next((what for network, what in _FORBIDDEN_V4 if found in network), None)
        objection = next((what for network, what in _FORBIDDEN_V6 if found in network), None)
        if objection is None and (int(found) >> 32) & 0xFFFFFFFF in _ISATAP:
            return "embedded IPv4"
        return objection or (None if found in _PUBLIC_V6 else "reserved")
