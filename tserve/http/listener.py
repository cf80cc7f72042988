"""A listening socket, its connections and their end: the boundary around Hypercorn.

Nothing that one client does reaches another client or the server, and `serve` returns in bounded time whatever
clients do.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from operator import itemgetter

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.typing import ASGIFramework

from tserve.http.connection import HEAD_S, Connection, Stream
from tserve.http.http1 import invalid_message_response, too_many_connections_response
from tserve.http.secure import secured
from tserve.net.tls import Tls

__all__ = ["Listener", "invalid_message_response", "serve"]

MOST_CONNECTIONS = 4096
TURN_AWAY_S = 1.0

log = logging.getLogger("tserve.http")


class Listener:
    """What the connections of one ASGI application share; it owns them while `serve_connection` runs."""

    def __init__(self, app: ASGIFramework, tls: Tls | None = None, *, most_connections: int = MOST_CONNECTIONS) -> None:
        self._tls = tls
        self._most = most_connections
        self._count = 0
        self._app = ASGIWrapper(app)
        self._config = _hypercorn_config()
        self._open: set[Connection] = set()
        self._stopping = False
        self._all_gone = trio.Event()
        self._end_at = inf

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        """Serve one client until it or we are done.  Raises nothing but Cancelled, and always closes the stream."""
        self._count += 1
        try:
            with stream.socket:
                if self._count > self._most and not self._make_room():
                    await self._turn_away(stream)
                    return
                found = stream if self._tls is None else await secured(stream, self._tls.context, limit_s=HEAD_S)
                if found is not None:
                    await self._serve_stream(found)
        except* (OSError, trio.BrokenResourceError) as group:
            log.debug("a connection broke", exc_info=group)
        except* Exception as group:
            log.warning("a connection was closed on an error in its protocol", exc_info=group)
        finally:
            self._count -= 1

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest, so that idle ones cannot keep others out."""
        idle = [(since, connection) for connection in self._open if (since := connection.idle_since) is not None]
        if idle:
            min(idle, key=itemgetter(0))[1].make_room()
        return bool(idle)

    async def _turn_away(self, stream: trio.SocketStream) -> None:
        if self._tls is None:
            with trio.move_on_after(TURN_AWAY_S):
                await stream.send_all(too_many_connections_response(self._most))
                await stream.send_eof()
                while await stream.receive_some():  # else a reset could destroy the answer
                    pass

    async def _serve_stream(self, stream: Stream) -> None:
        connection = Connection(self._app, self._config, stream)
        self._open.add(connection)
        try:
            if self._stopping:
                await connection.stop()
            await connection.run()
        finally:
            connection.close()
            self._open.discard(connection)

    async def run(
        self,
        sock: socket.socket,
        *,
        shutdown: trio.Event,
        drain_s: float,
        hard_s: float,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept on `sock` until `shutdown`, then end as `serve` says."""
        async with self._lifespan(), trio.open_nursery() as lifetime:
            lifetime.start_soon(self._cut_off, hard_s)
            try:
                async with trio.open_nursery() as connections:
                    await self._accept(sock, connections, shutdown, task_status)
                    self._end_at = trio.current_time() + drain_s + hard_s
                    lifetime.cancel_scope.deadline = trio.current_time() + drain_s
                    self._stopping = True
                    for connection in list(self._open):
                        await connection.stop()
            finally:
                self._all_gone.set()
            lifetime.cancel_scope.cancel()

    async def _accept(
        self,
        sock: socket.socket,
        connections: trio.Nursery,
        shutdown: trio.Event,
        task_status: trio.TaskStatus[None],
    ) -> None:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as acceptor:
            accept = partial(trio.serve_listeners, self.serve_connection, [listener], handler_nursery=connections)
            await acceptor.start(accept)
            task_status.started()
            await shutdown.wait()
            acceptor.cancel_scope.cancel()

    async def _cut_off(self, hard_s: float) -> None:
        """Sleep until the connections are cancelled, by the drain's end or from outside; hard_s later close them.

        A shielded send to a client that does not read outlives the cancellation, but not its socket.
        """
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(hard_s, shield=True):
                await self._all_gone.wait()
            for connection in self._open:
                connection.close()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        """The ASGI lifespan around the body; an application may decline it or return early."""
        lifespan = Lifespan(self._app, self._config, {})
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            if not lifespan.startup.is_set():
                await lifespan.wait_for_startup()
            yield
            if not lifespan.shutdown.is_set():
                with trio.move_on_at(self._end_at):
                    await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()


async def serve(
    app: ASGIFramework,
    sock: socket.socket,
    *,
    tls: Tls | None = None,
    most_connections: int = MOST_CONNECTIONS,
    shutdown: trio.Event,
    drain_s: float,
    hard_s: float,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application on a listening socket until `shutdown` is set, and close the socket.

    Where there are `most_connections`, a new one takes the place of the one that has been idle for longest; when none
    is idle it is answered 503.

    From then on nothing is accepted and idle connections are closed.  Requests in flight have `drain_s` seconds,
    after which their tasks are cancelled; `hard_s` seconds later their sockets are closed.  So this returns within
    `drain_s + hard_s`, except that an application which shields itself from cancellation bounds itself.  Cancelling
    `serve` skips the drain.
    """
    with sock:
        await Listener(app, tls, most_connections=most_connections).run(
            sock, shutdown=shutdown, drain_s=drain_s, hard_s=hard_s, task_status=task_status
        )


def _hypercorn_config() -> Config:
    """Hypercorn's settings; the timeouts are not among them, tserve.http.connection keeps the time."""
    config = Config()
    config.include_date_header = False
    config.include_server_header = False
    config.keep_alive_max_requests = sys.maxsize
    config.h11_max_incomplete_size = 16 * 1024
    config.h11_pass_raw_headers = True  # handlers see the spelling that the client chose (spec/inference.md section 2)
    config.accesslog = None
    config.errorlog = log
    config.shutdown_timeout = inf
    return config
