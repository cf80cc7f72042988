"""The history of models as plain data: what happened, and how much of it is kept (docs/events.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tserve.domain.actor import Actor
from tserve.domain.versions import Key

MOST_OF_A_MODEL: Final = 1_000
MOST_EVENTS: Final = 10_000
LIFE_S: Final = 30 * 24 * 3600.0
MOST_TAILS_OF_A_MODEL: Final = 20  # newest events that keep their log tail
MOST_TAILS: Final = 1_000
PRUNED_EVERY: Final = 100
"""Surplus goes with each event whose number is a multiple of this: so many at most are kept beyond the bounds."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a version, or was asked of it.

    `at` is epoch seconds, kept to the millisecond; `worker` the slot's id as users see it; `actor` who asked, None for
    what happened by itself; `detail` JSON-able; `log_tail` the last output of the worker, empty for none.
    """

    at: float
    kind: str
    key: Key
    worker: int | None = None
    pid: int | None = None
    actor: Actor | None = None
    detail: Mapping[str, object] = field(default_factory=dict)
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class PastEvent:
    """An event as it is kept: numbered in order, with what a change of desired state changed."""

    number: int
    event: Event
    before: Mapping[str, object] | None = None
    after: Mapping[str, object] | None = None
