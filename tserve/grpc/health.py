"""The standard health service, `grpc.health.v1.Health`: what orchestrators ask (docs/grpc.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import trio

from tserve.grpc.codes import Code
from tserve.grpc.messages import HEALTH, message_of
from tserve.grpc.methods import Call, Method, Refusal, Send, Service, refuse_by_code

LOOK_AGAIN_S = 0.5  # for those who watch: nothing tells of a change
_Response = message_of(HEALTH, "HealthCheckResponse")


def health_service(serving: Mapping[str, Callable[[], bool]]) -> Service:
    """`serving` says of each service of a port whether it serves now; the empty name is the port as a whole."""
    api = _HealthApi(serving)
    return Service(
        HEALTH, [Method("Check", api.check), Method("Watch", api.watch, streams_replies=True)], refuse_by_code
    )


class _HealthApi:
    def __init__(self, serving: Mapping[str, Callable[[], bool]]) -> None:
        self._serving = serving

    async def check(self, request: Any, call: Call) -> Any:
        """As `/tserve/readyz` has it for inference; the management API serves whatever the models do."""
        status = self._status(request.service, call)
        if status == _Response.SERVICE_UNKNOWN:
            raise Refusal(Code.NOT_FOUND, f"There is no service {request.service!r} here.", {})
        return _Response(status=status)

    async def watch(self, request: Any, call: Call, send: Send) -> None:
        """Ends with NOT_SERVING when the server begins to stop."""
        told = None
        while True:
            status = self._status(request.service, call)
            if status != told:
                await send(_Response(status=status))
                told = status
            if call.stopping.is_set():
                return
            with trio.move_on_after(LOOK_AGAIN_S):
                await call.stopping.wait()

    def _status(self, service: str, call: Call) -> Any:
        serves = self._serving.get(service)
        if serves is None:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if serves() and not call.stopping.is_set() else _Response.NOT_SERVING
