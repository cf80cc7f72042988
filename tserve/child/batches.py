"""One batch through the handler: decode inputs, call, check and encode what came back.

Rules: spec/inference.md sections 2 (decoding), 3 (encoding) and 4.2 (what each failure becomes).
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

from tserve.child.loader import Model
from tserve.child.words import say, text_of, traceback_of
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import STREAM_NEXT, Answers, HandlerFailed, Input, JobReply, JobRequest

_DETAIL_LIMIT = 16 << 10
_STATUS_LIMIT = 1 << 31  # what is a status is for the server to say; but a frame cannot carry any number


Send = Callable[[Answers], None]


class Batch:
    """The requests in hand of one call of the handler; `send` takes what it gives away before it returns."""

    def __init__(self, context: Any, spec: WorkerSpec, requests: list[JobRequest], send: Send) -> None:
        from ts.context import RequestProcessor

        self._context, self._spec, self._send = context, spec, send
        self._size = len(requests)
        self._over = False
        context.request_ids = {i: request.request_id for i, request in enumerate(requests)}
        context.request_processor = [RequestProcessor(_headers(request)) for request in requests]
        context.stopping_criteria = None  # those of the last batch would judge this one
        context._send_pieces = self._send_pieces
        if hasattr(context, "metrics"):
            context.metrics.set_request_ids(",".join(request.request_id for request in requests))
        self.rows = [_row(request, decode=spec.decode_input) for request in requests]

    def _send_pieces(self, outputs: list[Any]) -> None:
        """A piece of each request's answer (section 6).  Raises RuntimeError, ValueError, and what encoding raises."""
        if self._over:
            raise RuntimeError("The batch is answered: nothing can be streamed to its clients any more.")
        if len(outputs) != self._size:
            raise ValueError(f"{len(outputs)} pieces for {self._size} requests")
        for i in range(self._size):
            self._context.set_response_header(i, STREAM_NEXT, "true")
        pieces = [_reply(self._context, i, output, self._spec) for i, output in enumerate(outputs)]
        failed = next((piece for piece in pieces if isinstance(piece, HandlerFailed)), None)
        if failed is not None:
            raise ValueError(failed.message)
        self._send(pieces)

    def answers(self, outputs: Any) -> Answers | HandlerFailed:
        """What the handler returned, checked and encoded."""
        self._over = True
        if not isinstance(outputs, list):
            return HandlerFailed(503, "Invalid model predict output", f"the handler returned {_named(outputs)}")
        if len(outputs) != self._size:
            detail = f"{len(outputs)} answers for {self._size} requests"
            return HandlerFailed(503, "number of batch response mismatched", detail)
        return [self._answer(i, output) for i, output in enumerate(outputs)]

    def failure(self, error: Exception) -> HandlerFailed:
        """What the error of a handler becomes, for all requests (section 4.2)."""
        self._over = True
        return _failure_of(error)

    def _answer(self, index: int, output: Any) -> JobReply | HandlerFailed:
        """One that cannot be sent fails alone; upstream fails its whole batch.

        An error as output is an envelope's: that request could not be read.
        """
        if isinstance(output, Exception):
            return _failure_of(output)
        try:
            self._mark_end(index, output)
        except Exception as e:
            return _failure_of(e)
        try:
            return _reply(self._context, index, output, self._spec)
        except Exception as e:  # encoding runs code of the answer's own
            say(traceback_of(e).rstrip())
            return HandlerFailed(503, "Unsupported model output data type.", text_of(e)[:_DETAIL_LIMIT])

    def _mark_end(self, index: int, output: Any) -> None:
        """Say whether more follows: what the handler's stopping criterion says, else the end of what was streamed."""
        criteria = self._context.stopping_criteria
        if criteria:
            stop = criteria[index](output)
            if stop is not None:
                self._context.set_response_header(index, STREAM_NEXT, "false" if stop else "true")
        elif self._context.get_response_headers(index).get(STREAM_NEXT) == "true":
            self._context.set_response_header(index, STREAM_NEXT, "false")


def answer(model: Model, spec: WorkerSpec, requests: list[JobRequest], send: Send) -> Answers | HandlerFailed:
    """Answers in the order of `requests`, or the one failure that all of them share.

    SystemExit and the like pass: a handler that ends its process ends it (section 4.2, `Worker died.`).
    """
    batch = Batch(model.context, spec, requests, send)
    try:
        outputs = model.entry(batch.rows, model.context)
    except Exception as e:
        return batch.failure(e)
    return batch.answers(outputs)


def _named(outputs: Any) -> str:
    if inspect.iscoroutine(outputs):
        outputs.close()
        return "a coroutine; a coroutine handler needs `asyncCommunication: true` in its model-config.yaml"
    return type(outputs).__name__


def _headers(request: JobRequest) -> dict[str, Any]:
    """What `get_request_header` looks into: an entry per input, then the request's headers."""
    return {**{i.name: {"content-type": i.content_type} for i in request.inputs}, **request.headers}


def _row(request: JobRequest, *, decode: bool) -> dict[str, Any]:
    return {i.name: _decoded(i) if decode else bytearray(i.value) for i in request.inputs}


def _decoded(value: Input) -> Any:
    try:
        if value.content_type == "application/json":
            return json.loads(value.value)
        if value.content_type.startswith("text"):
            return value.value.decode()
    except (ValueError, RecursionError) as e:
        print(f"input {value.name!r} is not {value.content_type}, handed over as bytes: {e}", file=sys.stderr)
    return bytearray(value.value)


def _reply(context: Any, index: int, output: Any, spec: WorkerSpec) -> JobReply | HandlerFailed:
    status, phrase = context.get_response_status(index)
    headers = {str(k): str(v) for k, v in context.get_response_headers(index).items()}
    body = _encoded(output)
    if len(body) > spec.max_response_size:  # upstream kills its worker here; one large answer is no reason for that
        limit = spec.max_response_size
        return HandlerFailed(500, f"Response of {len(body)} bytes is larger than max_response_size, {limit} bytes.")
    status = int(status)
    if abs(status) > _STATUS_LIMIT:
        raise ValueError("the status is no HTTP status")
    return JobReply(status, str(phrase or ""), headers, body)


def _encoded(output: Any) -> bytes:
    if isinstance(output, (bytes, bytearray)):
        return bytes(output)
    if isinstance(output, str):
        return output.encode()
    torch = sys.modules.get("torch")  # a handler that returns a tensor has imported it
    if torch is not None and isinstance(output, torch.Tensor):
        import io

        buffer = io.BytesIO()
        torch.save(output, buffer)
        return buffer.getvalue()
    return json.dumps(output, indent=2).encode()


def _failure_of(error: Exception) -> HandlerFailed:
    detail = traceback_of(error)
    say(detail.rstrip())
    detail = detail[-_DETAIL_LIMIT:]
    prediction_error = getattr(sys.modules.get("ts.utils.util"), "PredictionException", None)
    if prediction_error is not None and isinstance(error, prediction_error):
        code = getattr(error, "error_code", None)
        if not isinstance(code, int) or not 200 <= code <= 999:
            code = 500  # no status at all
        # 413 is what the front end says of a request; a handler's own becomes 507, as recorded.
        return HandlerFailed(507 if code == 413 else code, text_of(getattr(error, "message", "")), detail)
    if isinstance(error, MemoryError) or "CUDA" in text_of(error):
        return HandlerFailed(507, "Out of resources", detail)
    return HandlerFailed(503, "Prediction failed", detail)
