"""Making the state folder ready at start: lock, checks, schema upgrade.

The schema's revision is read with plain sqlite3, since Alembic costs a large part of the time a start may take;
it is imported only when there is something to upgrade.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import tserve
from tserve.errors import SchemaTooNew, StateUnusable
from tserve.store.lock import hold_state

DATABASE: Final = "state.db"
HEAD: Final = "0004"
"""The newest revision under migrations/versions; revisions are numbers of four digits."""

CHECKED_BYTES: Final = 32 * 2**20
"""A larger database is not checked page by page at start: the check reads all of it."""


@contextmanager
def open_state(state_dir: Path) -> Iterator[Path]:
    """Hold the state folder until the end of the block; yields the path of the database, its schema up to date.

    Raises StateLocked (another server has the folder), SchemaTooNew (a later release wrote it), StateUnusable.
    """
    with hold_state(state_dir):
        database = state_dir / DATABASE
        _create(database)
        revision = read_revision(database)
        if revision is None or revision < HEAD:
            upgrade_schema(database, find_migrations())
        elif revision > HEAD:
            raise SchemaTooNew(
                f"The state in {state_dir} has schema {revision}, but this release of tserve ({tserve.__version__}) "
                f"knows schemas up to {HEAD} only. Start the release that wrote it or a later one, or use another "
                "state folder."
            )
        yield database


def _create(database: Path) -> None:
    """An empty file that only its owner can read; SQLite gives its side files the same mode.

    Before SQLite opens it, never after: closing any descriptor of a file drops the locks SQLite has on it.
    """
    try:
        os.close(os.open(database, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StateUnusable(f"The state file {database} cannot be opened: {error.strerror}.") from error


def read_revision(database: Path) -> str | None:
    """The schema's revision, None for an empty file.

    Raises StateUnusable when the file is no database, is damaged, cannot be opened or is not tserve's.
    """
    try:
        with closing(sqlite3.connect(database)) as connection:
            _check_pages(connection, database)
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                return None
            rows = connection.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else []
            revisions = [str(revision) for (revision,) in rows]
    except sqlite3.Error as error:
        raise StateUnusable(f"The state file {database} cannot be used: {error}.") from error
    if len(revisions) != 1 or len(revisions[0]) != len(HEAD) or not revisions[0].isdigit():
        raise StateUnusable(f"{database} is a database, but not one of tserve's. Use another state folder.")
    return revisions[0]


def _check_pages(connection: sqlite3.Connection, database: Path) -> None:
    if database.stat().st_size > CHECKED_BYTES:
        return
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise StateUnusable(
            f"The state file {database} is damaged: {finding}. "
            "Restore it from a backup, or move it away to start empty."
        )


def find_migrations() -> Path:
    """The folder of the migrations: packaged in a wheel, beside the package in a checkout.  Raises StateUnusable."""
    package = Path(tserve.__file__).parent
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file() and (folder / "versions").is_dir():
            return folder
    raise StateUnusable(f"The installation in {package} is incomplete: its migrations are missing.")


def upgrade_schema(database: Path, migrations: Path) -> None:
    """Bring the schema to the newest of `migrations` in one transaction: it happens wholly or not at all.

    Foreign keys are off meanwhile, as SQLite's way of altering a table (copy and rename) needs, and checked at
    the end.  Raises StateUnusable.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from tserve.store.engine import open_engine

    engine = open_engine(database, foreign_keys=False)
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()) is not None:
                raise CommandError(f"table {broken[0]} refers to rows that do not exist")
    except (SQLAlchemyError, CommandError) as error:
        raise StateUnusable(f"The schema of {database} could not be upgraded, and is as it was: {error}.") from error
    finally:
        engine.dispose()
