"""One batch through the handler: decode inputs, call, check and encode what came back.

Rules: spec/inference.md sections 2 (decoding), 3 (encoding) and 4.2 (what each failure becomes).
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

from tserve.child.loader import Model
from tserve.child.words import say, text_of, traceback_of
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import STREAM_NEXT, Answers, HandlerFailed, Input, JobReply, JobRequest

_DETAIL_LIMIT = 16 << 10
# What is a status, and how much of headers HTTP takes, is for the server to say; but a frame cannot carry everything.
_STATUS_LIMIT = 1 << 31
_HEADERS_LIMIT = 64 << 10
# Bound before there is a handler, which may put something else in their place.
_to_json = json.JSONEncoder(indent=2).encode
_from_json = json.loads

Send = Callable[[Answers], None]


class ClientsLeft(ConnectionAbortedError):
    """What a handler gets that streams on when nobody waits for its batch any more."""

    def __init__(self) -> None:
        super().__init__("Every client of this batch has left.")


class Batch:
    """The requests in hand of one call of the handler; `send` takes what it gives away before it returns, and may
    raise ClientsLeft."""

    def __init__(self, context: Any, spec: WorkerSpec, requests: list[JobRequest], send: Send) -> None:
        from ts.context import RequestProcessor

        self._context, self._spec, self._send = context, spec, send
        self._size = len(requests)
        self._over = False
        self._ending = threading.Lock()  # no piece may follow the answer; one may come from a thread of the handler's
        context.request_ids = {i: request.request_id for i, request in enumerate(requests)}
        context.request_processor = [RequestProcessor(_headers(request)) for request in requests]
        context.stopping_criteria = None  # those of the last batch would judge this one
        context._send_pieces = self._send_pieces
        set_request_ids = getattr(getattr(context, "metrics", None), "set_request_ids", None)
        if set_request_ids is not None:
            set_request_ids(",".join(request.request_id for request in requests))
        self.rows = [_row(request, decode=spec.decode_input) for request in requests]

    def _send_pieces(self, outputs: list[Any]) -> None:
        """A piece of each request's answer (section 6).  Raises RuntimeError, ValueError, and what encoding raises."""
        self._check_not_over()
        if len(outputs) != self._size:
            raise ValueError(f"{len(outputs)} pieces for {self._size} requests")
        for i in range(self._size):
            self._context.set_response_header(i, STREAM_NEXT, "true")
        pieces = [_reply(self._context, i, output, self._spec) for i, output in enumerate(outputs)]
        failed = next((piece for piece in pieces if isinstance(piece, HandlerFailed)), None)
        if failed is not None:
            raise ValueError(failed.message)
        with self._ending:
            self._check_not_over()
            self._send(pieces)

    def _check_not_over(self) -> None:
        if self._over:
            raise RuntimeError("The batch is answered: nothing can be streamed to its clients any more.")

    def _end(self) -> None:
        with self._ending:
            self._over = True

    def answers(self, outputs: Any) -> Answers | HandlerFailed:
        """What the handler returned, checked and encoded.  Raises what looking at it does."""
        self._end()
        if not isinstance(outputs, list):
            return HandlerFailed(503, "Invalid model predict output", f"the handler returned {_named(outputs)}")
        if len(outputs) != self._size:
            detail = f"{len(outputs)} answers for {self._size} requests"
            return HandlerFailed(503, "number of batch response mismatched", detail)
        return [self._answer(i, output) for i, output in enumerate(outputs)]

    def failure(self, error: BaseException) -> HandlerFailed:
        """What the error of a handler becomes, for all requests (section 4.2)."""
        self._end()
        if type(error) is ClientsLeft:  # nothing to complain about in the log
            return HandlerFailed(503, "Prediction failed", str(error))
        return _failure_of(error)

    def _answer(self, index: int, output: Any) -> JobReply | HandlerFailed:
        """One that cannot be sent fails alone; upstream fails its whole batch.

        An error as output is an envelope's: that request could not be read.
        """
        if issubclass(type(output), Exception):
            return _failure_of(output)
        try:
            self._mark_end(index, output)
        except Exception as e:
            return _failure_of(e)
        try:
            return _reply(self._context, index, output, self._spec)
        except SystemExit:
            raise
        except BaseException as e:  # encoding runs code of the answer's own
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

    SystemExit passes: a handler that ends its process ends it (section 4.2, `Worker died.`).  Nothing else does, such
    as the panic of an extension in Rust, which is no Exception.
    """
    batch = Batch(model.context, spec, requests, send)
    try:
        return batch.answers(model.entry(batch.rows, model.context))
    except SystemExit:
        raise
    except BaseException as e:
        return batch.failure(e)


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
            return _from_json(value.value)
        if value.content_type.startswith("text"):
            return value.value.decode()
    except (ValueError, RecursionError) as e:
        say(f"input {value.name!r} is not {value.content_type}, handed over as bytes: {e}")
    return bytearray(value.value)


def _reply(context: Any, index: int, output: Any, spec: WorkerSpec) -> JobReply | HandlerFailed:
    status, phrase = context.get_response_status(index)
    headers = {str(k): str(v) for k, v in context.get_response_headers(index).items()}
    phrase = str(phrase or "")
    if len(phrase) + sum(len(name) + len(value) for name, value in headers.items()) > _HEADERS_LIMIT:
        return HandlerFailed(503, f"The handler set more than {_HEADERS_LIMIT} bytes of headers.")
    body = _encoded(output)
    if len(body) > spec.max_response_size:  # upstream kills its worker here; one large answer is no reason for that
        limit = spec.max_response_size
        return HandlerFailed(500, f"Response of {len(body)} bytes is larger than max_response_size, {limit} bytes.")
    status = int(status)
    if abs(status) > _STATUS_LIMIT:
        raise ValueError("the status is no HTTP status")
    return JobReply(status, phrase, headers, body)


def _encoded(output: Any) -> bytes:
    if isinstance(output, (bytes, bytearray)):
        return bytes(output)
    if isinstance(output, str):
        return str.encode(output)
    torch = sys.modules.get("torch")  # a handler that returns a tensor has imported it
    if torch is not None and isinstance(output, torch.Tensor):
        import io

        buffer = io.BytesIO()
        torch.save(output, buffer)
        return buffer.getvalue()
    return _to_json(output).encode()


def _failure_of(error: BaseException) -> HandlerFailed:
    detail = traceback_of(error)
    say(detail.rstrip())
    code, message = _said_by(error)
    return HandlerFailed(code, message, detail[-_DETAIL_LIMIT:])


def _said_by(error: BaseException) -> tuple[int, str]:
    """Status and message.  Looking at an error runs code of its own, its `__class__` included."""
    kind = type(error)
    prediction_error = getattr(sys.modules.get("ts.utils.util"), "PredictionException", None)
    if prediction_error is not None and issubclass(kind, prediction_error):
        try:
            code, message = error.error_code, error.message  # type: ignore[attr-defined]
        except Exception:
            code, message = None, ""
        if not isinstance(code, int) or not 200 <= code <= 999:
            code = 500  # no status at all
        # 413 is what the front end says of a request; a handler's own becomes 507, as recorded.
        return 507 if code == 413 else int(code), text_of(message)
    if issubclass(kind, MemoryError) or "CUDA" in text_of(error):
        return 507, "Out of resources"
    return 503, "Prediction failed"
