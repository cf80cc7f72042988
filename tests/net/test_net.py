"""Sockets and times without a task for each: the poller, the timers, and transports with TLS and without."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from tserve.net.poller import Poller
from tserve.net.timers import Timers
from tserve.net.told import told
from tserve.net.transport import Transport

PATIENCE_S = 20.0


@dataclass
class Net:
    poller: Poller
    timers: Timers


@asynccontextmanager
async def running() -> AsyncIterator[Net]:
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            net = Net(Poller(), Timers())
            nursery.start_soon(net.poller.run)
            nursery.start_soon(net.timers.run)
            yield net
            nursery.cancel_scope.cancel()


async def until(holds: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - of what is no event
            await trio.sleep(0.001)


# -- the poller


@dataclass
class Watcher:
    sock: socket.socket
    act: Callable[[], None] = lambda: None
    seen: list[bytes] = field(default_factory=list)
    let_go_of: int = 0

    def on_ready(self, events: int) -> None:
        self.act()
        self.seen.append(self.sock.recv(100))

    def let_go(self) -> None:
        self.let_go_of += 1


def fail() -> None:
    raise ValueError("a bug")


async def test_a_bug_costs_its_own_socket(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as net:
        with trio.fail_after(PATIENCE_S):
            pairs = [socket.socketpair() for _ in range(2)]
            bad, good = (Watcher(near, act) for (near, _), act in zip(pairs, (fail, lambda: None), strict=True))
            for watcher in (bad, good):
                net.poller.watch(watcher.sock.fileno(), watcher)
            for _, far in pairs:
                far.send(b"hello")
            await until(lambda: good.seen and bad.let_go_of)
            assert (bad.seen, good.seen, good.let_go_of) == ([], [b"hello"], 0)
            net.poller.forget(bad.sock.fileno())
    assert good.let_go_of == 1, "nobody watches any more"
    assert "a bug while a socket was served" in caplog.text
    for sockets in pairs:
        for sock in sockets:
            sock.close()


async def test_a_number_that_is_another_sockets_by_now() -> None:
    """Closed and opened again within one pass: what the pass still has of the number was the old socket's."""
    async with running() as net:
        pairs = [socket.socketpair() for _ in range(2)]
        first, second = watchers = [Watcher(near) for near, _ in pairs]
        fresh: list[Watcher] = []

        def replace_the_other(other: Watcher) -> None:
            """Of the two that are ready, whoever comes first does it."""
            if fresh:
                return
            number = other.sock.fileno()
            net.poller.forget(number)
            other.sock.close()
            made = sorted(socket.socketpair(), key=lambda sock: sock.fileno() != number)
            assert made[0].fileno() == number
            pairs.append((made[0], made[1]))
            made[0].setblocking(False)
            fresh.append(Watcher(made[0]))
            net.poller.watch(number, fresh[0])

        first.act, second.act = partial(replace_the_other, second), partial(replace_the_other, first)
        for (_, far), watcher in zip(pairs, watchers, strict=True):
            far.send(b"x")
            net.poller.watch(watcher.sock.fileno(), watcher)
        await until(lambda: fresh)
        await wait_all_tasks_blocked()
        assert fresh[0].seen == []
        pairs[-1][1].send(b"now")
        await until(lambda: fresh[0].seen)
        assert fresh[0].seen == [b"now"]
        assert not fresh[0].let_go_of
    for sockets in pairs:
        for sock in sockets:
            sock.close()


async def test_soon_is_once_at_the_end_of_the_pass() -> None:
    async with running() as net:
        order: list[str] = []
        net.poller.soon(lambda: order.append("at once"))
        assert order == ["at once"]
        near, far = socket.socketpair()
        with near, far:

            def act() -> None:
                net.poller.soon(lambda: order.append("later"))
                order.append("ready")

            net.poller.watch(near.fileno(), watcher := Watcher(near, act))
            far.send(b"x")
            await until(lambda: watcher.seen)
            assert order == ["at once", "ready", "later"]
            net.poller.forget(near.fileno())


# -- the timers


async def test_times_come_in_their_order(autojump_clock: MockClock) -> None:
    async with running_timers() as timers:
        order: list[float] = []
        began = trio.current_time()
        for seconds in (3.0, 1.0, 2.0):
            timers.after(seconds, lambda: order.append(trio.current_time() - began))
        timers.after(2.5, fail)
        timers.after(1.5, lambda: order.append(-1)).cancel()
        await trio.sleep(10)
        assert order == pytest.approx([1, 2, 3])


async def test_many_that_never_come_are_forgotten(autojump_clock: MockClock) -> None:
    async with running_timers() as timers:
        for _ in range(10_000):
            timer = timers.after(1000, fail)
            timer.cancel()
            timer.cancel()
        assert len(timers._heap) < 200
        came = trio.Event()
        timers.after(1, came.set)
        await came.wait()


@asynccontextmanager
async def running_timers() -> AsyncIterator[Timers]:
    async with trio.open_nursery() as nursery:
        timers = Timers()
        nursery.start_soon(timers.run)
        yield timers
        nursery.cancel_scope.cancel()


# -- transports


@dataclass
class Receiver:
    data: bytearray = field(default_factory=bytearray)
    flushes: int = 0
    losses: int = 0

    def received(self, data: bytes) -> None:
        self.data += data

    def flushed(self) -> None:
        self.flushes += 1

    def lost(self) -> None:
        self.losses += 1


AUTHORITY = trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


@asynccontextmanager
async def connected(*, tls: bool) -> AsyncIterator[tuple[Transport, Receiver, trio.abc.Stream, socket.socket]]:
    """A transport with its receiver, and the client's stream and socket."""
    near, far = socket.socketpair()
    far.setblocking(False)
    client: trio.abc.Stream = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    with near:
        async with running() as net:
            transport, receiver = (
                Transport(near, net.poller, net.timers, tls=server_context() if tls else None),
                Receiver(),
            )
            transport.start(receiver)
            if tls:
                client = trio.SSLStream(client, client_context(), server_hostname="localhost", https_compatible=True)
            async with client:
                yield transport, receiver, client, far
            transport.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_bytes_go_both_ways(tls: bool) -> None:
    body = bytes(range(256)) * 20_000
    async with connected(tls=tls) as (transport, receiver, client, _), trio.open_nursery() as nursery:
        transport.write(b"early")  # before there is a handshake
        nursery.start_soon(client.send_all, body)
        got = bytearray()
        transport.write(body)
        assert transport.unsent
        while len(got) < len(body) + 5:
            got += await client.receive_some()
        await until(lambda: len(receiver.data) == len(body))
        assert bytes(got) == b"early" + body
        assert bytes(receiver.data) == body
        await until(lambda: transport.unsent == 0)
        assert receiver.flushes >= 1
        assert not receiver.losses


@pytest.mark.parametrize("tls", [False, True])
async def test_what_is_written_before_the_end_arrives(tls: bool) -> None:
    body = bytes(3_000_000)
    async with connected(tls=tls) as (transport, receiver, client, _):
        await client.send_all(b"hello")
        await until(lambda: receiver.data)
        transport.write(body)
        transport.finish(PATIENCE_S)
        transport.write(b"not any more")
        got = 0
        while part := await client.receive_some():
            got += len(part)
        assert got == len(body)
        await client.aclose()
        await until(lambda: transport.closed)
        assert not receiver.losses, "whoever ends it knows"


async def test_a_client_that_does_not_leave_is_closed_after_a_while() -> None:
    async with connected(tls=False) as (transport, _, client, _):
        transport.write(bytes(5_000_000))  # nobody reads it
        transport.finish(0.05)
        await until(lambda: transport.closed)
        assert client is not None


async def test_a_client_that_does_not_read_is_waited_for_without_a_task() -> None:
    async with connected(tls=False) as (transport, receiver, client, _):
        for _ in range(100):
            transport.write(bytes(100_000))
        assert transport.unsent > 5_000_000
        await client.send_all(b"and yet it speaks")
        await until(lambda: receiver.data == b"and yet it speaks")
        got = 0
        while got < 10_000_000:
            got += len(await client.receive_some())
        await until(lambda: transport.unsent == 0)


async def test_a_pause_is_kept() -> None:
    async with connected(tls=False) as (transport, receiver, client, _):
        transport.pause(True)
        await client.send_all(b"x")
        await wait_all_tasks_blocked(0.02)
        assert not receiver.data
        transport.pause(False)
        await until(lambda: receiver.data == b"x")


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_goes_is_told_of_once(tls: bool) -> None:
    async with connected(tls=tls) as (transport, receiver, client, _):
        await client.send_all(b"last words")
        await client.aclose()
        await until(lambda: receiver.losses)
        assert (bytes(receiver.data), receiver.losses, transport.closed) == (b"last words", 1, True)
        transport.write(b"nobody hears it")
        transport.close()


@pytest.mark.parametrize("said", [b"no hello", b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01" + b"\xff" * 100])
async def test_what_is_no_handshake(said: bytes) -> None:
    near, far = socket.socketpair()
    async with running() as net:
        transport, receiver = Transport(near, net.poller, net.timers, tls=server_context()), Receiver()
        transport.start(receiver)
        far.send(said)
        await until(lambda: receiver.losses)
        assert transport.closed
        assert not receiver.data
    far.close()


# -- what is told


async def test_a_task_waits_for_what_is_told(autojump_clock: MockClock) -> None:
    left: list[str] = []
    async with running_timers() as timers:

        def later(tell: Callable[[str], None]) -> Callable[[], None]:
            timers.after(5, lambda: tell("told"))
            return lambda: left.append("left")

        def at_once(tell: Callable[[str], None]) -> Callable[[], None]:
            tell("at once")
            return lambda: left.append("left")

        assert await told(later) == "told"
        assert await told(at_once) == "at once"
        assert not left
        with trio.move_on_after(1):
            await told(later)
        assert left == ["left"]
