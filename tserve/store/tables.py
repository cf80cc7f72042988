"""The tables, as typed mappings.  The migrations build them; a test holds the two to each other.

Rows never leave the store: registry.py, cursors.py and events.py turn them into the domain's types.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import Double, ForeignKey, ForeignKeyConstraint, Index, Integer, MetaData, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

_NAMES = {
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map: ClassVar[dict[type, TypeEngine[Any]]] = {str: Text(), int: Integer(), float: Double()}


class ModelRow(Base):
    """A name and its default version; `registered` is the number of the change that brought the name."""

    __tablename__ = "models"
    __table_args__ = (
        # Checked at commit only: a model and its first version refer to each other.  `use_alter` has no effect on
        # SQLite's DDL; it tells SQLAlchemy that the cycle between the two tables is meant.
        ForeignKeyConstraint(
            ["name", "default_version"],
            ["versions.name", "versions.version"],
            deferrable=True,
            initially="DEFERRED",
            use_alter=True,
        ),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    default_version: Mapped[str]
    registered: Mapped[int] = mapped_column(unique=True)


class VersionRow(Base):
    """One registered version; `registered` is the number of the change that added it."""

    __tablename__ = "versions"

    name: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("archives.digest"), index=True)
    url: Mapped[str]
    handler: Mapped[str]
    runtime: Mapped[str]
    batch_size: Mapped[int]
    max_batch_delay: Mapped[int]
    response_timeout: Mapped[int]
    startup_timeout: Mapped[int]
    min_workers: Mapped[int]
    max_workers: Mapped[int]
    registered: Mapped[int] = mapped_column(unique=True)


class ArchiveRow(Base):
    """Content that is kept; `manifest` and `config` are JSON (documents.py), `kept_at` is UTC in ISO 8601, `signature`
    is the line of the trusted key."""

    __tablename__ = "archives"

    digest: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    manifest: Mapped[str]
    config: Mapped[str | None]
    kept_at: Mapped[str]
    signature: Mapped[str | None]


class CursorRow(Base):
    """A page position.  AUTOINCREMENT, so that the token of a dropped row never comes to stand for another name."""

    __tablename__ = "cursors"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    after_name: Mapped[str] = mapped_column(unique=True)
    expires_at: Mapped[float] = mapped_column(index=True)


class TokenRow(Base):
    """A named token: `digest` is what is kept of its secret, in hexadecimal, `scopes` are words.  Epoch seconds."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[str]
    digest: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]


class ChangeRow(Base):
    """One acknowledged change: `before` and `after` are JSON, None where there was or is nothing."""

    __tablename__ = "changes"
    __table_args__ = ({"sqlite_autoincrement": True},)

    number: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[str]
    actor: Mapped[str]
    kind: Mapped[str]
    model: Mapped[str]
    version: Mapped[str]
    before: Mapped[str | None]
    after: Mapped[str | None]
    request_id: Mapped[str | None]


class EventRow(Base):
    """What happened to a model, pruned (events.py).  AUTOINCREMENT, since clients hold numbers as page tokens.

    `at` is UTC in ISO 8601, `detail` JSON.  What a change of desired state changed stands in its `changes` row only.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_model_number", "model", "number"),
        Index("ix_events_tails", "model", "number", sqlite_where=text("log_tail IS NOT NULL")),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    model: Mapped[str]
    version: Mapped[str]
    worker: Mapped[int | None]
    pid: Mapped[int | None]
    actor: Mapped[str | None]
    request_id: Mapped[str | None]
    change: Mapped[int | None] = mapped_column(ForeignKey("changes.number"))
    detail: Mapped[str]
    log_tail: Mapped[str | None]
