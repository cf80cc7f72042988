"""Named tokens: how they look, what is kept of them, and when one stands for somebody (docs/security.md)."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

from tserve.domain.access import Scope

SECRET_BYTES: Final = 32
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TEXT: Final = re.compile(r"tserve_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NOBODY: Final = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class NamedToken:
    """What is kept: `digest` is the SHA-256 of the secret, which nobody but its holder has.  Times are epoch seconds.

    A plain hash will do: what it hides is 256 random bits, and nobody can try those out.
    """

    id: str
    name: str
    scopes: frozenset[Scope]
    digest: bytes
    created_at: float
    expires_at: float | None = None

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Presented:
    """A text in the form of a named token, taken apart."""

    id: str
    secret: str

    def is_of(self, token: NamedToken | None) -> bool:
        """In the same time whether there is such a token or not, and wherever the first difference is."""
        kept = _NOBODY if token is None else token.digest
        return hmac.compare_digest(digest_of(self.secret), kept) and token is not None


def new_token(
    name: str, scopes: frozenset[Scope], *, now: float, expires_at: float | None = None
) -> tuple[str, NamedToken]:
    """The text to hand out, once, and what to keep."""
    number, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
    return f"tserve_{number}_{secret}", NamedToken(number, name, scopes, digest_of(secret), now, expires_at)


def present(text: str) -> Presented | None:
    """None for a text that no named token has."""
    match = _TEXT.fullmatch(text)
    return None if match is None else Presented(match[1], match[2])


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
