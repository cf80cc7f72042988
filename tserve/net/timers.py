"""Times at which something is to be called, many of them, most of which never come: one heap, one Trio task."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable

import trio

_log = logging.getLogger("tserve.net")


class Timer:
    """`cancel` may be called at any time, also twice."""

    __slots__ = ("_timers", "act")

    def __init__(self, timers: Timers, act: Callable[[], None]) -> None:
        self._timers = timers
        self.act: Callable[[], None] | None = act

    def cancel(self) -> None:
        if self.act is not None:
            self.act = None
            self._timers.cancelled()


class Timers:
    """Times are those of Trio's clock.  What is called must not block; what it raises is logged."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._dead = 0
        self._sleep = trio.CancelScope()

    def after(self, seconds: float, act: Callable[[], None]) -> Timer:
        """Call `act` then, in the task that runs `run`."""
        at, timer = trio.current_time() + seconds, Timer(self, act)
        heapq.heappush(self._heap, (at, next(self._numbers), timer))
        self._sleep.deadline = min(self._sleep.deadline, at)
        return timer

    def cancelled(self) -> None:
        """For Timer: the dead are cleared out when they are most of the heap."""
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].act is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    async def run(self) -> None:
        """Keep the time until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._heap[0][0] if self._heap else math.inf) as self._sleep:
                await trio.sleep_forever()
            self._fire(trio.current_time())

    def _fire(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            act = heapq.heappop(self._heap)[2].act
            if act is None:
                self._dead -= 1
                continue
            try:
                act()
            except Exception:
                _log.exception("a bug when a time had come")
