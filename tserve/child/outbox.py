"""Metrics on their way from the handler to the server: with the next frame, or in one of their own when none is due."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from tserve.domain.wire import METRICS, Frame, Kind

MOST_WAITING = 10_000  # lines; what comes on top of them is lost
PAUSE_S = 0.1  # between two frames that have nothing but metrics


class Outbox:
    """`send` sends a frame.  Lines may come from any thread.  `in_hand` says that a frame is due anyway."""

    def __init__(self, send: Callable[[Frame], None]) -> None:
        self.in_hand = True  # a load, to begin with
        self._send = send
        self._worker = os.getpid()
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._sent_at = 0.0
        self._timer: threading.Timer | None = None

    def put(self, line: str) -> bool:
        """Take a line; False in a process that the handler has forked, which must not write into the socket."""
        if os.getpid() != self._worker:
            return False
        with self._lock:
            if len(self._lines) < MOST_WAITING:
                self._lines.append(line)
            wait_s = self._sent_at + PAUSE_S - time.monotonic()
            if self.in_hand or self._timer is not None:
                return True
            if wait_s > 0:
                self._timer = threading.Timer(wait_s, self._flush)
                self._timer.daemon = True
                self._timer.start()
                return True
        self._flush()
        return True

    def load(self, frame: Frame) -> None:
        """Give what waits along with a frame that is about to be sent."""
        if lines := self._take():
            frame.meta[METRICS] = lines

    def _flush(self) -> None:
        with self._lock:
            self._timer = None
            self._sent_at = time.monotonic()
        if lines := self._take():
            with contextlib.suppress(OSError):  # the server is gone
                self._send(Frame(Kind.METRICS, 0, {METRICS: lines}))

    def _take(self) -> list[str]:
        if not self._lines:
            return []
        with self._lock:
            lines, self._lines = self._lines, []
            return lines
