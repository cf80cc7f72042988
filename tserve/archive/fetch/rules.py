"""What the operator allows and bounds of fetching, and how a transfer that came to nothing is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tserve.archive.fetch.policy import AddressPolicy


@dataclass(frozen=True, slots=True)
class Rules:
    """Seconds and bytes.

    `connect_s` bounds resolving, connecting and each handshake, `idle_s` the time without a byte, `total_s` a whole
    download with all its tries; `retries` is how often in a row one may fail without getting further; `free_bytes`
    stay free on the state folder's disk.
    """

    addresses: AddressPolicy = field(default_factory=AddressPolicy)
    connect_s: float = 10.0
    idle_s: float = 60.0
    total_s: float = 3600.0
    retries: int = 3
    most_bytes: int = 32 << 30
    free_bytes: int = 256 << 20
    s3_endpoint: str | None = None


class TransferFailed(Exception):
    """`reason` is one word for programs, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Passing(TransferFailed):
    """It may go better next time; `wait_s` is how long the other side asked to be left alone."""

    def __init__(self, reason: str, detail: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.wait_s = wait_s


class NotAllowed(TransferFailed):
    """The policy forbids it, here or behind a redirect."""


@dataclass(slots=True)
class Progress:
    """How far a transfer is; `expected` bytes in all, None while nobody said."""

    received: int = 0
    expected: int | None = None
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Validator:
    """What tells one content of a URL from another."""

    etag: str | None = None
    last_modified: str | None = None

    @property
    def condition(self) -> dict[str, str]:
        """Headers that ask for the content unless it is still this one."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in headers.items() if value}

    @property
    def for_range(self) -> str | None:
        """What a continued transfer depends on; a weak tag does not stand for equal bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


def matches(url: str, allowed: Sequence[re.Pattern[str]]) -> bool:
    """Whether a whole URL matches one of the `allowed_urls` expressions (spec/management.md section 3.2)."""
    return any(pattern.fullmatch(url) for pattern in allowed)


def without_query(url: str) -> str:
    """For logs: queries of presigned URLs are credentials, and control characters could pass for lines of the log."""
    path = re.split(r"[?#]", url, maxsplit=1)[0]
    return "".join(character if character.isprintable() else "?" for character in path)
