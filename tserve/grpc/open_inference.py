"""The Open Inference Protocol as a service, in both of its packages (spec/inference.md section 8.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

from tserve.errors import BadRequest, TserveError
from tserve.grpc.codes import Code
from tserve.grpc.messages import OPEN_INFERENCE, STANDARD_OPEN_INFERENCE, message_of
from tserve.grpc.methods import Call, Method, Refusal, Service, code_of_http, java_class
from tserve.grpc.tensor_calls import fill_response, job_of, wants_raw
from tserve.services.inference import Inference
from tserve.services.open_inference import EXTENSIONS, NAME, PLATFORM, VERSION, OpenInference

T = TypeVar("T")
LARGE_BYTES = 128 << 10  # of a message: converting its tensors would hold the loop for milliseconds
CONVERSIONS = 2  # at once; they compete for one interpreter


def open_inference_services(protocol: OpenInference, inference: Inference) -> list[Service]:
    converting = trio.CapacityLimiter(CONVERSIONS)
    return [
        _service(name, _OpenInferenceApi(name, protocol, inference, converting))
        for name in (OPEN_INFERENCE, STANDARD_OPEN_INFERENCE)
    ]


def _service(name: str, api: _OpenInferenceApi) -> Service:
    methods = [
        Method("ServerLive", api.live),
        Method("ServerReady", api.ready),
        Method("ModelReady", api.model_ready),
        Method("ServerMetadata", api.server),
        Method("ModelMetadata", api.model),
        Method("ModelInfer", api.infer),
    ]
    return Service(name, methods, refuse)


def refuse(error: TserveError) -> Refusal:
    """By the number of the error, unlike in the service beside this one."""
    return Refusal(code_of_http(error.code), f"{error.message}\n{java_class(error)}", error.cause)


class _OpenInferenceApi:
    def __init__(
        self, service: str, protocol: OpenInference, inference: Inference, converting: trio.CapacityLimiter
    ) -> None:
        self._reply = {
            method: message_of(service, f"{method}Response")
            for method in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
        }
        self._protocol = protocol
        self._inference = inference
        self._converting = converting

    async def live(self, request: Any, call: Call) -> Any:
        return self._reply["ServerLive"](live=True)

    async def ready(self, request: Any, call: Call) -> Any:
        return self._reply["ServerReady"](ready=self._protocol.server_is_ready())

    async def model_ready(self, request: Any, call: Call) -> Any:
        ready = self._protocol.is_ready(_named(request.name), request.version or None)
        return self._reply["ModelReady"](ready=ready)

    async def server(self, request: Any, call: Call) -> Any:
        return self._reply["ServerMetadata"](name=NAME, version=VERSION, extensions=EXTENSIONS)

    async def model(self, request: Any, call: Call) -> Any:
        found = self._protocol.metadata(_named(request.name), request.version or None)
        reply = self._reply["ModelMetadata"](name=found.name, versions=found.versions, platform=PLATFORM)
        for tensors, shown in ((reply.inputs, found.inputs), (reply.outputs, found.outputs)):
            for tensor in shown:
                tensors.add(name=str(tensor["name"]), datatype=str(tensor["datatype"]), shape=tensor["shape"])
        return reply

    async def infer(self, request: Any, call: Call) -> Any:
        name, version = _named(request.model_name), request.model_version or None
        binary = self._protocol.takes_binary(name, version)
        size = request.ByteSize()
        job = await self._convert(size, lambda: job_of(request, call.request_id, binary=binary))
        answer = await self._inference.predict_whole(name, version, job)
        reply = self._reply["ModelInfer"](model_name=name, id=request.id)
        raw = wants_raw(request)
        await self._convert(len(answer.first.body), lambda: fill_response(reply, answer.first, raw=raw))
        return reply

    async def _convert(self, size: int, act: Callable[[], T]) -> T:
        if size < LARGE_BYTES:
            return act()
        return await trio.to_thread.run_sync(act, limiter=self._converting)


def _named(name: str) -> str:
    """Raises Refusal with the recorded status."""
    if not name:
        error = BadRequest("Parameter name is required.", cause={"field": "name"})
        raise Refusal(Code.INTERNAL, f"{error.message}\nBadRequestException.()", error.cause)
    return name
