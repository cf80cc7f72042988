"""ModelInfer as the request that the handler would get over REST, and what it answers as a ModelInferResponse.

A model behind the envelope `kservev2` gets and answers data in binary, as over REST with Triton's clients; any other
handler gets the recorded JSON and has to answer in JSON itself (spec/inference.md section 8.4).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tserve.domain.wire import Input, JobReply, JobRequest
from tserve.errors import BadRequest, InternalServer
from tserve.grpc.tensors import fill_contents, flat, has_contents, json_of_raw, raw_of_contents, raw_of_values

JSON_BYTES = "Inference-Header-Content-Length"  # the binary extension's header: how much of a body is JSON
_ALL_BINARY, _BINARY, _BINARY_SIZE = "binary_data_output", "binary_data", "binary_data_size"


def job_of(request: Any, request_id: str, *, binary: bool) -> JobRequest:
    """`binary`: the model takes the binary extension.  Raises BadRequest."""
    head: dict[str, Any] = {"model_name": request.model_name}
    if request.id:
        head["id"] = request.id
    head |= _parameters(request, **({_ALL_BINARY: True} if binary else {}))
    head["inputs"], raws = [], _raws(request)
    for place, (tensor, raw) in enumerate(zip(request.inputs, raws, strict=True)):
        shown = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
        if binary:
            head["inputs"].append(shown | _parameters(tensor, **{_BINARY_SIZE: len(raw)}))
        else:
            data = json_of_raw(tensor.datatype, raw, f"inputs[{place}]")
            head["inputs"].append(shown | _parameters(tensor) | {"data": data})
    if request.outputs:
        asked = {_BINARY: True} if binary else {}
        head["outputs"] = [{"name": output.name, **_parameters(output, **asked)} for output in request.outputs]
    text = json.dumps(head).encode()
    if not binary:
        return JobRequest(request_id, {}, (Input("body", "application/json", text),))
    body = Input("body", "application/octet-stream", b"".join((text, *raws)))
    return JobRequest(request_id, {JSON_BYTES: str(len(text))}, (body,))


def wants_raw(request: Any) -> bool:
    """Raw requests are answered raw, others when they ask for it as over REST."""
    if request.raw_input_contents or _is_set(request, _ALL_BINARY):
        return True
    return any(_is_set(output, _BINARY) for output in request.outputs)


def fill_response(response: Any, reply: JobReply, *, raw: bool) -> None:
    """Raises InternalServer for what is no answer of the protocol.

    All outputs are raw as soon as one has to be, as the protocol wants it.
    """
    try:
        outputs = _read(reply)
        raw = raw or not all(has_contents(output.datatype) for output in outputs.tensors)
        head = outputs.head
        for field in ("model_name", "model_version", "id"):
            if head.get(field):
                setattr(response, field, str(head[field]))
        _set_parameters(response.parameters, head)
        for place, output in enumerate(outputs.tensors):
            tensor = response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
            _set_parameters(tensor.parameters, output.shown)
            if raw:
                response.raw_output_contents.append(output.data)
            else:
                fill_contents(tensor.contents, output.datatype, output.data, f"outputs[{place}]")
    except (BadRequest, ValueError, TypeError, KeyError, RecursionError) as e:
        said = e.message if isinstance(e, BadRequest) else f"{type(e).__name__}: {e}"
        raise InternalServer(
            "The handler did not answer in the Open Inference Protocol; models behind the envelope kservev2 do.",
            cause={"reason": "not_open_inference", "detail": said[:500]},
        ) from e


@dataclass(frozen=True, slots=True)
class _Output:
    name: str
    datatype: str
    shape: list[int]
    data: bytes
    shown: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Outputs:
    head: Mapping[str, Any]
    tensors: list[_Output]


def _raws(request: Any) -> list[bytes]:
    """The data of each input as raw bytes.  Raises BadRequest."""
    raws = list(request.raw_input_contents)
    if not raws:
        return [
            raw_of_contents(tensor.datatype, tensor.contents, f"inputs[{place}]")
            for place, tensor in enumerate(request.inputs)
        ]
    if any(tensor.HasField("contents") and tensor.contents.ByteSize() for tensor in request.inputs):
        raise BadRequest("raw_input_contents and contents cannot be mixed.", cause={"field": "raw_input_contents"})
    if len(raws) != len(request.inputs):
        raise BadRequest(
            f"raw_input_contents has the data of {len(raws)} inputs, the request {len(request.inputs)} inputs.",
            cause={"field": "raw_input_contents"},
        )
    return raws


def _is_set(thing: Any, name: str) -> bool:
    # Asking a map for what it does not have would put it there.
    return name in thing.parameters and bool(thing.parameters[name].bool_param)


def _parameters(thing: Any, **more: Any) -> dict[str, Any]:
    """The member `parameters`, if there are any."""
    given = {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None)
        for name, value in thing.parameters.items()
    }
    return {"parameters": {**given, **more}} if given or more else {}


def _set_parameters(parameters: Any, thing: Mapping[str, Any]) -> None:
    given = thing.get("parameters")
    for name, value in given.items() if isinstance(given, dict) else ():
        if name == _BINARY_SIZE:
            continue
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = value
        elif isinstance(value, float):
            parameters[name].double_param = value
        else:
            parameters[name].string_param = value if isinstance(value, str) else json.dumps(value)


def _read(reply: JobReply) -> _Outputs:
    """Raises ValueError and what comes of members that are not there or of another type."""
    size = next((value for name, value in reply.headers.items() if name.lower() == JSON_BYTES.lower()), None)
    text, rest = (reply.body, b"") if size is None else (reply.body[: int(size)], reply.body[int(size) :])
    head = json.loads(text)
    if not isinstance(head, dict) or not isinstance(head.get("outputs"), list):
        raise ValueError("it is no JSON object with a list of outputs")
    at, tensors = 0, []
    for place, shown in enumerate(head["outputs"]):
        length = (shown.get("parameters") or {}).get(_BINARY_SIZE)
        if length is None:
            data = _of_json(shown, f"outputs[{place}]")
        else:
            data = rest[at : at + length]
            at += length
        tensors.append(_Output(shown["name"], shown["datatype"], shown["shape"], data, shown))
    return _Outputs(head, tensors)


def _of_json(shown: Mapping[str, Any], where: str) -> bytes:
    return raw_of_values(shown["datatype"], flat(shown["data"]), where)
