"""${message}

Runs in one transaction with all other pending migrations, under the lock of the state folder, foreign keys off.
Change a table with `op.batch_alter_table`.  Set HEAD in tserve/store/upgrade.py to this revision, give the
revision the next number of four digits (`alembic revision --rev-id`), and never edit a released migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
