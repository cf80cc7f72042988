"""The store as the services need it: the seam at which tests put a fake (tests/store/contract.py holds both to it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tserve.domain.actor import Actor
from tserve.domain.cursors import Cursor
from tserve.domain.history import Event, PastEvent
from tserve.domain.registry import Contents
from tserve.domain.tokens import NamedToken
from tserve.domain.versions import Archive, Key, Version


class Store(Protocol):
    """Durable desired state and history.

    Each change is one transaction that also writes its numbered `changes` row and its event.  `actor` says who asked
    (a client address, or `start`, and the request's id); the methods return the change's number once it is
    durable.  Raises tserve.errors.Conflict for a version that exists, ModelVersionNotFound for one that does not.
    """

    async def load(self) -> Contents: ...

    async def add_version(self, version: Version, archive: Archive, *, actor: Actor) -> int:
        """Add a version; the first one of a name becomes its default."""
        ...

    async def replace_version(self, version: Version, *, actor: Actor) -> int:
        """Overwrite the mutable fields of a registered version (worker counts)."""
        ...

    async def set_default(self, key: Key, *, actor: Actor) -> int: ...

    async def remove_version(self, key: Key, *, actor: Actor) -> int:
        """Remove a version, its model when it was the last, and the archive row when no version is left on it."""
        ...

    async def load_cursors(self, *, now: float) -> list[Cursor]:
        """The cursors that have not expired."""
        ...

    async def put_cursor(self, after_name: str, *, now: float, expires_at: float, most: int) -> Cursor:
        """The cursor behind a name: a new one, or the old one with its expiry moved on.

        Expired rows are dropped, and past `most` rows those that expire first.
        """
        ...

    async def add_events(self, new: Sequence[Event]) -> None:
        """Keep events in their order, all or none, within the bounds of tserve.domain.history."""
        ...

    async def prune_events(self, *, now: float) -> None:
        """Drop what is beyond those bounds at `now` (epoch s)."""
        ...

    async def events(self, model: str, version: str | None, *, before: int | None, limit: int) -> list[PastEvent]:
        """At most `limit` events of a model, of one version if it is named, newest first.

        Those with a number below `before` only, when it is given.
        """
        ...


class TokenStore(Protocol):
    """The named tokens, which `tserve token` changes from another process.  Raises tserve.errors.StateUnusable."""

    async def outside_changes(self) -> int:
        """A number that is another one once another process has changed something."""
        ...

    async def tokens(self) -> list[NamedToken]: ...
