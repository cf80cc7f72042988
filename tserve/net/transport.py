"""One connected socket in a Poller's care, with TLS or without: bytes in by callback, bytes out without waiting."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from tserve.net.poller import READ, WRITE, Poller
from tserve.net.timers import Timer, Timers

CHUNK = 256 << 10


class Receiver(Protocol):
    """The protocol that is spoken over a Transport."""

    def received(self, data: bytes) -> None: ...

    def flushed(self) -> None:
        """All that was written is with the kernel."""
        ...

    def lost(self) -> None:
        """The client has gone, or will say no more.  Said once; nothing else is said after it."""
        ...


class Transport:
    """Owns the socket: it is closed by `close`, by `finish`, or when the client has gone."""

    def __init__(
        self, sock: socket.socket, poller: Poller, timers: Timers, *, tls: ssl.SSLContext | None = None
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._poller = poller
        self._timers = timers
        self._tls = _Tls(tls) if tls is not None else None
        self._receiver: Receiver | None = None
        self._out: list[bytes] = []
        self._rest = memoryview(b"")  # what the kernel did not take
        self._scheduled = self._ending = False
        self._events = self._reading = READ
        self._linger: Timer | None = None
        self.unsent = 0  # bytes

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._poller.watch(self._sock.fileno(), self)

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def write(self, data: bytes) -> None:
        """Never waits: whoever writes looks at `unsent`."""
        if self.closed or self._ending:
            return
        self._out.append(data)
        self.unsent += len(data)
        if not self._scheduled and not self._rest:
            self._scheduled = True
            self._poller.soon(self._flush)

    def pause(self, paused: bool) -> None:
        """Read nothing more, or go on."""
        self._reading = 0 if paused else READ
        if not self.closed:
            self._watch(self._reading | self._events & WRITE)

    def soon(self, act: Callable[[], None]) -> None:
        """As Poller.soon."""
        self._poller.soon(act)

    def finish(self, linger_s: float) -> None:
        """Close when all is sent and the client has closed too, after `linger_s` in any case.

        The receiver is told nothing more.
        """
        if self.closed or self._ending:
            return
        self._ending, self._receiver = True, None
        self.pause(False)
        self._linger = self._timers.after(linger_s, self.close)
        if not self._rest and not self._out:
            self._shut()

    def close(self) -> None:
        """Now.  The receiver is told nothing."""
        self._receiver = None
        if self._linger is not None:
            self._linger.cancel()
        if not self.closed:
            self._poller.forget(self._sock.fileno())
            self._sock.close()
        self._out.clear()
        self._rest = memoryview(b"")
        self.unsent = 0

    # -- for the Poller

    def on_ready(self, events: int) -> None:
        if events & WRITE and not self.closed:
            self._flush()
        if events & ~WRITE and not self.closed:
            self._read()

    def let_go(self) -> None:
        self._lose()

    def _read(self) -> None:
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        alive = bool(data)
        if self._tls is not None and data:
            data, alive = self._tls.decrypt(data)
            if self._tls.has_more and not self._rest:
                self._flush()
        if data and self._receiver is not None:
            self._receiver.received(data)
        if not alive:
            self._lose()

    def _lose(self) -> None:
        receiver = self._receiver
        self.close()
        if receiver is not None:
            receiver.lost()

    def _flush(self) -> None:
        self._scheduled = False
        if self.closed:
            return
        if not self._rest:
            self._rest = self._take_out()
        try:
            while self._rest:
                self._rest = self._rest[self._sock.send(self._rest) :]
                if not self._rest:
                    self._rest = self._take_out()
        except BlockingIOError:
            self._watch(self._reading | WRITE)
            return
        except OSError:
            self._lose()
            return
        self.unsent = self._tls.early_bytes if self._tls is not None else 0
        self._watch(self._reading)
        if self._ending:
            self._shut()
        elif self._receiver is not None and not self.unsent:
            self._receiver.flushed()

    def _take_out(self) -> memoryview:
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        if self._tls is not None:
            data = self._tls.encrypt(data)
        self.unsent = len(data)
        return memoryview(data)

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._poller.change(self._sock.fileno(), events)

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)


class _Tls:
    """TLS without a socket; what is written before the handshake is over waits for it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._outgoing, server_side=True)
        self._shaken = False
        self._early: list[bytes] = []

    @property
    def early_bytes(self) -> int:
        return sum(map(len, self._early))

    @property
    def has_more(self) -> bool:
        """Something to be sent that nobody wrote."""
        return self._outgoing.pending > 0

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """What the client said, and whether it may say more."""
        self._in.write(data)
        said: list[bytes] = []
        try:
            if not self._shaken:
                self._object.do_handshake()
                self._shaken = True
                for early in self._early:
                    self._object.write(early)
                self._early.clear()
            while part := self._object.read(CHUNK):
                said.append(part)
        except ssl.SSLWantReadError:
            return b"".join(said), True
        except ssl.SSLError:
            return b"", False
        return b"".join(said), False

    def encrypt(self, data: bytes) -> bytes:
        if data and self._shaken:
            self._object.write(data)
        elif data:
            self._early.append(data)
        return self._outgoing.read()
