"""Page positions: one row per last name shown, bounded in number and in age (DESIGN.md section 7).

Functions take a Session whose transaction the caller owns; none commits.
"""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from tserve.domain.cursors import Cursor, token_of
from tserve.store.tables import CursorRow


def load_cursors(session: Session, *, now: float) -> list[Cursor]:
    """The cursors that have not expired, oldest token first; `now` in epoch seconds."""
    rows = session.execute(
        select(CursorRow.id, CursorRow.after_name, CursorRow.expires_at)
        .where(CursorRow.expires_at > now)
        .order_by(CursorRow.id)
    )
    return [Cursor(token_of(number), after_name, expires_at) for number, after_name, expires_at in rows]


def put_cursor(session: Session, after_name: str, *, now: float, expires_at: float, most: int) -> Cursor:
    """The cursor behind a name: a new one, or the living one with its expiry moved on, never back.

    Expired rows are dropped, and past `most` rows those of others that expire first.  Raises TokensExhausted.
    """
    session.execute(delete(CursorRow).where(CursorRow.expires_at <= now))
    row = session.scalar(select(CursorRow).where(CursorRow.after_name == after_name))
    if row is None:
        row = CursorRow(after_name=after_name, expires_at=expires_at)
        session.add(row)
    else:
        row.expires_at = max(row.expires_at, expires_at)
    session.flush()
    cursor = Cursor(token_of(row.id), after_name, row.expires_at)
    _drop_beyond(session, most, keep=row.id)
    return cursor


def _drop_beyond(session: Session, most: int, *, keep: int) -> None:
    surplus = (session.scalar(select(func.count()).select_from(CursorRow)) or 0) - most
    if surplus > 0:
        first = select(CursorRow.id).where(CursorRow.id != keep).order_by(CursorRow.expires_at, CursorRow.id)
        session.execute(delete(CursorRow).where(CursorRow.id.in_(first.limit(surplus))))
