"""Who signed an archive."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"


def upgrade() -> None:
    op.add_column("archives", sa.Column("signature", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("archives", "signature")
