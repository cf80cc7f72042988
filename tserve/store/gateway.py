"""The store behind the services' `Store` protocol: one SQLite file, one writer at a time, never on Trio's thread.

A hop is never abandoned: a caller that is cancelled while its transaction runs still gets the result, so that it
can apply in memory what has been committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import trio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tserve.domain.actor import Actor
from tserve.domain.cursors import Cursor
from tserve.domain.history import Event, PastEvent
from tserve.domain.registry import Contents
from tserve.domain.tokens import NamedToken
from tserve.domain.versions import Archive, Key, Version
from tserve.errors import InternalServer, StateUnusable
from tserve.store import cursors, events, registry, tokens
from tserve.store.engine import READ_ONLY, open_engine

T = TypeVar("T")

_REASONS: Final = (  # beginning of SQLite's name for an error -> reason shown, what it means
    ("SQLITE_FULL", "disk_full", "the disk is full"),
    ("SQLITE_IOERR", "io_error", "reading or writing the disk failed"),
    ("SQLITE_BUSY", "database_busy", "another process holds the database"),
    ("SQLITE_READONLY", "read_only", "the database cannot be written to"),
    ("SQLITE_CORRUPT", "corrupt", "the database is damaged"),
    ("", "storage", "the database refused it"),
)


class SqliteStore:
    """Desired state in the file that `open_state` has prepared.

    Changes raise InternalServer, with the reason as cause, when the file cannot be written; nothing of such a
    change is kept.
    """

    def __init__(self, database: Path, *, busy_timeout_s: float = 5.0) -> None:
        self._engine = open_engine(database, busy_timeout_s=busy_timeout_s)
        self._reader = self._engine.execution_options(**{READ_ONLY: True})
        self._turn = trio.CapacityLimiter(1)

    async def close(self) -> None:
        """Close the file; the last one to close it folds the write-ahead log into it."""
        await trio.to_thread.run_sync(self._engine.dispose, limiter=self._turn)

    async def load(self) -> Contents:
        """Everything, for the registry in memory.  Raises StateUnusable."""
        return await self._read(registry.load)

    async def add_version(self, version: Version, archive: Archive, *, actor: Actor) -> int:
        """Raises Conflict when the version exists."""
        return await self._write(lambda session: registry.add_version(session, version, archive, actor=actor))

    async def replace_version(self, version: Version, *, actor: Actor) -> int:
        """Overwrites the worker counts only.  Raises ModelNotFound, ModelVersionNotFound."""
        return await self._write(lambda session: registry.replace_version(session, version, actor=actor))

    async def set_default(self, key: Key, *, actor: Actor) -> int:
        """Raises ModelNotFound, ModelVersionNotFound."""
        return await self._write(lambda session: registry.set_default(session, key, actor=actor))

    async def remove_version(self, key: Key, *, actor: Actor) -> int:
        """Raises ModelNotFound, ModelVersionNotFound, DefaultVersionInUse."""
        return await self._write(lambda session: registry.remove_version(session, key, actor=actor))

    async def load_cursors(self, *, now: float) -> list[Cursor]:
        """The cursors that have not expired at `now` (epoch s).  Raises StateUnusable."""
        return await self._read(lambda session: cursors.load_cursors(session, now=now))

    async def put_cursor(self, after_name: str, *, now: float, expires_at: float, most: int) -> Cursor:
        """Times in epoch seconds.  Raises TokensExhausted, an InternalServer, when int32 has no token left."""
        return await self._write(
            lambda session: cursors.put_cursor(session, after_name, now=now, expires_at=expires_at, most=most)
        )

    async def add_events(self, new: Sequence[Event]) -> None:
        """All or none of them, in their order; what is beyond the bounds goes (docs/events.md)."""
        await self._write(lambda session: events.add(session, new))

    async def prune_events(self, *, now: float) -> None:
        """What is beyond the bounds at `now` (epoch s) goes."""
        await self._write(lambda session: events.prune(session, now))

    async def events(self, model: str, version: str | None, *, before: int | None, limit: int) -> list[PastEvent]:
        """Newest first.  Raises InternalServer when the file cannot be read."""
        try:
            return await self._read(lambda session: events.page(session, model, version, before=before, limit=limit))
        except StateUnusable as error:
            raise InternalServer(str(error), cause={"reason": "storage"}) from error

    async def outside_changes(self) -> int:
        """A number that is another one once another process has changed the file.  Raises StateUnusable."""
        return await self._read(lambda session: int(session.scalar(text("PRAGMA data_version")) or 0))

    async def tokens(self) -> list[NamedToken]:
        """In order of their names.  Raises StateUnusable."""
        return await self._read(tokens.load)

    async def _write(self, change: Callable[[Session], T]) -> T:
        def commit() -> T:
            try:
                with Session(self._engine) as session, session.begin():
                    return change(session)
            except DBAPIError as error:
                reason, meaning = _explain(error)
                cause = {"reason": reason, "detail": str(error.orig)}
                raise InternalServer(f"The change could not be stored: {meaning}.", cause=cause) from error

        return await trio.to_thread.run_sync(commit, limiter=self._turn)

    async def _read(self, query: Callable[[Session], T]) -> T:
        def run() -> T:
            try:
                with Session(self._reader) as session:
                    return query(session)
            except DBAPIError as error:
                _, meaning = _explain(error)
                raise StateUnusable(f"The state could not be read: {meaning} ({error.orig}).") from error

        return await trio.to_thread.run_sync(run, limiter=self._turn)


def _explain(error: DBAPIError) -> tuple[str, str]:
    name = getattr(error.orig, "sqlite_errorname", "")
    return next((reason, meaning) for prefix, reason, meaning in _REASONS if name.startswith(prefix))
