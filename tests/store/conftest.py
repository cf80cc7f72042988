"""A state folder under pytest's temporary folder, and a store on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tserve.store.gateway import SqliteStore
from tserve.store.upgrade import open_state

pytest.register_assert_rewrite("tests.store.contract")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def database(state_dir: Path) -> Iterator[Path]:
    """A migrated, empty database in a folder that is held."""
    with open_state(state_dir) as database:
        yield database


@pytest.fixture
async def sqlite_store(database: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(database)
    yield store
    await store.close()
