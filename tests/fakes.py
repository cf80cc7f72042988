"""Fakes at the two seams of the server.  A contract test holds each to the real part."""

from __future__ import annotations

from dataclasses import replace

import trio

from tserve.domain.cursors import Cursor, token_of
from tserve.domain.registry import Contents, Registry
from tserve.domain.versions import Archive, Key, Version
from tserve.errors import InternalServer


class MemoryStore:
    """A `Store` that keeps nothing (tests/store/contract.py).

    `fails_with`: raised by each change while it is set.  `changes`: what was acknowledged, as (kind, key, actor).
    """

    def __init__(self) -> None:
        self.fails_with: InternalServer | None = None
        self.changes: list[tuple[str, Key, str]] = []
        self._registry = Registry()
        self._cursors: dict[str, Cursor] = {}
        self._cursors_made = 0

    async def load(self) -> Contents:
        await trio.lowlevel.checkpoint()
        return Contents(
            versions=tuple(self._registry),
            defaults=tuple(version.key for version in self._registry.defaults()),
            archives=tuple(
                self._registry.archive(digest) for digest in sorted({version.digest for version in self._registry})
            ),
        )

    async def add_version(self, version: Version, archive: Archive, *, actor: str) -> int:
        await self._may_change()
        self._registry.check_free(version.key)
        self._registry.add(version, archive)
        return self._record("add_version", version.key, actor)

    async def replace_version(self, version: Version, *, actor: str) -> int:
        await self._may_change()
        held = self._registry.find(version.key.name, version.key.version)
        self._registry.replace(replace(held, min_workers=version.min_workers, max_workers=version.max_workers))
        return self._record("replace_version", version.key, actor)

    async def set_default(self, key: Key, *, actor: str) -> int:
        await self._may_change()
        self._registry.find(key.name, key.version)
        self._registry.set_default(key)
        return self._record("set_default", key, actor)

    async def remove_version(self, key: Key, *, actor: str) -> int:
        await self._may_change()
        self._registry.find(key.name, key.version)
        self._registry.check_removable(key)
        self._registry.remove(key)
        return self._record("remove_version", key, actor)

    async def load_cursors(self, *, now: float) -> list[Cursor]:
        await trio.lowlevel.checkpoint()
        return sorted((c for c in self._cursors.values() if c.expires_at > now), key=lambda c: c.token)

    async def put_cursor(self, after_name: str, *, now: float, expires_at: float, most: int) -> Cursor:
        await self._may_change()
        self._cursors = {name: cursor for name, cursor in self._cursors.items() if cursor.expires_at > now}
        held = self._cursors.get(after_name)
        if held is None:
            self._cursors_made += 1
            cursor = Cursor(token_of(self._cursors_made), after_name, expires_at)
        else:
            cursor = replace(held, expires_at=max(held.expires_at, expires_at))
        self._cursors[after_name] = cursor
        others = sorted((c for c in self._cursors.values() if c != cursor), key=lambda c: (c.expires_at, c.token))
        for dropped in others[: max(0, len(self._cursors) - most)]:
            del self._cursors[dropped.after_name]
        return cursor

    async def _may_change(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails_with is not None:
            raise self.fails_with

    def _record(self, kind: str, key: Key, actor: str) -> int:
        self.changes.append((kind, key, actor))
        return len(self.changes)
