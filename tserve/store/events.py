"""The history of models: events in order of their numbers, bounded in number and in age (docs/events.md).

Functions take a Session whose transaction the caller owns; none commits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, delete, func, insert, or_, select, true, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from tserve.domain.actor import Actor
from tserve.domain.history import (
    LIFE_S,
    MOST_EVENTS,
    MOST_OF_A_MODEL,
    MOST_TAILS,
    MOST_TAILS_OF_A_MODEL,
    PRUNED_EVERY,
    Event,
    PastEvent,
)
from tserve.domain.times import kept_time
from tserve.domain.versions import Key
from tserve.store.documents import write_document
from tserve.store.tables import ChangeRow, EventRow

_COLUMNS: Final[tuple[InstrumentedAttribute[Any], ...]] = (
    EventRow.number,
    EventRow.at,
    EventRow.kind,
    EventRow.model,
    EventRow.version,
    EventRow.worker,
    EventRow.pid,
    EventRow.actor,
    EventRow.request_id,
    EventRow.detail,
    EventRow.log_tail,
    ChangeRow.before,
    ChangeRow.after,
)


def add(session: Session, events: Sequence[Event], *, change: int | None = None) -> None:
    """Number the events in their order, and prune when it is time; `change` is the number of the change they tell of.

    The newest of them is taken for the present.
    """
    if not events:
        return
    last = session.scalar(select(func.max(EventRow.number))) or 0
    session.execute(insert(EventRow), [_values(event, change) for event in events])
    newest = session.scalar(select(func.max(EventRow.number))) or 0
    if last // PRUNED_EVERY != newest // PRUNED_EVERY:
        prune(session, max(event.at for event in events))


def prune(session: Session, now: float) -> None:
    """Drop the events, and the log tails, beyond what is kept at `now` (epoch s).  Changes stay."""
    execute = session.connection().execute
    execute(delete(EventRow).where(EventRow.at < kept_time(now - LIFE_S)))
    execute(delete(EventRow).where(_beyond(true(), MOST_OF_A_MODEL, MOST_EVENTS)))
    tailed = EventRow.log_tail.is_not(None)
    bare = update(EventRow).where(tailed, _beyond(tailed, MOST_TAILS_OF_A_MODEL, MOST_TAILS))
    execute(bare.values(log_tail=None))


def _beyond(which: ColumnElement[bool], most_of_a_model: int, most: int) -> ColumnElement[bool]:
    """Whether an event is not among the newest `which` of its model, or of all.  Found in indices, in about 1 ms."""
    newest = EventRow.number.desc()
    first_beyond = select(EventRow.number).where(which).order_by(newest).offset(most).limit(1).scalar_subquery()
    # Only the few models that have too many are ranked.
    crowded = select(EventRow.model).where(which).group_by(EventRow.model).having(func.count() > most_of_a_model)
    place = func.row_number().over(partition_by=EventRow.model, order_by=newest).label("place")
    ranked = select(EventRow.number, place).where(which, EventRow.model.in_(crowded)).subquery()
    surplus = select(ranked.c.number).where(ranked.c.place > most_of_a_model)
    return or_(EventRow.number <= first_beyond, EventRow.number.in_(surplus))


def page(session: Session, model: str, version: str | None, *, before: int | None, limit: int) -> list[PastEvent]:
    """At most `limit` events of a model, of one version if it is named, newest first; those older than `before`."""
    chosen = select(*_COLUMNS).outerjoin(ChangeRow, ChangeRow.number == EventRow.change).where(EventRow.model == model)
    if version is not None:
        chosen = chosen.where(EventRow.version == version)
    if before is not None:
        chosen = chosen.where(EventRow.number < before)
    rows = session.connection().execute(chosen.order_by(EventRow.number.desc()).limit(limit))
    return [_past(row) for row in rows]


def _values(event: Event, change: int | None) -> dict[str, object]:
    actor = event.actor
    return {
        "at": kept_time(event.at),
        "kind": event.kind,
        "model": event.key.name,
        "version": event.key.version,
        "worker": event.worker,
        "pid": event.pid,
        "actor": actor.address if actor is not None else None,
        "request_id": (actor.request_id or None) if actor is not None else None,
        "change": change,
        "detail": write_document(event.detail),
        "log_tail": event.log_tail or None,
    }


def _past(row: Row[Any]) -> PastEvent:
    event = Event(
        at=datetime.fromisoformat(row.at).timestamp(),
        kind=row.kind,
        key=Key(row.model, row.version),
        worker=row.worker,
        pid=row.pid,
        actor=None if row.actor is None else Actor(row.actor, row.request_id or ""),
        detail=json.loads(row.detail),
        log_tail=row.log_tail or "",
    )
    return PastEvent(row.number, event, _read(row.before), _read(row.after))


def _read(document: str | None) -> dict[str, object] | None:
    return None if document is None else dict(json.loads(document))
