"""Cursors beyond the contract: the edge of int32, and what a restart keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.files import execute
from tserve.domain.cursors import LAST_TOKEN, TokensExhausted, token_of
from tserve.errors import InternalServer
from tserve.store.gateway import SqliteStore
from tserve.store.upgrade import open_state


def test_tokens_fill_the_upper_half_of_int32() -> None:
    assert token_of(1) == 2**30 + 1
    assert token_of(2**30 - 1) == LAST_TOKEN == 2**31 - 1
    with pytest.raises(TokensExhausted):
        token_of(2**30)


async def test_past_the_last_token_nothing_is_written(sqlite_store: SqliteStore, database: Path) -> None:
    await sqlite_store.put_cursor("a", now=0.0, expires_at=9.0, most=5)
    execute(database, f"UPDATE sqlite_sequence SET seq = {2**30 - 2} WHERE name = 'cursors'")
    last = await sqlite_store.put_cursor("b", now=0.0, expires_at=9.0, most=5)
    assert last.token == 2**31 - 1
    with pytest.raises(InternalServer) as raised:
        await sqlite_store.put_cursor("c", now=0.0, expires_at=9.0, most=5)
    assert raised.value.cause == {"reason": "tokens_exhausted"}
    assert [cursor.after_name for cursor in await sqlite_store.load_cursors(now=0.0)] == ["a", "b"]
    assert (await sqlite_store.put_cursor("a", now=0.0, expires_at=19.0, most=5)).expires_at == 19.0


async def test_a_restart_keeps_cursors_and_forgets_no_token(state_dir: Path) -> None:
    """The newest row is dropped before the restart: its token must not be given out again after it."""
    with open_state(state_dir) as database:
        store = SqliteStore(database)
        kept = await store.put_cursor("a", now=0.0, expires_at=100.0, most=5)
        dropped = await store.put_cursor("b", now=0.0, expires_at=10.0, most=5)
        await store.put_cursor("a", now=20.0, expires_at=100.0, most=5)
        await store.close()
    with open_state(state_dir) as database:
        store = SqliteStore(database)
        assert await store.load_cursors(now=20.0) == [kept]
        assert (await store.put_cursor("c", now=20.0, expires_at=50.0, most=5)).token > dropped.token
        await store.close()
