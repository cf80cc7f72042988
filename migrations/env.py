"""Alembic's entry: runs the migrations on the connection the server passes, or opens one for the command line.

On the command line the state is named by `-x state=FOLDER` or the environment variable TSERVE_STATE (the folder is
locked meanwhile, so a running server is never upgraded under its feet), or a file by `-x database=FILE`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from tserve.store.engine import open_engine
from tserve.store.lock import hold_state
from tserve.store.tables import Base
from tserve.store.upgrade import DATABASE


def run(connection: Connection) -> None:
    """In the transaction of the caller, who commits: Alembic, told of none of its own, leaves it alone."""
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    context.run_migrations()


def run_from_command_line() -> None:
    arguments = context.get_x_argument(as_dictionary=True)
    state = arguments.get("state") or os.environ.get("TSERVE_STATE")
    with ExitStack() as held:
        if "database" in arguments:
            database = Path(arguments["database"])
        elif state:
            held.enter_context(hold_state(Path(state)))
            database = Path(state) / DATABASE
        else:
            raise CommandError("Which state? Say -x state=FOLDER, -x database=FILE, or set TSERVE_STATE.")
        engine = open_engine(database, foreign_keys=False)
        held.callback(engine.dispose)
        run(held.enter_context(engine.begin()))


if context.is_offline_mode():
    raise CommandError("Migrations of SQLite read the schema as they go: there is no SQL to print.")
passed = context.config.attributes.get("connection")
if passed is None:
    run_from_command_line()
else:
    run(passed)
