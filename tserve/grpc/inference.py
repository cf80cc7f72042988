"""The inference service (spec/inference.md section 8)."""

from __future__ import annotations

import json
from typing import Any

import grpc

from tserve.domain.wire import Input, JobRequest
from tserve.errors import BadRequest, ModelNotFound, ModelVersionNotFound, ServiceUnavailable, TserveError
from tserve.grpc.messages import INFERENCE, message
from tserve.grpc.methods import Call, Method, Refusal, Service, code_of_http, java_class
from tserve.services.health import Health
from tserve.services.inference import Inference

_PACKAGE = INFERENCE.rpartition(".")[0]
_Prediction = message(f"{_PACKAGE}.PredictionResponse")
_Health = message(f"{_PACKAGE}.TorchServeHealthResponse")
# Failures of the front end, whose class the recorded server prints differently (section 8.3).
_BY_FRONT_END = {BadRequest: "BadRequestException.()", ServiceUnavailable: "InternalServerException.()"}


def inference_service(inference: Inference, health: Health) -> Service:
    api = _InferenceApi(inference, health)
    return Service(
        INFERENCE,
        [
            Method("Ping", api.ping),
            Method("Predictions", api.predict),
        ],
        refuse,
    )


def refuse(error: TserveError) -> Refusal:
    """The recorded codes: all that the front end refuses is INTERNAL, what a worker says goes by its status."""
    if isinstance(error, (BadRequest, ServiceUnavailable)):
        return Refusal(grpc.StatusCode.INTERNAL, f"{error.message}\n{_BY_FRONT_END[type(error)]}", error.cause)
    unknown = isinstance(error, (ModelNotFound, ModelVersionNotFound))
    code = grpc.StatusCode.INTERNAL if unknown else code_of_http(error.code)
    return Refusal(code, f"{error.message}\n{java_class(error)}", error.cause)


class _InferenceApi:
    def __init__(self, inference: Inference, health: Health) -> None:
        self._inference = inference
        self._health = health

    async def ping(self, request: Any, call: Call) -> Any:
        healthy = self._health.healthy()
        return _Health(health=json.dumps({"status": "Healthy" if healthy else "Unhealthy"}, indent=2))

    async def predict(self, request: Any, call: Call) -> Any:
        if not request.model_name:
            raise BadRequest("Parameter model_name is required.", cause={"field": "model_name"})
        inputs = tuple(Input(name, "", value) for name, value in request.input.items())
        job = JobRequest(call.request_id, {}, inputs)
        answer = await self._inference.predict(request.model_name, request.model_version or None, job)
        return _Prediction(prediction=answer.first.body)
