"""Looking into a database past the store, and running a second process on it."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def execute(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


def schema(database: Path) -> dict[str, str]:
    """Each table and index with the statement that made it."""
    return dict(rows(database, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


def python(program: str, *arguments: object) -> list[str]:
    """The command that runs `program` with the import path of this process, given as its first argument."""
    # The tests' own folder last, so that an installed tserve is the one that is tested.
    path = os.pathsep.join([*sys.path, str(Path(__file__).resolve().parents[2])])
    setup = "import sys; sys.path[:] = sys.argv.pop(1).split(':')\n"
    return [sys.executable, "-c", setup + program, path, *map(str, arguments)]
