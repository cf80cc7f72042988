"""The list of models in pages, with cursors that survive changes and restarts (DESIGN.md section 7).

Tokens at or above 2**30 are cursors; smaller ones are offsets, as the recorded server's, and are answered with
offsets.  `list_page_tokens=offset` gives offsets only.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from tserve.domain.cursors import FIRST_TOKEN, Cursor
from tserve.domain.registry import Registry
from tserve.errors import BadRequest, InternalServer
from tserve.services.ports import Store

MOST_CURSORS = 10_000
LIFE_S = 24 * 3600.0
PAGE_LIMIT = 100
_LAST_INT32 = 2**31 - 1
_log = logging.getLogger("tserve.services")


@dataclass(frozen=True, slots=True)
class Page:
    """`models`: name and url of each default version.  `next_token`: None on the last page."""

    models: list[tuple[str, str]]
    next_token: int | None

    def shown(self) -> dict[str, object]:
        """As the contract prints it (spec/management.md section 1.8)."""
        token = {} if self.next_token is None else {"nextPageToken": str(self.next_token)}
        return {**token, "models": [{"modelName": name, "modelUrl": url} for name, url in self.models]}


class Pages:
    """`load` must have run before the first `page`."""

    def __init__(self, store: Store, registry: Registry, *, offsets_only: bool) -> None:
        self._store = store
        self._registry = registry
        self._offsets_only = offsets_only
        self._by_token: dict[int, Cursor] = {}
        self._by_name: dict[str, Cursor] = {}

    async def load(self) -> None:
        for cursor in await self._store.load_cursors(now=time.time()):
            self._remember(cursor)

    async def page(self, *, limit: int | None, token: int | None) -> Page:
        """At most `limit` models from where `token` stands.

        A limit outside 0 … 100 is 100 and a negative token 0, as recorded (spec/management.md section 1.8).
        Raises BadRequest for a cursor that is unknown or expired.
        """
        size = limit if limit is not None and 0 <= limit <= PAGE_LIMIT else PAGE_LIMIT
        start = max(0, token or 0)
        if self._offsets_only or 0 < start < FIRST_TOKEN:
            return self._page_at(start, size)
        names = self._behind(start, size + 1)
        if size == 0 or len(names) <= size:
            return self._page(names[:size], None)
        # Read before the write: a model may leave meanwhile.
        page = self._page(names[:size], None)
        return replace(page, next_token=await self._token_behind(names[size - 1]))

    def _behind(self, token: int, count: int) -> list[str]:
        if token == 0:
            return self._registry.names_from(0, count)
        return self._registry.names_after(self._position(token), count)

    def _page_at(self, offset: int, size: int) -> Page:
        """The recorded way, whose token also stands on a page that ends with the last model; but never wraps."""
        following = offset + size
        # A page of none would lead back to itself, which only the recorded way does.
        more = following <= min(len(self._registry), _LAST_INT32) and (size > 0 or self._offsets_only)
        return self._page(self._registry.names_from(offset, size), following if more else None)

    def _page(self, names: list[str], next_token: int | None) -> Page:
        return Page([(name, self._registry.find(name).url) for name in names], next_token)

    def _position(self, token: int) -> str:
        cursor = self._by_token.get(token)
        if cursor is None or cursor.expires_at <= time.time():
            raise BadRequest(
                f"Page token {token} is unknown or has expired. List again without next_page_token.",
                cause={"field": "next_page_token", "value": token, "allowed": "a token of the last 24 hours"},
            )
        return cursor.after_name

    async def _token_behind(self, name: str) -> int:
        """The cursor behind a name: the one that is there, moved on when half its life is over, or a new one."""
        now = time.time()
        known = self._by_name.get(name)
        if known is not None and known.expires_at - now > LIFE_S / 2:
            return known.token
        try:
            cursor = await self._store.put_cursor(name, now=now, expires_at=now + LIFE_S, most=MOST_CURSORS)
        except InternalServer as e:
            # The list itself is in memory and right; an offset leads on from here nearly as well.
            _log.warning("no page cursor could be written: %s", e.message)
            everyone = len(self._registry)
            return everyone - len(self._registry.names_after(name, everyone))
        self._remember(cursor)
        self._forget_surplus()
        return cursor.token

    def _remember(self, cursor: Cursor) -> None:
        expired = self._by_name.get(cursor.after_name)
        if expired is not None:
            del self._by_token[expired.token]
        self._by_token[cursor.token] = self._by_name[cursor.after_name] = cursor

    def _forget_surplus(self) -> None:
        """As the store does: past the limit, those that expire first."""
        surplus = len(self._by_token) - MOST_CURSORS
        if surplus > 0:
            for cursor in sorted(self._by_token.values(), key=lambda c: c.expires_at)[:surplus]:
                del self._by_token[cursor.token], self._by_name[cursor.after_name]
