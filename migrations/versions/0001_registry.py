"""Models, versions, archives, cursors and the numbered record of changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None


def upgrade() -> None:
    create_archives()
    create_models()
    create_versions()
    create_cursors()
    create_changes()


def create_archives() -> None:
    op.create_table(
        "archives",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=True),
        sa.Column("kept_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_archives"),
    )


def create_models() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("default_version", sa.Text(), nullable=False),
        sa.Column("registered", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_models"),
        # A model and its first version refer to each other: checked at commit.
        sa.ForeignKeyConstraint(
            ["name", "default_version"],
            ["versions.name", "versions.version"],
            name="fk_models_name_default_version",
            deferrable=True,
            initially="DEFERRED",
        ),
        sa.UniqueConstraint("registered", name="uq_models_registered"),
    )


def create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("handler", sa.Text(), nullable=False),
        sa.Column("runtime", sa.Text(), nullable=False),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("max_batch_delay", sa.Integer(), nullable=False),
        sa.Column("response_timeout", sa.Integer(), nullable=False),
        sa.Column("startup_timeout", sa.Integer(), nullable=False),
        sa.Column("min_workers", sa.Integer(), nullable=False),
        sa.Column("max_workers", sa.Integer(), nullable=False),
        sa.Column("registered", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_versions"),
        sa.ForeignKeyConstraint(["name"], ["models.name"], name="fk_versions_name"),
        sa.ForeignKeyConstraint(["digest"], ["archives.digest"], name="fk_versions_digest"),
        sa.UniqueConstraint("registered", name="uq_versions_registered"),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])


def create_cursors() -> None:
    op.create_table(
        "cursors",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("after_name", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cursors"),
        sa.UniqueConstraint("after_name", name="uq_cursors_after_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_cursors_expires_at", "cursors", ["expires_at"])


def create_changes() -> None:
    op.create_table(
        "changes",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_changes"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    for table in ("changes", "cursors", "versions", "models", "archives"):
        op.drop_table(table)
