"""The history of models: takes events from the machine without making it wait, and tells them page by page.

What is told is as of the last commit: an event shows a moment after it happened.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import trio

from tserve.domain.actor import Actor
from tserve.domain.events import WorkerEvent
from tserve.domain.history import Event, PastEvent
from tserve.domain.registry import Registry
from tserve.domain.versions import Key
from tserve.errors import InternalServer
from tserve.services.ports import Store

MOST_WAITING: Final = 1_000  # events; of more than that, while the disk is slow, the oldest are lost
TAIL_BYTES: Final = 64 * 1024
TEXT_BYTES: Final = 16 * 1024  # of one text in a detail
PAGE_BYTES: Final = 2 * 1024 * 1024  # of details and tails, about; nobody else is served while they are rendered
PRUNED_EVERY_S: Final = 3600.0  # for what grows old while nothing happens
_log = logging.getLogger("tserve.services")


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """`events`: newest first.  `next_before`: what the next page is before; None on the last one."""

    events: list[PastEvent]
    next_before: int | None


class History:
    """`run` must be running for anything to be kept; it must end after everyone who reports has ended."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._news = trio.Event()

    # -- in

    def report(self, event: WorkerEvent) -> None:
        """Take what happened to a worker; never waits.  Long texts lose their beginning."""
        self._take(
            Event(
                at=event.at,
                kind=event.kind.value,
                key=event.key,
                worker=event.worker,
                pid=event.pid,
                detail={name: _plain(part) for name, part in event.detail.items()},
                log_tail=_end_of(event.log_tail, TAIL_BYTES),
            )
        )

    def note(self, key: Key, kind: str, actor: Actor) -> None:
        """Take what a client asked of a version without changing its desired state; never waits."""
        self._take(Event(at=time.time(), kind=kind, key=key, actor=actor))

    def _take(self, event: Event) -> None:
        if len(self._waiting) == MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(event)
        self._news.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep what comes until cancelled, then what still waits: nothing that was taken before is lost by that."""
        task_status.started()
        try:
            while True:
                await self._prune()
                with trio.move_on_after(PRUNED_EVERY_S):
                    while True:
                        await self._news.wait()
                        self._news = trio.Event()
                        await self._keep()
        finally:
            with trio.CancelScope(shield=True):  # bounded: the store waits a few seconds for its file at most
                await self._keep()

    async def _keep(self) -> None:
        """All that waits, in one transaction.  History is worth no more than a warning when it cannot be written."""
        events, lost = list(self._waiting), self._lost
        self._waiting.clear()
        self._lost = 0
        if lost:
            _log.warning("%d events came faster than they could be stored and are not in the history", lost)
        if not events:
            return
        try:
            # Once taken they must be written: a cancelled wait for the store's turn would lose them.
            with trio.CancelScope(shield=True):
                await self._store.add_events(events)
        except InternalServer as e:
            _log.warning("%d events are not in the history: %s %s", len(events), e.message, e.cause)

    async def _prune(self) -> None:
        try:
            await self._store.prune_events(now=time.time())
        except InternalServer as e:
            _log.warning("old events could not be dropped: %s %s", e.message, e.cause)

    # -- out

    async def page(self, name: str, version: str | None, *, limit: int, before: int | None) -> HistoryPage:
        """At most `limit` events of a model, of one version if it is named, newest first; fewer where they are large.

        `before` is the `next_before` of the page in front.  Numbers never change and never come back, so that pages
        neither skip nor repeat an event while others come and go.  Raises ModelNotFound and ModelVersionNotFound for
        what is neither registered nor in the history.
        """
        events = await self._store.events(name, version, before=before, limit=limit + 1)
        if not events and not await self._known(name, version):
            self._registry.find(name, version)
        shown = _of_one_page(events[:limit])
        return HistoryPage(shown, shown[-1].number if len(shown) < len(events) else None)

    async def _known(self, name: str, version: str | None) -> bool:
        return bool(await self._store.events(name, version, before=None, limit=1))


def _of_one_page(events: list[PastEvent]) -> list[PastEvent]:
    """As many from the first on as PAGE_BYTES hold, one at least."""
    size = 0
    for count, past in enumerate(events):
        size += len(json.dumps([dict(past.event.detail), past.event.log_tail]))
        if size > PAGE_BYTES:
            return events[: max(1, count)]
    return events


def _plain(value: object) -> object:
    """What JSON can hold, so that nothing that is told can stop the writer; long texts are cut."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _end_of(str(value), TEXT_BYTES)


def _end_of(text: str, most: int) -> str:
    """The last `most` bytes of a text that can be encoded; the last lines are the ones that say why."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= most and text.isascii() else encoded[-most:].decode("utf-8", "ignore")
