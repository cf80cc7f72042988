"""Tables and migrations agree, and Alembic's command line reaches a state."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from tests.store.files import schema
from tserve.errors import StateLocked
from tserve.store.engine import open_engine
from tserve.store.tables import Base
from tserve.store.upgrade import DATABASE, HEAD, find_migrations, open_state, read_revision


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
    migrated = without_space(schema(database))
    del migrated["alembic_version"]
    assert migrated == without_space(schema(tmp_path / "declared.db"))


def without_space(statements: dict[str, str]) -> dict[str, str]:
    """SQLite writes an added column behind the last line break, SQLAlchemy before it."""
    return {name: "".join(statement.split()) for name, statement in statements.items()}


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
