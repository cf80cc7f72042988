"""The history of models: events, and the request behind each change."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    # Without a copy of the table: it is never pruned and may be large.
    op.add_column("changes", sa.Column("request_id", sa.Text(), nullable=True))
    create_events()


def create_events() -> None:
    op.create_table(
        "events",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("worker", sa.Integer(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("change", sa.Integer(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_events"),
        sa.ForeignKeyConstraint(["change"], ["changes.number"], name="fk_events_change"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_model_number", "events", ["model", "number"])
    op.create_index("ix_events_at", "events", ["at"])
    # Tells the few events that still have a tail from the many that have none.
    op.create_index("ix_events_tails", "events", ["model", "number"], sqlite_where=sa.text("log_tail IS NOT NULL"))


def downgrade() -> None:
    op.drop_table("events")
    with op.batch_alter_table("changes", table_kwargs={"sqlite_autoincrement": True}) as changes:
        changes.drop_column("request_id")
