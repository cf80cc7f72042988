"""The gRPC listeners: grpc.aio in a thread of its own, every method served in Trio.

To be imported only when it is needed: gRPC takes a tenth of a second to import, and nothing that forks may have it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import trio
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tserve.errors import BadRequest, PortTaken, TserveError
from tserve.grpc.bridge import Bridge, Inlet, Outlet, Stopping
from tserve.grpc.messages import POOL
from tserve.grpc.methods import Call, Method, Refusal, Service, server_stops
from tserve.settings import Address

HOLD_S = 1.0  # for answers on their way to slow clients when all calls are over
_FOR_EVER_S = 1e6  # of grace; what is waited for is said otherwise
_log = logging.getLogger("tserve.grpc")
Answered = Callable[[str, str, float], None]
Admit = Callable[[Call], None]


def admit_all(call: Call) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Listener:
    """Port 0 of the address is any port; messages of more than `most_bytes` are refused.

    `admit` sees every call before anything of its message is looked at, and raises TserveError for those that may not
    be made.
    `credentials` None is no TLS.  Ages in milliseconds.
    """

    address: Address
    services: Sequence[Service]
    most_bytes: int
    admit: Admit = admit_all
    credentials: grpc.ServerCredentials | None = None
    max_age_ms: int | None = None
    max_age_grace_ms: int | None = None

    def options(self) -> list[tuple[str, Any]]:
        ages = {
            "grpc.max_connection_age_ms": self.max_age_ms,
            "grpc.max_connection_age_grace_ms": self.max_age_grace_ms,
        }
        return [
            ("grpc.so_reuseport", 0),  # a second server on the same port must fail
            ("grpc.max_receive_message_length", self.most_bytes),
            ("grpc.max_send_message_length", -1),  # answers are bounded where they come from
            *((name, value) for name, value in ages.items() if value is not None),
        ]


def _tell_nobody(method: str, code: str, seconds: float) -> None:
    pass


async def serve(
    listeners: Mapping[str, Listener],
    *,
    shutdown: trio.Event,
    drain_s: float,
    answered: Answered = _tell_nobody,
    task_status: trio.TaskStatus[dict[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown`; calls in flight have `drain_s` then, after that they are UNAVAILABLE.

    Started with the port of each listener.  `answered` is told of each call: its method, its status and its seconds.
    Raises PortTaken.
    """
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_a_line)
    bridge = Bridge()
    servers = _Servers(bridge, listeners, shutdown, answered)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(servers.report, task_status)
        nursery.start_soon(servers.stop, drain_s)
        await bridge.run(servers.run)
        nursery.cancel_scope.cancel()


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not that a client left while it was sent something, which gRPC takes for an error."""
    return not str(record.msg).startswith("ExecuteBatchError")


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """A method where it is served, and how to read what it is sent."""

    listener: Listener
    service: Service
    method: Method
    read: Callable[[bytes], Any]


class _Servers:
    def __init__(
        self, bridge: Bridge, listeners: Mapping[str, Listener], shutdown: trio.Event, answered: Answered
    ) -> None:
        self._bridge = bridge
        self._listeners = listeners
        self._shutdown = shutdown
        self._answered = answered
        self._ports: dict[str, int] = {}
        self._listening, self._closed = trio.Event(), trio.Event()

    # -- in Trio

    async def report(self, task_status: trio.TaskStatus[dict[str, int]]) -> None:
        await self._listening.wait()
        task_status.started(self._ports)

    async def stop(self, drain_s: float) -> None:
        """At shutdown: no further calls, time for those in flight, then the end of the rest."""
        await self._listening.wait()
        await self._shutdown.wait()
        self._bridge.to_loop(lambda: self._close.set())
        await self._closed.wait()
        with trio.move_on_after(drain_s):
            await self._bridge.idle()
        self._bridge.cut()
        await self._bridge.idle()
        self._bridge.to_loop(lambda: self._end.set())

    async def _serve(self, at: _Endpoint, call: Call, request: Any, *send: Any) -> Any:
        """One call: the reply, or Refusal for whatever keeps it from one.  This is where calls are admitted."""
        begun, code = trio.current_time(), grpc.StatusCode.CANCELLED
        try:
            at.listener.admit(call)
            asked = _readable(at.read, request) if at.method.streams_requests else _read(at.read, request)
            reply = await at.method.serve(asked, call, *send)
            code = grpc.StatusCode.OK
            return reply
        except Refusal as refusal:
            code = refusal.code
            raise
        except TserveError as e:
            told = at.service.refuse(e)
            code = told.code
            raise told from e
        except Exception as e:  # a bug of ours, told as one
            _log.exception("%s failed", call.method)
            code = grpc.StatusCode.INTERNAL
            raise Refusal(code, f"Internal server error: {type(e).__name__}", {"reason": "bug"}) from e
        finally:
            self._answered(call.method, code.name, trio.current_time() - begun)

    # -- in the loop

    async def run(self) -> None:
        self._close, self._end = asyncio.Event(), asyncio.Event()
        servers: list[grpc.aio.Server] = []
        try:
            for name, listener in self._listeners.items():
                server = grpc.aio.server(options=listener.options())
                servers.append(server)
                self._ports[name] = _bind(server, listener)
                self._add(server, listener)
                await server.start()
            self._bridge.to_trio(self._listening.set)
            await self._close.wait()
            await self._stop(servers)
        finally:
            for server in servers:
                await server.stop(None)

    async def _stop(self, servers: Sequence[grpc.aio.Server]) -> None:
        stopping = [asyncio.ensure_future(server.stop(_FOR_EVER_S)) for server in servers]
        await asyncio.sleep(0)  # they have begun: whatever comes in now is refused
        self._bridge.to_trio(self._closed.set)
        await self._end.wait()
        await asyncio.wait(stopping, timeout=HOLD_S)
        await asyncio.gather(*(server.stop(None) for server in servers), *stopping)

    def _add(self, server: grpc.aio.Server, listener: Listener) -> None:
        for service in listener.services:
            handlers = {method.name: self._handler(listener, service, method) for method in service.methods}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, handlers),))
        server.add_generic_rpc_handlers((_Unknown(),))

    def _handler(self, listener: Listener, service: Service, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        described = POOL.FindServiceByName(service.name).methods_by_name[method.name]
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.streams_requests, method.streams_replies]
        at = _Endpoint(listener, service, method, GetMessageClass(described.input_type).FromString)
        act = self._stream if method.streams_replies else self._unary
        # No deserializer: what cannot be read shall have a status, not a traceback in gRPC's log.
        reply = GetMessageClass(described.output_type)
        return make(partial(act, at), response_serializer=reply.SerializeToString)

    async def _unary(self, at: _Endpoint, request: bytes, context: Any) -> Any:
        call = self._call(at, context)
        try:
            return await self._bridge.call(partial(self._serve, at, call, request))
        except Refusal as refusal:
            await _refuse(context, refusal)
        except Stopping:
            await _refuse(context, server_stops())

    async def _stream(self, at: _Endpoint, requests: Any, context: Any) -> None:
        call = self._call(at, context)
        outlet = Outlet[Any](self._bridge)
        feeding = None
        if at.method.streams_requests:
            inlet = Inlet[bytes](self._bridge)
            feeding = asyncio.ensure_future(inlet.feed(requests))
            requests = inlet
        try:
            await outlet.drain(partial(self._serve, at, call, requests, outlet.send), context.write)
        except Refusal as refusal:
            await _refuse(context, refusal)
        except Stopping:
            await _refuse(context, server_stops())
        finally:
            if feeding is not None:
                feeding.cancel()

    def _call(self, at: _Endpoint, context: Any) -> Call:
        metadata = dict(context.invocation_metadata() or ())
        name = f"{at.service.name}/{at.method.name}"
        return Call(name, _address(context.peer()), str(uuid.uuid4()), metadata, self._shutdown)


class _Unknown(grpc.GenericRpcHandler):
    """Methods that nobody has, in the recorded words."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(request: bytes, context: Any) -> None:
            name = details.method.removeprefix("/")
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"Method not found: {name}")

        return grpc.unary_unary_rpc_method_handler(refuse)


def _bind(server: grpc.aio.Server, listener: Listener) -> int:
    """The port.  Raises PortTaken."""
    with suppress(RuntimeError):
        if listener.credentials is not None:
            port = server.add_secure_port(listener.address.netloc, listener.credentials)
        else:
            port = server.add_insecure_port(listener.address.netloc)
        if port:
            return port
    raise PortTaken(f"Cannot listen on {listener.address.netloc} for gRPC")


def _address(peer: str) -> str:
    """`127.0.0.1` of `ipv4:127.0.0.1:4242`, `::1` of `ipv6:%5B::1%5D:4242`."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]") or peer


async def _refuse(context: Any, refusal: Refusal) -> None:
    await context.abort(refusal.code, refusal.text, refusal.trailing)


def _read(read: Callable[[bytes], Any], data: bytes) -> Any:
    """The message.  Raises BadRequest."""
    try:
        return read(data)
    except DecodeError:
        raise BadRequest("The request is not a message of its type.", cause={"reason": "undecodable"}) from None


async def _readable(read: Callable[[bytes], Any], messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for data in messages:
        yield _read(read, data)
