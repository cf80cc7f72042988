"""Positions in the list of models, and the tokens that stand for them on the wire (DESIGN.md section 7).

A token is a decimal int32, the width of the gRPC field.  Tokens below `FIRST_TOKEN` are offsets, as the recorded
server's are (spec/management.md section 1.8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tserve.errors import InternalServer

FIRST_TOKEN: Final = 2**30
LAST_TOKEN: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Cursor:
    """A page position: `token` (int32, at or above 2**30) stands behind `after_name` until `expires_at` (epoch s)."""

    token: int
    after_name: str
    expires_at: float


class TokensExhausted(InternalServer):
    """Every token has been given out once; the caller answers an offset instead."""

    def __init__(self) -> None:
        super().__init__("No page token is left.", cause={"reason": "tokens_exhausted"})


def token_of(number: int) -> int:
    """The token of the `number`-th cursor ever made, counted from 1.  Raises TokensExhausted past int32."""
    token = FIRST_TOKEN + number
    if token > LAST_TOKEN:
        raise TokensExhausted
    return token
