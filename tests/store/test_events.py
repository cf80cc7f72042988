"""What the history does beyond the contract: old databases, restarts, the disk, and the price of a look."""

from __future__ import annotations

import argparse
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from tests.store.contract import FULL_ARCHIVE, FULL_VERSION, NOW, all_events, died, pour, version
from tests.store.files import execute, rows
from tserve.domain.actor import Actor
from tserve.domain.history import MOST_OF_A_MODEL, PRUNED_EVERY
from tserve.domain.versions import Archive
from tserve.errors import InternalServer
from tserve.store.gateway import SqliteStore
from tserve.store.upgrade import DATABASE, HEAD, find_migrations, open_state, read_revision


def command_line(database: Path) -> Config:
    config = Config(cmd_opts=argparse.Namespace(x=[f"database={database}"]))
    config.set_main_option("script_location", str(find_migrations()))
    return config


@pytest.fixture
def old_database(state_dir: Path) -> Path:
    """A state as the first release left it: a version with its archive, a cursor, and the last two of 42 changes."""
    state_dir.mkdir()
    database = state_dir / DATABASE
    command.upgrade(command_line(database), "0001")
    for statement in (
        "INSERT INTO archives VALUES ('d1', 7, '{}', NULL, '2025-01-01T00:00:00.000+00:00')",
        "INSERT INTO changes VALUES (41, '2025-01-01T00:00:00.000+00:00', '10.0.0.1', 'add_version', 'm', '1.0', "
        'NULL, \'{"url":"m.mar"}\')',
        "INSERT INTO changes VALUES (42, '2025-01-02T00:00:00.000+00:00', 'start', 'remove_version', 'n', '1', "
        '\'{"url":"n.mar"}\', NULL)',
        "INSERT INTO cursors (after_name, expires_at) VALUES ('m', 4e9)",
    ):
        execute(database, statement)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA defer_foreign_keys=ON")
        connection.execute("INSERT INTO models VALUES ('m', '1.0', 41)")
        connection.execute(
            "INSERT INTO versions VALUES "
            "('m', '1.0', 'd1', 'm.mar', 'handler.py', 'python', 1, 100, 120, 120, 0, 0, 41)"
        )
    return database


async def test_the_first_releases_state_is_upgraded_with_its_rows(state_dir: Path, old_database: Path) -> None:
    changes = rows(old_database, "SELECT * FROM changes")
    with open_state(state_dir) as database:
        assert read_revision(database) == HEAD
        assert rows(database, "SELECT * FROM changes") == [(*change, None) for change in changes]
        store = SqliteStore(database)
        assert (await store.load()).versions == (version("m"),)
        assert [cursor.after_name for cursor in await store.load_cursors(now=0.0)] == ["m"]
        assert await all_events(store, "m") == [], "what was changed before stands in changes only"
        assert await store.remove_version(version("m").key, actor=Actor("a", "r")) == 43
        (past,) = await all_events(store, "m")
        assert past.before is not None
        assert (past.event.actor, past.before["url"]) == (Actor("a", "r"), "m.mar")
        await store.close()
    with closing(sqlite3.connect(old_database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_the_first_release_can_be_gone_back_to(state_dir: Path, old_database: Path) -> None:
    before = [rows(old_database, f"SELECT * FROM {table}") for table in ("changes", "versions", "sqlite_sequence")]
    with open_state(state_dir):
        pass
    command.downgrade(command_line(old_database), "0001")
    after = [rows(old_database, f"SELECT * FROM {table}") for table in ("changes", "versions", "sqlite_sequence")]
    assert (after[:2], sorted(after[2])) == (before[:2], sorted(before[2]))
    assert "AUTOINCREMENT" in rows(old_database, "SELECT sql FROM sqlite_master WHERE name = 'changes'")[0][0]


async def test_history_survives_a_restart(state_dir: Path) -> None:
    with open_state(state_dir) as database:
        store = SqliteStore(database)
        await store.add_version(FULL_VERSION, FULL_ARCHIVE, actor=Actor("a", "r"))
        await store.add_events([died("full", "2", log_tail="last words")])
        before = await all_events(store, "full")
        await store.remove_version(FULL_VERSION.key, actor=Actor("b"))
        await store.close()
    with open_state(state_dir) as database:
        store = SqliteStore(database)
        newest, *others = await all_events(store, "full")
        await store.close()
    assert others == before
    assert (newest.event.kind, newest.event.key) == ("unregister", FULL_VERSION.key)


async def test_a_change_and_its_event_are_one(sqlite_store: SqliteStore, database: Path) -> None:
    """The event refers to the change, which holds before and after once; neither is written without the other."""
    await sqlite_store.add_version(version("m"), Archive("d1", 1), actor=Actor("a", "r"))
    columns = "c.number, c.request_id, e.request_id, c.at = e.at, e.detail"
    assert rows(database, f"SELECT {columns} FROM events e JOIN changes c ON change = c.number") == [
        (1, "r", "r", 1, "{}")
    ]
    execute(database, "CREATE TRIGGER no BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(InternalServer):
        await sqlite_store.add_version(version("n"), Archive("d1", 1), actor=Actor("a"))
    assert rows(database, "SELECT count(*) FROM changes") == [(1,)]


async def test_changes_outlive_their_events(sqlite_store: SqliteStore, database: Path) -> None:
    await sqlite_store.add_version(version("m"), Archive("d1", 1), actor=Actor("a", "r"))
    await pour(sqlite_store, [died("m", at=4e9)] * (MOST_OF_A_MODEL + PRUNED_EVERY))
    assert {past.event.kind for past in await all_events(sqlite_store, "m")} == {"worker_died"}
    assert rows(database, "SELECT kind, request_id FROM changes") == [("add_version", "r")]


async def test_events_that_cannot_be_written_are_none(sqlite_store: SqliteStore, database: Path) -> None:
    execute(
        database,
        "CREATE TRIGGER no BEFORE INSERT ON events WHEN new.model = 'n' BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    with pytest.raises(InternalServer, match="could not be stored"):
        await sqlite_store.add_events([died("m"), died("n")])
    assert await all_events(sqlite_store, "m") == []


async def test_a_history_that_cannot_be_read_is_said(sqlite_store: SqliteStore, database: Path) -> None:
    execute(database, "DROP TABLE events")
    with pytest.raises(InternalServer, match="no such table: events") as raised:
        await all_events(sqlite_store, "m")
    assert raised.value.cause == {"reason": "storage"}


def test_a_look_costs_what_it_shows(database: Path) -> None:
    """Listing reads its rows off an index in their order; finding the tails reads only events that have one."""
    page = "SELECT * FROM events WHERE model = 'm' AND version = '1' AND number < 9 ORDER BY number DESC LIMIT 9"
    rank = "row_number() OVER (PARTITION BY model ORDER BY number DESC)"
    tails = f"SELECT number, {rank} FROM events WHERE log_tail IS NOT NULL"
    plans = ["; ".join(step[-1] for step in rows(database, f"EXPLAIN QUERY PLAN {query}")) for query in (page, tails)]
    assert "ix_events_model_number" in plans[0]
    assert "B-TREE" not in plans[0], "no sorting"
    assert "ix_events_tails" in plans[1]


async def test_the_file_stays_small(sqlite_store: SqliteStore, database: Path) -> None:
    """A worker dies all day with 64 KiB of last words: the room of those that went is used again."""
    tail = "x" * 65536
    for _ in range(30):
        await sqlite_store.add_events([died(at=NOW, log_tail=tail)] * PRUNED_EVERY)
    ((size,),) = rows(database, "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    assert size < 4 * PRUNED_EVERY * len(tail)
