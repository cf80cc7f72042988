"""Many sockets in the care of one Trio task: a private epoll, and plain callbacks (DESIGN.md section 6).

A task per connection costs a turn of the scheduler for every message; here one turn serves all that is ready.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable
from typing import Protocol

import trio

MOST_EVENTS = 256  # of one pass: other tasks have their turn then
READ, WRITE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT
_log = logging.getLogger("tserve.net")


class Watcher(Protocol):
    """What has sockets watched.  Neither method may block, or raise."""

    def on_ready(self, events: int) -> None:
        """The socket can be read or written (`events & WRITE`), or has come to an end."""
        ...

    def let_go(self) -> None:
        """Close the socket: `on_ready` raised, or nobody watches any more."""
        ...


class Poller:
    """To be used in the thread of the Trio run that `run` is a task of."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watchers: dict[int, Watcher] = {}
        self._forgotten: set[int] = set()  # in this pass: what it has of these numbers is another socket's
        self._soon: list[Callable[[], None]] = []
        self._passing = False

    def watch(self, fd: int, watcher: Watcher, events: int = READ) -> None:
        self._epoll.register(fd, events)
        self._watchers[fd] = watcher

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """To be called before the socket is closed.  Nothing is said of it any more."""
        if self._watchers.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._forgotten.add(fd)

    def soon(self, act: Callable[[], None]) -> None:
        """Call `act` at the end of the pass, so that what many callbacks leave to do is done once; at once outside."""
        if self._passing:
            self._soon.append(act)
        else:
            act()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll)
                self._pass()
        finally:
            for watcher in list(self._watchers.values()):
                _guarded(watcher.let_go)
            trio.lowlevel.notify_closing(self._epoll)
            self._epoll.close()

    def _pass(self) -> None:
        self._forgotten.clear()
        self._passing = True
        try:
            for fd, events in self._epoll.poll(0, MOST_EVENTS):
                watcher = self._watchers.get(fd)
                if watcher is not None and fd not in self._forgotten:
                    self._call(watcher, events)
            while self._soon:
                acts, self._soon = self._soon, []
                for act in acts:
                    _guarded(act)
        finally:
            self._passing = False

    def _call(self, watcher: Watcher, events: int) -> None:
        try:
            watcher.on_ready(events)
        except Exception:
            _log.exception("a bug while a socket was served")
            _guarded(watcher.let_go)


def _guarded(act: Callable[[], None]) -> None:
    """One socket's trouble must not end the others."""
    try:
        act()
    except Exception:
        _log.exception("a bug while sockets were served")
