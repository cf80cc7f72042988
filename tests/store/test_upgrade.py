"""Opening a state folder: fresh, old, too new, foreign, damaged; and death in the middle of an upgrade."""

from __future__ import annotations

import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.store.contract import FULL_ARCHIVE, FULL_VERSION
from tests.store.files import execute, python, rows, schema
from tserve.domain.actor import Actor
from tserve.errors import SchemaTooNew, StateUnusable
from tserve.store.gateway import SqliteStore
from tserve.store.upgrade import DATABASE, HEAD, find_migrations, open_state, read_revision, upgrade_schema


def test_an_empty_folder_becomes_a_state(state_dir: Path) -> None:
    with open_state(state_dir / "deep") as database:
        assert database == state_dir / "deep" / DATABASE
        assert read_revision(database) == HEAD
        assert {"models", "versions", "archives", "cursors", "changes", "events"} <= schema(database).keys()
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (database.parent, database, database.parent / "lock")]
    assert modes == [0o700, 0o600, 0o600]


def test_a_state_opens_again_without_alembic(state_dir: Path) -> None:
    """Alembic is slow to import; a start that has nothing to upgrade does without."""
    program = """
from pathlib import Path
from tserve.store.upgrade import open_state
with open_state(Path(sys.argv[1])): print([m for m in sys.modules if m in ("alembic", "sqlalchemy")])
"""
    loaded = [
        subprocess.run(python(program, state_dir), capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert "alembic" in loaded[0]
    assert loaded[1] == "[]\n"


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
        await store.add_version(FULL_VERSION, FULL_ARCHIVE, actor=Actor("a"))
        await store.close()
        ((page,),) = rows(database, "SELECT rootpage FROM sqlite_master WHERE name = 'versions'")
        ((size,),) = rows(database, "PRAGMA page_size")
    content = bytearray(database.read_bytes())
    content[(page - 1) * size : page * size] = b"\xff" * size
    database.write_bytes(content)
    with pytest.raises(StateUnusable, match=r"damaged|malformed"), open_state(state_dir):
        pass


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnusable, match="cannot be used"), open_state(tmp_path / "file"):
        pass
    (tmp_path / "state" / DATABASE).mkdir(parents=True)
    with pytest.raises(StateUnusable, match="Is a directory"), open_state(tmp_path / "state"):
        pass


@pytest.mark.parametrize(
    ("mode", "reason"), [(0o444, "cannot be used: Permission denied"), (0o666, "unable to open database file")]
)
def test_a_read_only_folder_is_refused(state_dir: Path, mode: int, reason: str) -> None:
    """In a child, which gives up root's power to write anywhere; `.` spares it the way there."""
    with open_state(state_dir):
        pass
    program = """
import os
from pathlib import Path
from tserve.errors import StateUnusable
from tserve.store.upgrade import open_state
if os.geteuid() == 0: os.seteuid(65534)
try:
    with open_state(Path(".")): pass
except StateUnusable as error: print(error)
"""
    for file in state_dir.iterdir():
        file.chmod(mode)
    state_dir.chmod(0o555)
    done = subprocess.run(python(program), cwd=state_dir, capture_output=True, text=True, check=True)
    assert re.search(reason, done.stdout), done.stdout


NEXT_MIGRATION = """
import os, signal
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{head}"

def upgrade():
    op.create_table("extra", sa.Column("id", sa.Integer(), primary_key=True))
    with op.batch_alter_table("models", recreate="always") as batch:
        batch.add_column(sa.Column("note", sa.Text(), nullable=True))
    {last}
"""
NEXT = f"{int(HEAD) + 1:04}"


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A copy of the migrations, to add one to."""
    return Path(shutil.copytree(find_migrations(), tmp_path / "migrations"))


def add_migration(migrations: Path, last: str) -> None:
    (migrations / "versions" / f"{NEXT}_next.py").write_text(NEXT_MIGRATION.format(revision=NEXT, head=HEAD, last=last))


async def test_an_older_schema_is_upgraded_with_its_rows(
    sqlite_store: SqliteStore, database: Path, migrations: Path
) -> None:
    await sqlite_store.add_version(FULL_VERSION, FULL_ARCHIVE, actor=Actor("a"))
    await sqlite_store.close()
    add_migration(migrations, "pass")
    upgrade_schema(database, migrations)
    assert read_revision(database) == NEXT
    assert rows(database, "SELECT name, note FROM models") == [("full", None)]
    assert (await sqlite_store.load()).versions == (FULL_VERSION,)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("op.execute('INSERT INTO nowhere VALUES (1)')", "no such table: nowhere"),
        ('op.execute("DELETE FROM versions")', "table models refers to rows that do not exist"),
    ],
)
async def test_a_failing_upgrade_changes_nothing(
    sqlite_store: SqliteStore, database: Path, migrations: Path, last: str, reason: str
) -> None:
    await sqlite_store.add_version(FULL_VERSION, FULL_ARCHIVE, actor=Actor("a"))
    before = schema(database)
    add_migration(migrations, last)
    with pytest.raises(StateUnusable, match=f"as it was: .*{reason}"):
        upgrade_schema(database, migrations)
    assert (schema(database), read_revision(database)) == (before, HEAD)
    assert (await sqlite_store.load()).versions == (FULL_VERSION,)


@pytest.mark.parametrize("fresh", [True, False])
def test_kill_9_in_the_middle_of_an_upgrade_leaves_the_old_schema(
    tmp_path: Path, migrations: Path, fresh: bool
) -> None:
    database = tmp_path / DATABASE
    if not fresh:
        upgrade_schema(database, migrations)
    before = schema(database)
    add_migration(migrations, "os.kill(os.getpid(), signal.SIGKILL)")
    program = """
import sys
from pathlib import Path
from tserve.store.upgrade import upgrade_schema
upgrade_schema(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    done = subprocess.run(python(program, database, migrations), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert schema(database) == before
    assert read_revision(database) == (None if fresh else HEAD)
    add_migration(migrations, "pass")
    upgrade_schema(database, migrations)
    assert read_revision(database) == NEXT


def test_an_installation_without_migrations_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has them inside the package, a checkout beside it."""
    package = tmp_path / "site" / "tserve"
    package.mkdir(parents=True)
    monkeypatch.setattr("tserve.__file__", str(package / "__init__.py"))
    with pytest.raises(StateUnusable, match="migrations are missing"):
        find_migrations()
    for place in (package.parent / "migrations", package / "_migrations"):
        (place / "versions").mkdir(parents=True)
        (place / "env.py").write_text("")
        assert find_migrations() == place
