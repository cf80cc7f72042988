"""An end for what hostile text and headers can make the libraries compute.  Runs in the intake process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN_S = 1.0  # a library that swallows the error gets it again


class TooSlow(Exception):
    """Not an OSError, which libraries take for the end of a file."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """TooSlow inside the block once the process has computed this long in it.  One block at a time."""

    def expire(_signal: int, _frame: object) -> None:
        raise TooSlow(f"it takes more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
