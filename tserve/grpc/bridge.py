"""Calls from gRPC's thread into Trio and back: an asyncio loop in a thread, owned by a Trio task.

What crosses over in either direction stands in a queue, so that a busy side is woken once for many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

import trio

T = TypeVar("T")
WINDOW = 16  # messages of a stream that are on their way
_log = logging.getLogger("tserve.grpc")


class Stopping(Exception):
    """The server ends, and with it what runs in Trio for a call."""


class Bridge:
    """`run` is to be called in Trio, `call` in the thread's loop."""

    def __init__(self) -> None:
        self._into_trio: deque[Callable[[], object]] = deque()
        self._into_loop: deque[Callable[[], object]] = deque()
        self._trio_told = self._loop_told = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._running: set[trio.CancelScope] = set()
        self._fewer = trio.lowlevel.ParkingLot()

    # -- Trio's side

    async def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `main` in an asyncio loop in a thread until it returns, and what it calls in this task's care.

        Cancelling this cancels `main` and waits for its end.  Raises what `main` raises.
        """
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._calls:
            self._calls.start_soon(self._pass_cancellation_on)
            await trio.to_thread.run_sync(self._run_loop, main, limiter=trio.CapacityLimiter(1))
            self._calls.cancel_scope.cancel()

    async def _pass_cancellation_on(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.to_loop(self._cancel_main)

    async def idle(self) -> None:
        """Wait until nothing runs for a call."""
        while self._running:
            await self._fewer.park()

    def cut(self) -> None:
        """End what runs for calls: each gets Stopping."""
        for scope in list(self._running):
            scope.cancel()

    def to_loop(self, act: Callable[[], object]) -> None:
        """Have `act` called in the thread's loop, soon; nothing comes of it once the loop has ended."""
        self._into_loop.append(act)
        if not self._loop_told and self._loop is not None:
            self._loop_told = True
            try:
                self._loop.call_soon_threadsafe(self._enter_loop)
            except RuntimeError:  # closed: its end was quicker
                self._loop = None

    async def _run(self, act: Callable[[], Awaitable[T]], scope: trio.CancelScope, future: asyncio.Future[T]) -> None:
        settle: Callable[[], object] = partial(_fail, future, Stopping())
        self._running.add(scope)
        try:
            with scope:
                settle = partial(_succeed, future, await act())
        except Exception as error:  # the caller's, which waits for it
            settle = partial(_fail, future, error)
        finally:
            self._running.discard(scope)
            self._fewer.unpark_all()
            self.to_loop(settle)

    def _enter_trio(self) -> None:
        self._trio_told = False
        while self._into_trio:
            self._into_trio.popleft()()

    # -- the loop's side

    def _run_loop(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run(self._run_main(main))

    async def _run_main(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._enter_loop()  # what was said before there was a loop
        try:
            await main()
        except asyncio.CancelledError:
            _log.debug("gRPC was cut short")

    def _cancel_main(self) -> None:
        if self._main is not None:
            self._main.cancel()

    async def call(self, act: Callable[[], Awaitable[T]]) -> T:
        """What `act` returns in Trio, or raises.  Cancelling cancels it, without waiting for its end.

        Raises Stopping when Trio ends first.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        scope = trio.CancelScope()
        self.to_trio(partial(self._start, act, scope, future))
        try:
            return await future
        except asyncio.CancelledError:
            self.to_trio(scope.cancel)
            raise

    def _start(self, act: Callable[[], Awaitable[T]], scope: trio.CancelScope, future: asyncio.Future[T]) -> None:
        try:
            self._calls.start_soon(self._run, act, scope, future)
        except RuntimeError:  # the nursery is closed: Trio's side has ended
            self.to_loop(partial(_fail, future, Stopping()))

    def to_trio(self, act: Callable[[], object]) -> None:
        """Have `act` called in Trio, soon; nothing comes of it once Trio has ended."""
        self._into_trio.append(act)
        if not self._trio_told:
            self._trio_told = True
            self._token.run_sync_soon(self._enter_trio)

    def _enter_loop(self) -> None:
        self._loop_told = False
        while self._into_loop:
            self._into_loop.popleft()()


def _succeed(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class Outlet(Generic[T]):
    """Messages from Trio to the loop; `send` waits while WINDOW of them have not gone out."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._room = trio.Semaphore(WINDOW)
        self._queue: asyncio.Queue[T | None] = asyncio.Queue()

    async def send(self, message: T) -> None:
        """In Trio."""
        await self._room.acquire()
        self._bridge.to_loop(partial(self._queue.put_nowait, message))

    async def drain(self, act: Callable[[], Awaitable[None]], write: Callable[[T], Awaitable[None]]) -> None:
        """In the loop: have `act` run in Trio and write what it sends; returns, or raises, as `act` does."""
        calling = asyncio.ensure_future(self._bridge.call(act))
        calling.add_done_callback(lambda _: self._queue.put_nowait(None))
        try:
            while (message := await self._queue.get()) is not None:
                await write(message)
                self._bridge.to_trio(self._room.release)
            await calling
        finally:
            if calling.done() and not calling.cancelled():
                calling.exception()  # also of a call that was left before its end came
            calling.cancel()


class Inlet(Generic[T]):
    """Messages from the loop to Trio; the loop waits while WINDOW of them have not been taken."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._room = asyncio.Semaphore(WINDOW)
        self._put, self._taken = trio.open_memory_channel[T](WINDOW + 1)

    async def feed(self, messages: AsyncIterator[T]) -> None:
        """In the loop: hand on all that come."""
        try:
            async for message in messages:
                await self._room.acquire()
                self._bridge.to_trio(partial(self._put.send_nowait, message))
        finally:
            self._bridge.to_trio(self._put.close)

    def __aiter__(self) -> Inlet[T]:
        return self

    async def __anext__(self) -> T:
        """In Trio."""
        try:
            message = await self._taken.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        self._bridge.to_loop(self._room.release)
        return message
