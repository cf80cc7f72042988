"""Who asked for a change."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Actor:
    """`address` is the client's, or `start` for what the server does by itself; `request_id` the answer's header."""

    address: str
    request_id: str = ""

    def rolling_back(self) -> Actor:
        """The server, as it takes back what this actor's call could not finish."""
        return replace(self, address=f"{self.address} (roll-back)")

    def __str__(self) -> str:
        return self.address


START = Actor("start")
