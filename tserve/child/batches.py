"""One batch through the handler: decode inputs, call, check and encode what came back.

Rules: spec/inference.md sections 2 (decoding), 3 (encoding) and 4.2 (what each failure becomes).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tserve.child.loader import Model
from tserve.child.words import say, text_of, traceback_of
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import BatchFailed, Input, JobReply, JobRequest

_DETAIL_LIMIT = 16 << 10
_STATUS_LIMIT = 1 << 31  # what is a status is for the server to say; but a frame cannot carry any number


def answer(model: Model, spec: WorkerSpec, requests: list[JobRequest]) -> list[JobReply] | BatchFailed:
    """Replies in the order of `requests`, or the one failure that all of them share.

    SystemExit and the like pass: a handler that ends its process ends it (section 4.2, `Worker died.`).
    """
    from ts.context import RequestProcessor

    context = model.context
    context.request_ids = {i: request.request_id for i, request in enumerate(requests)}
    context.request_processor = [RequestProcessor(_headers(request)) for request in requests]
    rows = [_row(request, decode=spec.decode_input) for request in requests]
    try:
        outputs = model.entry(rows, context)
    except Exception as e:
        return _failure_of(e)
    if not isinstance(outputs, list):
        return BatchFailed(503, "Invalid model predict output", f"the handler returned {type(outputs).__name__}")
    if len(outputs) != len(requests):
        detail = f"{len(outputs)} answers for {len(requests)} requests"
        return BatchFailed(503, "number of batch response mismatched", detail)
    try:
        return [_reply(context, i, output, spec) for i, output in enumerate(outputs)]
    except Exception as e:  # encoding runs code of the answer's own
        say(traceback_of(e).rstrip())
        return BatchFailed(503, "Unsupported model output data type.", text_of(e)[:_DETAIL_LIMIT])


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


def _reply(context: Any, index: int, output: Any, spec: WorkerSpec) -> JobReply:
    status, phrase = context.get_response_status(index)
    headers = {str(k): str(v) for k, v in context.get_response_headers(index).items()}
    body = _encoded(output)
    if len(body) > spec.max_response_size:
        return _too_large(len(body), spec.max_response_size)
    status = int(status)
    if abs(status) > _STATUS_LIMIT:
        raise ValueError("the status is no HTTP status")
    return JobReply(status, str(phrase or ""), headers, body)


def _too_large(size: int, limit: int) -> JobReply:
    """The recorded server kills its worker here; one answer that is too large is no reason for that."""
    message = f"Response of {size} bytes is larger than max_response_size, {limit} bytes."
    error = {"code": 500, "type": "InternalServerException", "message": message}
    headers = {"content-type": "application/json"}
    return JobReply(500, "", headers, (json.dumps(error, indent=2) + "\n").encode())


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


def _failure_of(error: Exception) -> BatchFailed:
    detail = traceback_of(error)
    say(detail.rstrip())
    detail = detail[-_DETAIL_LIMIT:]
    prediction_error = getattr(sys.modules.get("ts.utils.util"), "PredictionException", None)
    if prediction_error is not None and isinstance(error, prediction_error):
        code = getattr(error, "error_code", None)
        if not isinstance(code, int) or not 200 <= code <= 999:
            code = 500  # no status at all
        # 413 is what the front end says of a request; a handler's own becomes 507, as recorded.
        return BatchFailed(507 if code == 413 else code, text_of(getattr(error, "message", "")), detail)
    if isinstance(error, MemoryError) or "CUDA" in text_of(error):
        return BatchFailed(507, "Out of resources", detail)
    return BatchFailed(503, "Prediction failed", detail)
