"""The Open Inference Protocol (KServe's v2): named tensors in, named tensors out, in JSON or with binary data.

The binary extension is the one that Triton's clients use: the header `Inference-Header-Content-Length` says how many
bytes of a body are JSON, the data of its tensors follow.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from ts.torch_handler.request_envelope._rows import Asked, RowEnvelope, read_json
from ts.torch_handler.request_envelope._tensors import read_tensor, write_tensor

_JSON_BYTES = "Inference-Header-Content-Length"


class KServev2Envelope(RowEnvelope):
    """The handler gets a list of inputs, each a dict of `name`, `shape`, `datatype` and `data`, and returns outputs.

    While it is called the context has their `input_names`, and the `input_request_id` if the client gave one.
    Requests of one input share a call; one of several has its own, since a handler could not see where it ends.
    """

    def read(self, row: Any, idx: int) -> Asked:
        content, raw = self._parts(self.content_of(row), idx)
        request = read_json(content)
        if "inputs" not in request:
            raise ValueError('the request body has no "inputs"')
        if not isinstance(request["inputs"], list) or not request["inputs"]:
            raise ValueError('"inputs" in the request body is not a list of tensors')
        inputs, at = [], 0
        for place, tensor in enumerate(request["inputs"]):
            where = f"inputs[{place}]"
            size = _binary_size(tensor, where)
            data = None if size is None else raw[at : at + size]
            if data is not None and len(data) != size:
                raise ValueError(f"{where} has {size} bytes of binary data, the request body only {len(data)} more")
            at += size or 0
            inputs.append(read_tensor(tensor, where, data))
        if at != len(raw):
            raise ValueError(f"the request body has {len(raw) - at} bytes of binary data that no input asks for")
        everything = _parameter(request, "binary_data_output") is True
        return Asked(inputs, {"id": request.get("id"), "wanted": _wanted(request, everything), "binary": everything})

    def write(self, asked: Asked, results: Any, idx: int) -> Any:
        if isinstance(results, (str, bytes, dict)) or not hasattr(results, "__iter__"):
            raise TypeError(f"the handler returned {type(results).__name__}, not a list of outputs")
        outputs = list(results)
        names, wanted, binary = self._names(asked, len(outputs)), asked.about["wanted"], asked.about["binary"]
        shown = wanted if wanted and wanted.keys() <= set(names) else names
        written = [
            write_tensor(name, output, binary=wanted.get(name, binary))
            for name, output in zip(names, outputs, strict=True)
            if name in shown
        ]
        response = {**self._head(asked, idx), "outputs": [tensor for tensor, _ in written]}
        if not any("binary_data_size" in tensor.get("parameters", ()) for tensor, _ in written):
            return response
        head = json.dumps(response).encode()
        self.context.set_response_header(idx, _JSON_BYTES, str(len(head)))
        self.context.set_response_content_type(idx, "application/octet-stream")
        return b"".join((head, *(raw for _, raw in written)))

    def groups(self, asked: dict[int, Asked]) -> list[list[int]]:
        single = [idx for idx, one in asked.items() if len(one.inputs) == 1]
        return [*([single] if single else []), *([idx] for idx in asked if idx not in single)]

    def _take(self, asked: list[Asked]) -> list[Any]:
        inputs = super()._take(asked)
        self._forget()
        self.context.input_names = [tensor["name"] for tensor in inputs]
        if len(asked) == 1 and asked[0].about["id"] is not None:
            self.context.input_request_id = asked[0].about["id"]
        return inputs

    def format_output(self, results: Any) -> list[Any]:
        try:
            return super().format_output(results)
        finally:
            self._forget()

    def _forget(self) -> None:
        for name in ("input_names", "input_request_id"):
            with contextlib.suppress(AttributeError):
                delattr(self.context, name)

    def _parts(self, content: Any, idx: int) -> tuple[Any, memoryview]:
        """The JSON of a request body and the bytes behind it."""
        headers = self.context.get_all_request_header(idx)
        given = next((value for name, value in headers.items() if name.lower() == _JSON_BYTES.lower()), None)
        if given is None or not isinstance(content, (bytes, bytearray)):
            return content, memoryview(b"")
        size = int(given) if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 12 else -1
        if not 0 < size <= len(content):
            raise ValueError(f"{_JSON_BYTES} is {given[:80]!r}, for a request body of {len(content)} bytes")
        return content[:size], memoryview(content)[size:]

    def _head(self, asked: Asked, idx: int) -> dict[str, Any]:
        """The model is named as its archive names it, as recorded."""
        named = (self.context.manifest or {}).get("model") or {}
        head = {
            "id": asked.about["id"] if asked.about["id"] is not None else self.context.get_request_id(idx),
            "model_name": named.get("modelName", self.context.model_name),
            "model_version": named.get("modelVersion"),
        }
        return {name: value for name, value in head.items() if value is not None}

    def _names(self, asked: Asked, count: int) -> list[str]:
        """Those that the model's yaml declares, else those that the client asks for, if they are as many as there are
        outputs; else the names of the inputs, as recorded.
        """
        for names in (_declared(self.context), list(asked.about["wanted"])):
            if len(names) == count:
                return names
        names = [tensor["name"] for tensor in asked.inputs]
        return [*names, *(f"output_{place}" for place in range(len(names), count))][:count]


def _parameter(thing: Any, name: str) -> Any:
    parameters = thing.get("parameters") if isinstance(thing, dict) else None
    return parameters.get(name) if isinstance(parameters, dict) else None


def _binary_size(tensor: Any, where: str) -> int | None:
    size = _parameter(tensor, "binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise ValueError(f"{where}.parameters.binary_data_size is not a whole number, 0 or more")
    return size


def _wanted(request: dict[str, Any], everything: bool) -> dict[str, bool]:
    """The outputs that the client asks for, and whether in binary; without a word of their own `everything` counts."""
    wanted = {}
    outputs = request.get("outputs") or []
    if not isinstance(outputs, list):
        raise ValueError('"outputs" in the request body is not a list')
    for place, output in enumerate(outputs):
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise ValueError(f"outputs[{place}].name is missing or not a string")
        binary = _parameter(output, "binary_data")
        wanted[output["name"]] = everything if binary is None else binary is True
    return wanted


def _declared(context: Any) -> list[str]:
    """Names of the outputs in the model's yaml; none unless all of them have one."""
    config = context.model_yaml_config
    outputs = config.get("outputs") if isinstance(config, dict) else None
    if not isinstance(outputs, list):
        return []
    names = [output["name"] for output in outputs if isinstance(output, dict) and isinstance(output.get("name"), str)]
    return names if len(names) == len(outputs) else []
