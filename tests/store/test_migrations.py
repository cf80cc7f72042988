"""Opening a state folder: fresh, old, too new, foreign, damaged, in use; and that tables and migrations agree."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from tests.store.contract import FULL_ARCHIVE, FULL_VERSION
from tserve.errors import SchemaTooNew, StateLocked, StateUnusable
from tserve.store.engine import open_engine
from tserve.store.gateway import SqliteStore
from tserve.store.tables import Base
from tserve.store.upgrade import DATABASE, HEAD, find_migrations, open_state, read_revision, upgrade_schema


def schema(database: Path) -> dict[str, str]:
    with closing(sqlite3.connect(database)) as connection:
        return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


def execute(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_an_empty_folder_becomes_a_state(state_dir: Path) -> None:
    with open_state(state_dir / "deep") as database:
        assert database == state_dir / "deep" / DATABASE
        assert read_revision(database) == HEAD
        assert {"models", "versions", "archives", "cursors", "changes"} <= schema(database).keys()
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (database.parent, database, database.parent / "lock")]
    assert modes == [0o700, 0o600, 0o600]


def test_a_state_opens_again_without_alembic(state_dir: Path) -> None:
    """Alembic is slow to import; a start that has nothing to upgrade does without."""
    program = (
        "import sys; from pathlib import Path; from tserve.store.upgrade import open_state\n"
        "with open_state(Path(sys.argv[1])): print([m for m in sys.modules if m in ('alembic', 'sqlalchemy')])"
    )
    loaded = [
        subprocess.run([sys.executable, "-c", program, state_dir], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert "alembic" in loaded[0]
    assert loaded[1] == "[]\n"


def test_head_is_the_newest_migration() -> None:
    scripts = ScriptDirectory(str(find_migrations()))
    assert scripts.get_heads() == [HEAD]
    assert all(len(script.revision) == 4 and script.revision.isdigit() for script in scripts.walk_revisions())


def test_tables_and_migrations_agree(database: Path, tmp_path: Path) -> None:
    """By Alembic's comparison and, since that one does not look at every clause, by the statements themselves."""
    engine = open_engine(database)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": Base.metadata}
        )
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()
    declared = open_engine(tmp_path / "declared.db")
    Base.metadata.create_all(declared)
    declared.dispose()
    migrated = schema(database)
    del migrated["alembic_version"]
    assert migrated == schema(tmp_path / "declared.db")


def test_the_migrations_can_be_undone(database: Path, tmp_path: Path) -> None:
    config = command_line(f"database={database}")
    command.downgrade(config, "base")
    assert schema(database).keys() <= {"alembic_version", "sqlite_sequence"}
    command.upgrade(config, "head")
    assert read_revision(database) == HEAD


def command_line(*arguments: str) -> Config:
    config = Config(cmd_opts=argparse.Namespace(x=list(arguments)))
    config.set_main_option("script_location", str(find_migrations()))
    return config


def test_the_command_line_upgrades_a_named_state(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command.upgrade(command_line(f"state={state_dir}"), "head")
    assert read_revision(state_dir / DATABASE) == HEAD
    monkeypatch.setenv("TSERVE_STATE", str(state_dir))
    command.check(command_line())
    with open_state(state_dir), pytest.raises(StateLocked):
        command.upgrade(command_line(), "head")


def test_the_command_line_asks_which_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TSERVE_STATE", raising=False)
    with pytest.raises(CommandError, match="Which state"):
        command.upgrade(command_line(), "head")
    with pytest.raises(CommandError, match="no SQL to print"):
        command.upgrade(command_line(), "head", sql=True)


def test_a_later_schema_is_refused(state_dir: Path) -> None:
    with open_state(state_dir) as database:
        execute(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNew, match=f"schema 9999.* up to {HEAD} only.*later one"), open_state(state_dir):
        pass
    assert read_revision(database) == "9999"


@pytest.mark.parametrize("revision", ["ae1027a6acf", "", "12345", "-001"])
def test_a_revision_that_is_not_ours_is_refused(state_dir: Path, revision: str) -> None:
    with open_state(state_dir) as database:
        execute(database, f"UPDATE alembic_version SET version_num = '{revision}'")
    with pytest.raises(StateUnusable, match="not one of tserve's"), open_state(state_dir):
        pass


def test_another_programs_database_is_refused(state_dir: Path) -> None:
    state_dir.mkdir()
    execute(state_dir / DATABASE, "CREATE TABLE songs (title TEXT)")
    with pytest.raises(StateUnusable, match="not one of tserve's"), open_state(state_dir):
        pass
    assert schema(state_dir / DATABASE).keys() == {"songs"}


def test_a_file_that_is_no_database_is_refused(state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / DATABASE).write_text("models = {}\n" * 200)
    with pytest.raises(StateUnusable, match="file is not a database"), open_state(state_dir):
        pass
    assert (state_dir / DATABASE).read_text() == "models = {}\n" * 200


async def test_a_damaged_page_is_refused(state_dir: Path) -> None:
    """Bytes of a table's page are overwritten, as a bad disk would."""
    with open_state(state_dir) as database:
        store = SqliteStore(database)
        await store.add_version(FULL_VERSION, FULL_ARCHIVE, actor="a")
        await store.close()
        ((page,),) = _query(database, "SELECT rootpage FROM sqlite_master WHERE name = 'versions'")
        ((size,),) = _query(database, "PRAGMA page_size")
    content = bytearray(database.read_bytes())
    content[(page - 1) * size : page * size] = b"\xff" * size
    database.write_bytes(content)
    with pytest.raises(StateUnusable, match="damaged|malformed"), open_state(state_dir):
        pass


def _query(database: Path, query: str) -> list[tuple[int, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnusable, match="cannot be used"), open_state(tmp_path / "file"):
        pass
    (tmp_path / "state" / DATABASE).mkdir(parents=True)
    with pytest.raises(StateUnusable, match="Is a directory"), open_state(tmp_path / "state"):
        pass


def test_a_read_only_folder_is_refused(state_dir: Path) -> None:
    """In a child without root's power to write anywhere, when the tests run as root."""
    with open_state(state_dir):
        pass
    program = (
        "import os, sys; from pathlib import Path; from tserve.store.upgrade import open_state\n"
        "from tserve.errors import StateUnusable\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try:\n"
        "    with open_state(Path(sys.argv[1])): pass\n"
        "except StateUnusable as error: print(error)\n"
    )
    for path in state_dir.parents:
        if path.owner() != "root" or path.stat().st_mode & stat.S_IXOTH == 0:
            path.chmod(path.stat().st_mode | stat.S_IXOTH)
        if path == Path("/"):
            break
    for path in state_dir.iterdir():
        path.chmod(0o444)
    state_dir.chmod(0o555)
    done = subprocess.run([sys.executable, "-c", program, state_dir], capture_output=True, text=True, check=True)
    assert "Permission denied" in done.stdout
