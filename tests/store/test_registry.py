"""What the registry writes beyond the contract: the record of changes, and JSON that outlives a release."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.store.contract import FULL_ARCHIVE, FULL_VERSION, version
from tests.store.files import rows
from tserve.domain.actor import Actor
from tserve.domain.model_config import ModelConfig
from tserve.domain.versions import Archive, Key, Manifest
from tserve.errors import Conflict, InternalServer
from tserve.store.documents import read_config, read_manifest, write_config, write_manifest
from tserve.store.gateway import SqliteStore


async def test_each_change_is_recorded_before_and_after(sqlite_store: SqliteStore, database: Path) -> None:
    first, second = version("m", "1"), version("m", "2", min_workers=1)
    await sqlite_store.add_version(first, Archive("d1", 1), actor=Actor("start"))
    await sqlite_store.add_version(second, Archive("d1", 1), actor=Actor("127.0.0.1"))
    await sqlite_store.replace_version(replace(second, min_workers=4, max_workers=6), actor=Actor("me"))
    await sqlite_store.set_default(second.key, actor=Actor("me"))
    await sqlite_store.remove_version(first.key, actor=Actor("me"))
    recorded = rows(database, "SELECT number, actor, kind, model, version, before, after FROM changes ORDER BY number")
    assert [row[:5] for row in recorded] == [
        (1, "start", "add_version", "m", "1"),
        (2, "127.0.0.1", "add_version", "m", "2"),
        (3, "me", "replace_version", "m", "2"),
        (4, "me", "set_default", "m", "2"),
        (5, "me", "remove_version", "m", "1"),
    ]
    before, after = zip(
        *([None if text is None else json.loads(text) for text in row[5:]] for row in recorded), strict=True
    )
    assert before[0] is None
    assert after[0]["url"] == "m.mar"
    assert before[2] == {"min_workers": 1, "max_workers": 0}
    assert after[2] == {"min_workers": 4, "max_workers": 6}
    assert (before[3], after[3]) == ({"default_version": "1"}, {"default_version": "2"})
    assert (before[4], after[4]) == (after[0], None)


async def test_a_change_carries_the_time_in_utc(sqlite_store: SqliteStore, database: Path) -> None:
    await sqlite_store.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
    ((change_at, kept_at),) = rows(database, "SELECT at, kept_at FROM changes, archives")
    for text in (change_at, kept_at):
        at = datetime.fromisoformat(text)
        assert at.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)


async def test_a_refused_change_leaves_no_trace(sqlite_store: SqliteStore, database: Path) -> None:
    await sqlite_store.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
    with pytest.raises(Conflict):
        await sqlite_store.add_version(version("m", digest="d2"), Archive("d2", 1), actor=Actor("a"))
    assert rows(database, "SELECT (SELECT count(*) FROM changes), (SELECT count(*) FROM archives)") == [(1, 1)]
    assert await sqlite_store.add_version(version("n"), Archive("d1", 1), actor=Actor("a")) == 2, (
        "numbers have no holes"
    )


async def test_a_version_on_an_unknown_archive_is_not_a_conflict(sqlite_store: SqliteStore) -> None:
    with pytest.raises(InternalServer) as raised:
        await sqlite_store.add_version(version("m", digest="missing"), Archive("d1", 1), actor=Actor("a"))
    assert "FOREIGN KEY" in str(raised.value.cause["detail"])
    assert (await sqlite_store.load()).archives == ()


async def test_the_record_outlives_its_model(sqlite_store: SqliteStore, database: Path) -> None:
    await sqlite_store.add_version(FULL_VERSION, FULL_ARCHIVE, actor=Actor("a"))
    await sqlite_store.remove_version(FULL_VERSION.key, actor=Actor("a"))
    assert rows(database, "SELECT kind FROM changes ORDER BY number") == [("add_version",), ("remove_version",)]
    await sqlite_store.add_version(version("full", "3"), Archive("d1", 1), actor=Actor("a"))
    assert (await sqlite_store.load()).defaults == (Key("full", "3"),)


@pytest.mark.parametrize("config", [ModelConfig(), FULL_ARCHIVE.config])
def test_config_comes_back(config: ModelConfig) -> None:
    assert read_config(write_config(config)) == config


def test_json_of_other_releases_can_be_read() -> None:
    later = json.loads(write_manifest(Manifest("m"))) | {"signature": "later"}
    assert read_manifest(json.dumps(later)) == Manifest("m")
    assert read_manifest("{}") == Manifest()
    assert read_config('{"later": [1], "batch_size": 4}') == ModelConfig(batch_size=4)
