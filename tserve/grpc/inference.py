"""The inference service (spec/inference.md section 8)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tserve.errors import BadRequest, ModelNotFound, ModelVersionNotFound, ServiceUnavailable, TserveError
from tserve.grpc.asking import Asking, pass_on
from tserve.grpc.codes import Code
from tserve.grpc.conversation import Conversation
from tserve.grpc.messages import INFERENCE, message_of
from tserve.grpc.methods import Call, Leave, Method, Refusal, Send, Service, Tell, code_of_http, java_class
from tserve.services.health import Health
from tserve.services.inference import Inference

_Health = message_of(INFERENCE, "TorchServeHealthResponse")
# Failures of the front end, whose class the recorded server prints differently (section 8.3).
_BY_FRONT_END = {BadRequest: "BadRequestException.()", ServiceUnavailable: "InternalServerException.()"}


def inference_service(inference: Inference, health: Health, *, sequence_names: Sequence[str]) -> Service:
    """`sequence_names` are those of the inputs that say a sequence's id, start and end, headers over REST."""
    api = _InferenceApi(Asking(inference, sequence_names), health)
    return Service(
        INFERENCE,
        [
            Method("Ping", api.ping),
            Method("Predictions", begin=api.predict),
            Method("StreamPredictions", api.stream, streams_replies=True),
            Method("StreamPredictions2", api.converse, streams_requests=True, streams_replies=True),
        ],
        refuse,
    )


def refuse(error: TserveError) -> Refusal:
    """The recorded codes: all that the front end refuses is INTERNAL, what a worker says goes by its status."""
    for kind, shown in _BY_FRONT_END.items():
        if isinstance(error, kind):
            return Refusal(Code.INTERNAL, f"{error.message}\n{shown}", error.cause)
    unknown = isinstance(error, (ModelNotFound, ModelVersionNotFound))
    code = Code.INTERNAL if unknown else code_of_http(error.code)
    return Refusal(code, f"{error.message}\n{java_class(error)}", error.cause)


class _InferenceApi:
    def __init__(self, asking: Asking, health: Health) -> None:
        self._asking = asking
        self._health = health

    async def ping(self, request: Any, call: Call) -> Any:
        healthy = self._health.healthy()
        return _Health(health=json.dumps({"status": "Healthy" if healthy else "Unhealthy"}, indent=2))

    def predict(self, request: Any, call: Call, tell: Tell) -> Leave:
        """What a handler streams is joined: the recorded server loses the worker over it."""
        return self._asking.begin(request, call.request_id, tell)

    async def stream(self, request: Any, call: Call, send: Send) -> None:
        """Each part as it comes; an answer in one part is one message."""
        await pass_on(await self._asking.begun(request, call.request_id), send)

    async def converse(self, requests: AsyncIterator[Any], call: Call, send: Send) -> None:
        await Conversation(self._asking, send, refuse).run(requests, call.stopping)
