"""The bridge between real loops: calls that end, fail, are cancelled and cut at random, and streams of messages."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import trio
import trio.lowlevel

from tserve.grpc.bridge import WINDOW, Bridge, Inlet, Outlet, Stopping

CALLS = 150


class Oops(Exception):
    pass


class Acts:
    """What runs in Trio for the calls, and how many of them do now."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.running = 0

    async def act(self, number: int, kind: str) -> int:
        self.running += 1
        try:
            for _ in range(number % 7):
                await trio.lowlevel.checkpoint()
            if kind == "fails":
                raise Oops
            if kind == "waits":
                await trio.sleep_forever()
            return number
        finally:
            self.running -= 1


async def one_call(
    bridge: Bridge, acts: Acts, number: int, kind: str, ends: Counter[str], *, all_cancelled: bool
) -> None:
    """Its end is the one that its kind can have."""
    calling = asyncio.ensure_future(bridge.call(lambda: acts.act(number, kind)))
    if kind == "cancelled":
        for _ in range(number % 5):
            await asyncio.sleep(0)
        calling.cancel()
    try:
        assert await calling == number
        ends["returned"] += 1
        assert kind in ("returns", "cancelled")
    except asyncio.CancelledError:
        ends["cancelled"] += 1
        assert kind == "cancelled" or all_cancelled
    except Oops:
        ends["failed"] += 1
        assert kind == "fails"
    except Stopping:
        ends["stopped"] += 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stop", ["no", "cut", "cancel"])
async def test_every_call_has_its_end(seed: int, stop: str) -> None:
    bridge, acts, ends = Bridge(), Acts(seed), Counter[str]()
    kinds = ["returns", "fails", "cancelled", *(["waits"] if stop != "no" else [])]
    chosen = [acts.random.choice(kinds) for _ in range(CALLS)]

    async def main() -> None:
        cancelled = stop == "cancel"
        calls = [one_call(bridge, acts, *each, ends, all_cancelled=cancelled) for each in enumerate(chosen)]
        await asyncio.gather(*calls)

    async def end_it(scope: trio.CancelScope) -> None:
        while acts.running < min(10, chosen.count("waits")):
            await trio.lowlevel.checkpoint()
        if stop == "cancel":
            scope.cancel()
        while stop == "cut":  # calls that come later, too
            bridge.cut()
            await trio.lowlevel.checkpoint()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            if stop != "no":
                nursery.start_soon(end_it, nursery.cancel_scope)
            await bridge.run(main)
            nursery.cancel_scope.cancel()
    assert acts.running == 0
    await bridge.idle()
    if stop == "no":
        assert ends["failed"] == chosen.count("fails")
        assert ends["returned"] + ends["cancelled"] == CALLS - ends["failed"]
    if stop == "cut":
        assert sum(ends.values()) == CALLS
        assert ends["stopped"] >= chosen.count("waits")


async def test_a_cancelled_call_is_cancelled_in_trio() -> None:
    bridge, begun, ended = Bridge(), trio.Event(), trio.Event()

    async def act() -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async def main() -> None:
        calling = asyncio.ensure_future(bridge.call(act))
        await bridge.call(begun.wait)
        calling.cancel()
        await bridge.call(ended.wait)

    with trio.fail_after(60):
        await bridge.run(main)


@pytest.mark.parametrize("seed", range(4))
async def test_streams_keep_their_order_and_wait_for_their_readers(seed: int) -> None:
    """No side is ever more than a window ahead."""
    bridge, chance, count = Bridge(), random.Random(seed), 300
    sent: list[int] = []
    got: list[int] = []

    async def numbers() -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def main() -> None:
        inlet, outlet = Inlet[int](bridge), Outlet[int](bridge)
        feeding = asyncio.ensure_future(inlet.feed(numbers()))

        async def act() -> None:
            async for number in inlet:
                sent.append(number)
                assert len(sent) - len(got) <= 2 * WINDOW
                await outlet.send(number)

        async def write(number: int) -> None:
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            got.append(number)

        await outlet.drain(act, write)
        await feeding

    with trio.fail_after(60):
        await bridge.run(main)
    assert got == list(range(count))


async def test_a_stream_that_fails_gives_what_came_before() -> None:
    bridge = Bridge()
    got: list[int] = []

    async def main() -> None:
        outlet = Outlet[int](bridge)

        async def act() -> None:
            for number in range(3):
                await outlet.send(number)
            raise Oops

        async def write(number: int) -> None:
            got.append(number)

        with pytest.raises(Oops):
            await outlet.drain(act, write)

    with trio.fail_after(60):
        await bridge.run(main)
    assert got == [0, 1, 2]


async def test_what_the_loop_raises_ends_the_run() -> None:
    async def main() -> None:
        raise Oops

    with trio.fail_after(60), pytest.RaisesGroup(Oops, flatten_subgroups=True):
        await Bridge().run(main)
