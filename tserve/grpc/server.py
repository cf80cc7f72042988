"""The gRPC listeners: grpc.aio in a thread of its own, every method served in Trio.

To be imported only when it is needed: gRPC takes a tenth of a second to import, and nothing that forks may have it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import trio
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection

from tserve.errors import PortTaken, TserveError
from tserve.grpc.bridge import Bridge, Inlet, Outlet, Stopping
from tserve.grpc.messages import POOL
from tserve.grpc.methods import Call, Method, Refusal, Service
from tserve.settings import Address

_STOPPING = "The server is stopping."
_log = logging.getLogger("tserve.grpc")
Answered = Callable[[str, str, float], None]


@dataclass(frozen=True, slots=True)
class Listener:
    """Port 0 of the address is any port; messages of more than `most_bytes` are refused.

    `credentials` None is no TLS.  Ages in milliseconds.
    """

    address: Address
    services: Sequence[Service]
    most_bytes: int
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
    """Serve until `shutdown`; calls in flight have `drain_s` then.  Started with the port of each listener.

    `answered` is told of each call: its method, its status and its seconds.  Raises PortTaken.
    """
    bridge = Bridge()
    servers = _Servers(bridge, listeners, answered)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(servers.report, task_status)
        nursery.start_soon(servers.stop_at, shutdown, drain_s)
        await bridge.run(servers.run)
        nursery.cancel_scope.cancel()


class _Servers:
    def __init__(self, bridge: Bridge, listeners: Mapping[str, Listener], answered: Answered) -> None:
        self._bridge = bridge
        self._listeners = listeners
        self._answered = answered
        self._ports: dict[str, int] = {}
        self._listening = trio.Event()
        self._drain_s = 0.0

    # -- in Trio

    async def report(self, task_status: trio.TaskStatus[dict[str, int]]) -> None:
        await self._listening.wait()
        task_status.started(self._ports)

    async def stop_at(self, shutdown: trio.Event, drain_s: float) -> None:
        await shutdown.wait()
        self._drain_s = drain_s
        self._bridge.to_loop(lambda: self._stop.set())

    async def _serve(self, service: Service, method: Method, call: Call, *arguments: Any) -> Any:
        """One call: the reply, or Refusal for whatever keeps it from one."""
        begun, code = trio.current_time(), grpc.StatusCode.CANCELLED
        try:
            reply = await method.serve(*arguments)
            code = grpc.StatusCode.OK
            return reply
        except TserveError as e:
            refusal = service.refuse(e)
            code = refusal.code
            raise refusal from e
        except Exception as e:  # a bug of ours, told as one
            _log.exception("%s failed", call.method)
            code = grpc.StatusCode.INTERNAL
            raise Refusal(code, f"Internal server error: {type(e).__name__}", {"reason": "bug"}) from e
        finally:
            self._answered(call.method, code.name, trio.current_time() - begun)

    # -- in the loop

    async def run(self) -> None:
        self._stop = asyncio.Event()
        servers = []
        try:
            for name, listener in self._listeners.items():
                server = grpc.aio.server(options=listener.options())
                servers.append(server)
                self._ports[name] = _bind(server, listener)
                self._add(server, listener)
                await server.start()
            self._bridge.to_trio(self._listening.set)
            await self._stop.wait()
            await asyncio.gather(*(server.stop(self._drain_s) for server in servers))
        finally:
            for server in servers:
                await server.stop(0)

    def _add(self, server: grpc.aio.Server, listener: Listener) -> None:
        for service in listener.services:
            handlers = {method.name: self._handler(service, method) for method in service.methods}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, handlers),))
        names = [*(service.name for service in listener.services), reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, server, pool=POOL)
        server.add_generic_rpc_handlers((_Unknown(),))

    def _handler(self, service: Service, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        described = POOL.FindServiceByName(service.name).methods_by_name[method.name]
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.streams_requests, method.streams_replies]
        request, reply = GetMessageClass(described.input_type), GetMessageClass(described.output_type)
        act = self._stream if method.streams_replies else self._unary
        return make(
            partial(act, service, method),
            request_deserializer=request.FromString,
            response_serializer=reply.SerializeToString,
        )

    async def _unary(self, service: Service, method: Method, request: Any, context: Any) -> Any:
        call = _call(service, method, context)
        try:
            return await self._bridge.call(lambda: self._serve(service, method, call, request, call))
        except Refusal as refusal:
            await _refuse(context, refusal)
        except Stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _STOPPING)

    async def _stream(self, service: Service, method: Method, requests: Any, context: Any) -> None:
        call = _call(service, method, context)
        outlet = Outlet[Any](self._bridge)
        feeding = None
        if method.streams_requests:
            inlet = Inlet[Any](self._bridge)
            feeding = asyncio.ensure_future(inlet.feed(requests))
            requests = inlet
        try:
            act = partial(self._serve, service, method, call, requests, call, outlet.send)
            await outlet.drain(act, context.write)
        except Refusal as refusal:
            await _refuse(context, refusal)
        except Stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _STOPPING)
        finally:
            if feeding is not None:
                feeding.cancel()


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


def _call(service: Service, method: Method, context: Any) -> Call:
    metadata = dict(context.invocation_metadata() or ())
    return Call(f"{service.name}/{method.name}", _address(context.peer()), str(uuid.uuid4()), metadata)


def _address(peer: str) -> str:
    """`127.0.0.1` of `ipv4:127.0.0.1:4242`, `::1` of `ipv6:%5B::1%5D:4242`."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]") or peer


async def _refuse(context: Any, refusal: Refusal) -> None:
    await context.abort(refusal.code, refusal.details, refusal.trailing)
