"""A PredictionsRequest put to the models, and its answer as PredictionResponses (spec/inference.md section 8.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from tserve.domain.wire import Input, JobRequest
from tserve.errors import BadRequest, StreamCut, TserveError
from tserve.grpc.messages import INFERENCE, message_of
from tserve.grpc.methods import Leave, Send, Tell
from tserve.services.inference import Answer, Inference, Stream

_Prediction = message_of(INFERENCE, "PredictionResponse")


class Asking:
    """Handlers get the inputs, which have no content type, and no headers but those of a sequence."""

    def __init__(self, inference: Inference, sequence_names: Sequence[str]) -> None:
        self._inference = inference
        self._id_name, self._start_name, self._end_name = sequence_names

    def begin(self, request: Any, request_id: str, tell: Tell) -> Leave:
        """One answer, as a message.  Raises as tserve.services.inference does, and BadRequest."""

        def told(outcome: Answer | TserveError) -> None:
            tell(prediction(outcome.first.body, outcome.sequence) if isinstance(outcome, Answer) else outcome)

        job = self._job(request, request_id, request.sequence_id)
        return self._inference.begin(request.model_name, request.model_version or None, job, told)

    async def begun(self, request: Any, request_id: str, *, sequence: str = "") -> Answer:
        """`sequence` stands in for the request's own.  Raises as `whole` does."""
        job = self._job(request, request_id, sequence or request.sequence_id)
        return await self._inference.predict(request.model_name, request.model_version or None, job)

    def is_stateful(self, request: Any) -> bool:
        """Raises BadRequest, ModelNotFound, ModelVersionNotFound."""
        return self._inference.is_stateful(_named(request), request.model_version or None)

    def starts(self, request: Any) -> bool:
        """Whether the request says that its sequence begins with it."""
        return _is_true(request, self._start_name)

    def _job(self, request: Any, request_id: str, sequence: str) -> JobRequest:
        inputs = tuple(Input(name, "", value) for name, value in request.input.items())
        headers: dict[str, str] = {}
        if self.is_stateful(request):
            flags = [name for name in (self._start_name, self._end_name) if _is_true(request, name)]
            headers = {**({self._id_name: sequence} if sequence else {}), **dict.fromkeys(flags, "true")}
        return JobRequest(request_id, headers, inputs)


def _named(request: Any) -> str:
    if not request.model_name:
        raise BadRequest("Parameter model_name is required.", cause={"field": "model_name"})
    return str(request.model_name)


def _is_true(request: Any, name: str) -> bool:
    # Asking a map for what it does not have would put it there.
    return name in request.input and bytes(request.input[name]).lower() == b"true"


def prediction(body: bytes, sequence: str) -> Any:
    return _Prediction(prediction=body, sequence_id=sequence or None)


async def pass_on(answer: Answer, send: Send) -> None:
    """Send the parts of an answer.  Raises TserveError for one that breaks off."""
    rest = answer.rest
    if rest is None:
        await send(prediction(answer.first.body, answer.sequence))
        return
    error: TserveError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_give_up, rest, nursery.cancel_scope)
            await send(prediction(answer.first.body, answer.sequence))
            try:
                async for part in rest:
                    await send(prediction(part, answer.sequence))
            except StreamCut as cut:
                error = cut.error
            nursery.cancel_scope.cancel()
        error = error or rest.overflown
    finally:
        rest.leave()
    if error is not None:
        raise error


async def _give_up(rest: Stream, sending: trio.CancelScope) -> None:
    """A client that does not read must not be waited for once its answer is given up."""
    await rest.given_up()
    sending.cancel()
