"""The gRPC listeners: HTTP/2 of our own, and every method served in Trio.

To be imported only when it is needed: its messages take tens of milliseconds to import.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio
from google.protobuf.message_factory import GetMessageClass

from tserve.grpc.client import LINGER_S, Client, Port
from tserve.grpc.exchange import Admit, Answered, Endpoint, Surroundings
from tserve.grpc.messages import POOL
from tserve.grpc.methods import Call, Service
from tserve.net.listening import bind
from tserve.net.poller import Poller
from tserve.net.timers import Timers
from tserve.net.tls import Tls
from tserve.net.transport import Transport
from tserve.settings import Address

MOST_CONNECTIONS = 4096
ACCEPT_AT_ONCE = 64
ACCEPT_AGAIN_S = 0.2  # after the system had no descriptor, or no memory, for another connection
HELD_BYTES = 64 << 20  # of the messages of one connection, or twice the longest one if that is more
_log = logging.getLogger("tserve.grpc")


def admit_all(call: Call) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Listener:
    """Port 0 of the address is any port; messages of more than `most_bytes` are refused.

    `admit` sees every call before anything of its message is looked at, and raises TserveError for those that may not
    be made.
    `tls` None is no TLS.  Where there are `most_connections`, a new one takes the place of one that is idle, or is
    closed.  Ages in milliseconds.
    """

    address: Address
    services: Sequence[Service]
    most_bytes: int
    admit: Admit = admit_all
    tls: Tls | None = None
    most_connections: int = MOST_CONNECTIONS
    max_age_ms: int | None = None
    max_age_grace_ms: int | None = None


def _tell_nobody(method: str, code: str, seconds: float) -> None:
    pass


async def serve(
    listeners: Mapping[str, Listener],
    *,
    poller: Poller,
    timers: Timers,
    shutdown: trio.Event,
    drain_s: float,
    answered: Answered = _tell_nobody,
    task_status: trio.TaskStatus[dict[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown`; calls in flight have `drain_s` then, after that they are UNAVAILABLE.

    Started with the port of each listener.  `answered` is told of each call: its method, its status and its seconds.
    Raises PortTaken.
    """
    async with trio.open_nursery() as calls:
        around = Surroundings(calls, timers, shutdown, answered, set(), trio.lowlevel.ParkingLot())
        doors: list[_Door] = []
        try:
            for listener in listeners.values():
                doors.append(_Door(listener, poller, around))
            task_status.started({name: door.port_number for name, door in zip(listeners, doors, strict=True)})
            await shutdown.wait()
            await _stop(doors, around, drain_s)
        finally:
            for door in doors:
                door.close()


async def _stop(doors: Sequence[_Door], around: Surroundings, drain_s: float) -> None:
    """No further calls, time for those in flight, then the end of the rest."""
    for door in doors:
        door.leave()
    with trio.move_on_after(drain_s):
        await _idle(around)
    for exchange in list(around.running):
        exchange.cut()
    await _idle(around)
    with trio.move_on_after(LINGER_S):  # answers on their way to slow clients
        while any(door.clients for door in doors):
            await around.fewer.park()


async def _idle(around: Surroundings) -> None:
    while around.running:
        await around.fewer.park()


class _Door:
    """A listening socket and its connections."""

    def __init__(self, listener: Listener, poller: Poller, around: Surroundings) -> None:
        """Raises PortTaken."""
        self._poller = poller
        self._timers = around.timers
        self._tls = listener.tls
        self._most = listener.most_connections
        self.clients: set[Client] = set()
        self._port = Port(
            _endpoints(listener),
            around,
            self.clients,
            max(HELD_BYTES, 2 * listener.most_bytes),
            _seconds(listener.max_age_ms),
            _seconds(listener.max_age_grace_ms),
        )
        self._sock = bind(listener.address.host, listener.address.port)
        self._sock.setblocking(False)
        self.port_number: int = self._sock.getsockname()[1]
        poller.watch(self._sock.fileno(), self)

    def leave(self) -> None:
        self._stop_listening()
        for client in list(self.clients):
            client.leave()

    def close(self) -> None:
        self._stop_listening()
        for client in list(self.clients):
            client.close()

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest, so that idle ones cannot keep others out."""
        idle = min((client for client in self.clients if client.idle), key=lambda c: c.idle_since, default=None)
        if idle is not None:
            idle.close()
        return idle is not None

    def _stop_listening(self) -> None:
        if self._sock.fileno() >= 0:
            self._poller.forget(self._sock.fileno())
            self._sock.close()

    # -- for the Poller

    def on_ready(self, events: int) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    _log.warning("no further connections for now: %s", e.strerror)
                    self._poller.forget(self._sock.fileno())
                    self._timers.after(ACCEPT_AGAIN_S, self._listen_again)
                    return
                continue  # that client has gone again
            if len(self.clients) >= self._most and not self._make_room():
                sock.close()
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            tls = self._tls.context if self._tls is not None else None
            Client(Transport(sock, self._poller, self._timers, tls=tls), address[0], self._port).start()

    def let_go(self) -> None:
        self._stop_listening()

    def _listen_again(self) -> None:
        if self._sock.fileno() >= 0:
            self._poller.watch(self._sock.fileno(), self)


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds is not None else None


def _endpoints(listener: Listener) -> dict[str, Endpoint]:
    """By the path that clients ask for."""
    found = {}
    for service in listener.services:
        described = POOL.FindServiceByName(service.name).methods_by_name
        for method in service.methods:
            name = f"{service.name}/{method.name}"
            read = GetMessageClass(described[method.name].input_type).FromString
            found[name] = Endpoint(name, service, method, read, listener.admit, listener.most_bytes)
    return found
