"""TLS on a listener's connections, and the answer to those who speak plain HTTP to it."""

from __future__ import annotations

import socket
import ssl

import trio

from tserve.http.http1 import only_https_response

_HANDSHAKE = 0x16  # the first byte of every TLS connection


class SecureStream:
    """A TLS connection as tserve.http.connection reads and writes one."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        self.socket = stream.socket
        self._tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)

    async def shake_hands(self) -> None:
        """Raises BrokenResourceError."""
        await self._tls.do_handshake()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._tls.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._tls.send_all(data)

    async def send_eof(self) -> None:
        """Say that nothing follows, and wait for the client to say so too."""
        await self._tls.unwrap()


async def secured(stream: trio.SocketStream, context: ssl.SSLContext, *, limit_s: float) -> SecureStream | None:
    """The connection with TLS; None for a client that does not speak it, which has been told so, if it speaks HTTP.

    Raises BrokenResourceError for a handshake that fails; a client that takes more than `limit_s` is let go.
    """
    with trio.move_on_after(limit_s):
        first = await stream.socket.recv(1, socket.MSG_PEEK)
        if first and first[0] == _HANDSHAKE:
            secure = SecureStream(stream, context)
            await secure.shake_hands()
            return secure
        if first:
            await stream.send_all(only_https_response())
            await stream.send_eof()
            while await stream.receive_some():  # else a reset could destroy the answer
                pass
    return None
