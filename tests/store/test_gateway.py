"""The gateway on a real file: pragmas, one writer, cancellation, failing disks, and death by kill -9."""

from __future__ import annotations

import random
import resource
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.store.contract import FULL_ARCHIVE, version
from tests.store.files import execute, python
from tserve.domain.actor import Actor
from tserve.domain.registry import Contents
from tserve.domain.versions import Archive, Key
from tserve.errors import InternalServer, StateUnusable
from tserve.store.engine import READ_ONLY, open_engine
from tserve.store.gateway import SqliteStore
from tserve.store.upgrade import open_state


def test_every_connection_is_durable_and_checked(database: Path) -> None:
    engine = open_engine(database, busy_timeout_s=1.5)
    for _ in range(2):
        with engine.connect() as connection:
            values = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            ]
        assert values == ["wal", 2, 1, 1500]
        engine.dispose()


def test_a_write_takes_the_lock_at_once_and_a_read_does_not(database: Path) -> None:
    engine = open_engine(database)
    with closing(sqlite3.connect(database, timeout=0)) as other:
        with engine.execution_options(**{READ_ONLY: True}).begin():
            other.execute("BEGIN IMMEDIATE")
            other.rollback()
        with engine.begin(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE models SET default_version = 'gone'",
        "DELETE FROM versions",
        "DELETE FROM archives",
        "UPDATE versions SET name = 'gone'",
    ],
)
async def test_foreign_keys_hold(sqlite_store: SqliteStore, database: Path, statement: str) -> None:
    """A default that names no version, and the like, cannot be committed by any path."""
    await sqlite_store.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("PRAGMA foreign_keys=ON")
        other.execute("BEGIN")
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            other.execute(statement)
            other.execute("COMMIT")
    assert (await sqlite_store.load()).versions == (version("m"),)


async def test_concurrent_callers_each_get_their_own_number(sqlite_store: SqliteStore) -> None:
    numbers: list[int] = []

    async def add(name: str) -> None:
        numbers.append(await sqlite_store.add_version(version(name), Archive("d1", 1), actor=Actor("a")))

    async with trio.open_nursery() as nursery:
        for index in range(20):
            nursery.start_soon(add, f"m{index}")
    assert sorted(numbers) == list(range(1, 21))
    assert len((await sqlite_store.load()).versions) == 20


async def test_cancelling_a_running_write_does_not_part_it_from_its_caller(
    sqlite_store: SqliteStore, database: Path
) -> None:
    """The first caller is cancelled in its hop: it gets its number.  The second still queues: nothing happens."""
    numbers: dict[str, int] = {}

    async def add(name: str) -> None:
        numbers[name] = await sqlite_store.add_version(version(name), Archive("d1", 1), actor=Actor("a"))

    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, "running")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(add, "queued")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            other.execute("ROLLBACK")
    assert numbers == {"running": 1}
    assert [v.key.name for v in (await sqlite_store.load()).versions] == ["running"]


async def test_a_cancelled_caller_that_has_not_begun_writes_nothing(sqlite_store: SqliteStore) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await sqlite_store.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
    assert scope.cancelled_caught
    assert await sqlite_store.load() == Contents()


async def test_a_database_held_by_another_process_is_said(database: Path) -> None:
    store = SqliteStore(database, busy_timeout_s=0.01)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InternalServer, match="another process holds the database") as raised:
            await store.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
        assert await store.load() == Contents(), "reading needs no lock"
        other.execute("ROLLBACK")
    assert raised.value.cause == {"reason": "database_busy", "detail": "database is locked"}
    assert isinstance(raised.value.__cause__, Exception)
    assert await store.add_version(version("m"), Archive("d1", 1), actor=Actor("a")) == 1
    await store.close()


async def test_a_damaged_table_is_said_on_loading(sqlite_store: SqliteStore, database: Path) -> None:
    execute(database, "DROP TABLE cursors")
    with pytest.raises(StateUnusable, match="no such table: cursors"):
        await sqlite_store.load_cursors(now=0.0)


FULL_DISK = """
import resource, trio
from pathlib import Path
from tests.store.contract import FULL_ARCHIVE, version
from tserve.domain.actor import Actor
from tserve.errors import InternalServer
from tserve.store.gateway import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    added = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        while added < 1000:
            await store.add_version(version(f"m{added}", digest="d-full"), FULL_ARCHIVE, actor=Actor("a" * 9000))
            added += 1
    except InternalServer as error:
        print(added, error.cause["reason"], error.message, sep="|")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await store.add_version(version("after", digest="d-full"), FULL_ARCHIVE, actor=Actor("a"))
    print(len((await store.load()).versions))
    await store.close()

trio.run(main)
"""


def test_a_full_disk_refuses_the_change_and_harms_nothing(database: Path) -> None:
    """A file size limit stands in for the disk: writes beyond it fail in the kernel."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(python(FULL_DISK, database), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    refusal, after = done.stdout.splitlines()
    added, reason, message = refusal.split("|")
    assert int(added) > 0
    assert reason in ("disk_full", "io_error")
    assert message.startswith("The change could not be stored: ")
    assert int(after) == int(added) + 1
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*), max(number) FROM changes").fetchone() == (int(after), int(after))


WRITER = """
import itertools, os, trio
from pathlib import Path
from tests.store.contract import FULL_ARCHIVE, version
from tserve.domain.actor import Actor
from tserve.store.gateway import SqliteStore
from tserve.store.upgrade import open_state

async def main():
    with open_state(Path(sys.argv[1])) as database:
        store = SqliteStore(database)
        for index in itertools.count():
            name = f"{sys.argv[2]}-{index}"
            number = await store.add_version(version(name, digest="d-full"), FULL_ARCHIVE, actor=Actor("a"))
            os.write(1, f"{number} {name}\\n".encode())
            if index % 3 == 2:
                number = await store.remove_version(version(f"{sys.argv[2]}-{index - 1}").key, actor=Actor("a"))
                os.write(1, f"{number} -{sys.argv[2]}-{index - 1}\\n".encode())

trio.run(main)
"""


async def test_kill_9_loses_nothing_that_was_acknowledged(state_dir: Path) -> None:
    """Five servers in a row are killed in the middle of writing; the folder opens again each time."""
    acknowledged: dict[int, str] = {}
    for round_ in range(5):
        acknowledged |= _write_until_killed(state_dir, f"round{round_}")
        with open_state(state_dir) as database:
            with closing(sqlite3.connect(database)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
                changes = dict(connection.execute("SELECT number, kind || ' ' || model FROM changes"))
            store = SqliteStore(database)
            names = {v.key.name for v in (await store.load()).versions}
            await store.close()
        expected = {
            number: f"remove_version {line[1:]}" if line.startswith("-") else f"add_version {line}"
            for number, line in acknowledged.items()
        }
        assert expected.items() <= changes.items(), "nothing acknowledged is missing"
        assert len(changes) - len(expected) <= round_ + 1, "at most one commit a round was not yet acknowledged"
        added, removed = (
            {line.split(" ", 1)[1] for line in changes.values() if line.startswith(kind)}
            for kind in ("add_version", "remove_version")
        )
        assert names == added - removed, "the record of changes and the registry tell the same story"
    assert len(acknowledged) > 5


def _write_until_killed(state_dir: Path, prefix: str) -> dict[int, str]:
    with subprocess.Popen(python(WRITER, state_dir, prefix), stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(random.randint(1, 60))]
        writer.kill()
        lines += writer.stdout.readlines()
    # A line that was cut short by the kill was not acknowledged.
    return {int(line.split()[0]): line.split()[1] for line in lines if line.endswith("\n")}


async def test_a_thousand_versions_load_at_once(sqlite_store: SqliteStore, database: Path) -> None:
    """Guards the way of loading, not the machine: rows as objects took ten times as long."""
    with closing(sqlite3.connect(database)) as connection, connection:
        await sqlite_store.add_version(version("m0", digest="d-full"), FULL_ARCHIVE, actor=Actor("a"))
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) "
            "INSERT INTO models SELECT 'm' || i, '1.0', i FROM n"
        )
        columns = "url, handler, runtime, batch_size, max_batch_delay, response_timeout, startup_timeout"
        connection.execute(
            f"INSERT INTO versions (name, version, digest, {columns}, min_workers, max_workers, registered) "
            f"SELECT m.name, '1.0', digest, {columns}, 1, 1, m.registered FROM models m, versions WHERE m.name != 'm0'"
        )
    await sqlite_store.load()
    started = trio.current_time()
    contents = await sqlite_store.load()
    assert trio.current_time() - started < 0.5
    assert len(contents.versions) == len(contents.defaults) == 1000
    assert contents.defaults[-1] == Key("m1000", "1.0")
