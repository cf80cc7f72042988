"""The one way to open the database: pragmas, and transactions that SQLAlchemy begins, not the driver."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

READ_ONLY = "tserve_read_only"
"""Execution option of a connection whose transactions need no write lock."""


def open_engine(database: Path, *, foreign_keys: bool = True, busy_timeout_s: float = 5.0) -> Engine:
    """An engine with one connection, which may be used by any thread, though by one at a time."""
    engine = create_engine(URL.create("sqlite", database=str(database)), pool_size=1, max_overflow=0)
    pragmas = (
        f"busy_timeout={round(busy_timeout_s * 1000)}",
        "journal_mode=WAL",
        "synchronous=FULL",
        f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
        # The driver's own transaction control begins late and leaves DDL out; none of it is wanted.
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # The write lock is taken at once: a transaction that reads first could not be given it later.
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
