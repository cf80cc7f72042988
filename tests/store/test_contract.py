"""The contract against the real store and against the fake that service tests trust."""

from __future__ import annotations

import pytest

from tests.fakes import MemoryStore
from tests.store.contract import StoreContract, version
from tserve.domain.actor import Actor
from tserve.domain.versions import Archive, Key
from tserve.errors import InternalServer
from tserve.services.ports import Store
from tserve.store.gateway import SqliteStore


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def store(self, sqlite_store: SqliteStore) -> Store:
        return sqlite_store


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def store(self) -> Store:
        return MemoryStore()


async def test_the_fake_can_fail() -> None:
    fake = MemoryStore()
    fake.fails_with = InternalServer("no")
    with pytest.raises(InternalServer):
        await fake.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
    fake.fails_with = None
    await fake.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
    assert fake.changes == [("add_version", Key("m", "1.0"), "a")]
