"""A task that waits for what is told by a callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def told(begin: Callable[[Callable[[T], None]], Callable[[], None]]) -> T:
    """What is told by what `begin` begins; it returns what is to be called when nobody waits any more."""
    outcomes: list[T] = []
    arrived = trio.Event()

    def tell(outcome: T) -> None:
        outcomes.append(outcome)
        arrived.set()

    leave = begin(tell)
    try:
        await arrived.wait()
    finally:
        if not outcomes:
            leave()
    return outcomes[0]
