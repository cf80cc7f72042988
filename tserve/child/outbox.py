"""Metrics on their way from the handler to the server: with the next frame, or in one of their own when none is due."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from tserve.domain.wire import METRICS, METRICS_LOST, Frame, Kind

MOST_LINES = 2_000  # that wait; what comes on top of them is lost
MOST_CHARACTERS = 1 << 20
PAUSE_S = 0.1  # before a frame that has nothing but metrics
LONG_S = 1.0  # in hand: metrics no longer wait for the answer


class Outbox:
    """`send` sends a frame.  Lines may come from any thread, amid any other call: so nothing here waits for a lock."""

    def __init__(self, send: Callable[[Frame], None]) -> None:
        self._send = send
        self._worker = os.getpid()
        self._lines: deque[str] = deque()
        self._characters = 0  # of lines that wait; not exact when threads meet, and so set right when none does
        self._lost = 0
        self._in_hand = True  # a load, to begin with
        self._begun_at = time.monotonic()
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """A frame is due, and will take along what is emitted until then."""
        self._in_hand, self._begun_at = True, time.monotonic()

    def end(self) -> None:
        """It is about to be sent."""
        self._in_hand = False

    def put(self, line: str) -> bool:
        """Take a line; False in a process that the handler has forked, which must not write into the socket."""
        if os.getpid() != self._worker:
            return False
        if len(self._lines) < MOST_LINES and self._characters + len(line) <= MOST_CHARACTERS:
            self._characters += len(line)
            self._lines.append(line)
        else:
            self._lost += 1
        if self._timer is None and (not self._in_hand or time.monotonic() - self._begun_at > LONG_S):
            timer = self._timer = threading.Timer(PAUSE_S, self.flush)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # no more threads: the next frame takes it along
                self._timer = None
        return True

    def load(self, frame: Frame) -> None:
        """Give what waits along with a frame that is about to be sent."""
        if self._lines or self._lost:
            frame.meta[METRICS] = self._take()
            lost, self._lost = self._lost, 0
            if lost:
                frame.meta[METRICS_LOST] = lost

    def flush(self) -> None:
        """Send what waits in a frame of its own."""
        self._timer = None
        if (self._lines or self._lost) and os.getpid() == self._worker:
            with contextlib.suppress(OSError):  # the server is gone
                self._send(Frame(Kind.METRICS, 0, {}))

    def _take(self) -> list[str]:
        lines = []
        with contextlib.suppress(IndexError):
            for _ in range(MOST_LINES):
                lines.append(self._lines.popleft())
        self._characters = 0 if not self._lines else max(0, self._characters - sum(map(len, lines)))
        return lines
