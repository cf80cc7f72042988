"""A web server under a test's hand: what each path answers, and what was asked."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

GOOD = "127.0.0.2"  # an address that tests allow, beside the loopback address that they do not


@dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str]


@dataclass
class Origin:
    """`pages`: path to what answers it, bytes or a function that gets the stream; anything else is 404."""

    host: str
    port: int = 0
    pages: dict[str, bytes | Callable[[Asked, trio.abc.SendStream], Awaitable[None]]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    def url(self, path: str = "/", scheme: str = "http") -> str:
        return f"{scheme}://{self.host}:{self.port}{path}"

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        try:
            async with stream:
                while await self._one(stream):
                    pass
        except trio.BrokenResourceError:
            pass

    async def _one(self, stream: trio.abc.Stream) -> bool:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = await stream.receive_some(65536)
            if not piece:
                return False
            head += piece
        line, *lines = head.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
        fields = (each.split(": ", 1) for each in lines)
        asked = Asked(line.split(" ")[1], {name.lower(): value for name, value in fields})
        self.asked.append(asked)
        page = self.pages.get(asked.path.partition("?")[0], reply(404))
        await stream.send_all(page) if isinstance(page, bytes) else await page(asked, stream)
        return isinstance(page, bytes)


def reply(status: int, body: bytes = b"", *headers: tuple[str, str]) -> bytes:
    """A whole answer with its length."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n" % (status, location.encode())


@asynccontextmanager
async def serving(host: str = GOOD, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Origin]:
    """An Origin with a port of its own at `host`."""
    made = Origin(host)
    async with trio.open_nursery() as nursery:
        if tls is None:
            listeners = await trio.open_tcp_listeners(0, host=host)
        else:
            listeners = await trio.open_ssl_over_tcp_listeners(0, tls, host=host, https_compatible=True)
        inner = getattr(listeners[0], "transport_listener", listeners[0])
        made.port = inner.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, made.serve, listeners)
        yield made
        nursery.cancel_scope.cancel()
