"""The Open Inference Protocol around a handler, in JSON and in binary (spec/inference.md section 14.2)."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.torch_handler.request_envelope.kservev2 import KServev2Envelope

HEADER = "Inference-Header-Content-Length"


def context_of(*headers: dict[str, Any], yaml: Any = None) -> Context:
    """For a batch of as many requests; their ids are r0, r1, …"""
    manifest = {"model": {"modelName": "archived", "modelVersion": "1.0"}}
    context = Context("m", "/nowhere", manifest, 1, None, "0.12.0", model_yaml_config=yaml)
    context.request_ids = {place: f"r{place}" for place in range(len(headers))}
    context.request_processor = [RequestProcessor(each) for each in headers]
    return context


def tensor(
    name: str = "n", datatype: str = "INT64", shape: Any = None, data: Any = None, **more: Any
) -> dict[str, Any]:
    data = [7, 8] if data is None else data
    return {"name": name, "shape": [len(data)] if shape is None else shape, "datatype": datatype, "data": data, **more}


def rows(*requests: Any) -> list[dict[str, Any]]:
    return [{"body": request} for request in requests]


def data_of(data: Any, context: Any) -> Any:
    return [each["data"] for each in data]


def outputs_of(*results: Any, **request: Any) -> list[dict[str, Any]]:
    """The outputs of a request with one input whose handler returned that."""
    body = {"inputs": [tensor()], **request}
    (answer,) = KServev2Envelope(lambda data, context: list(results)).handle(rows(body), context_of({}))
    found: list[dict[str, Any]] = answer["outputs"]
    return found


def test_as_recorded() -> None:
    """Also the order of the members."""
    got: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        got.append((data, context.input_names, context.input_request_id))
        return [{"got": each["data"]} for each in data]

    context = context_of({})
    body = json.dumps({"id": "abc", "inputs": [tensor()]}).encode()
    (answer,) = KServev2Envelope(handle).handle(rows(bytearray(body)), context)
    assert got == [([tensor()], ["n"], "abc")]
    output = {"name": "n", "datatype": "BYTES", "data": [{"got": [7, 8]}], "shape": [1]}
    expected = {"id": "abc", "model_name": "archived", "model_version": "1.0", "outputs": [output]}
    assert json.dumps(answer) == json.dumps(expected)
    assert not hasattr(context, "input_names")
    assert not hasattr(context, "input_request_id")


def test_without_an_id_the_request_has_the_servers() -> None:
    def handle(data: Any, context: Any) -> Any:
        return [hasattr(context, "input_request_id")]

    (answer,) = KServev2Envelope(handle).handle(rows({"inputs": [tensor()]}), context_of({}))
    assert (answer["id"], answer["outputs"][0]["data"]) == ("r0", [False])


def test_a_model_without_a_manifest() -> None:
    context = context_of({})
    context.manifest = None
    (answer,) = KServev2Envelope(data_of).handle(rows({"inputs": [tensor()]}), context)
    assert list(answer) == ["id", "model_name", "outputs"]
    assert answer["model_name"] == "m"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (tensor(), [7, 8]),
        (tensor(data=[1, 2, 3, 4, 5, 6], shape=[2, 3]), [[1, 2, 3], [4, 5, 6]]),
        (tensor(data=[[1, 2, 3], [4, 5, 6]], shape=[3, 2]), [[1, 2], [3, 4], [5, 6]]),
        (tensor(data=[1, 2, 3, 4], shape=[2, 1, 2]), [[[1, 2]], [[3, 4]]]),
        (tensor(data=[5], shape=[1, 1]), [[5]]),
        (tensor(data=[5], shape=[]), [5]),
        (tensor(data=[], shape=[10**12, 0]), []),
        (tensor(data=[True, False], datatype="BOOL"), [True, False]),
        (tensor(data=[1, 2.5], datatype="FP32"), [1.0, 2.5]),
        (tensor(data=["hi"], datatype="BYTES", shape=[1]), "hi"),
        (tensor(data=["hi"], datatype="BYTES", shape=[1, 1]), "hi"),
        (tensor(data=["a", "b"], datatype="BYTES", shape=[2, 1]), [["a"], ["b"]]),
        *((tensor(datatype=f"{sign}INT{bits}"), [7, 8]) for sign in ("", "U") for bits in (8, 16, 32, 64)),
    ],
)
def test_what_the_handler_gets_as_data(given: dict[str, Any], expected: Any) -> None:
    got: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        got.extend(data)
        return [0]

    KServev2Envelope(handle).handle(rows({"inputs": [given], "parameters": {"any": 1}}), context_of({}))
    assert json.dumps(got) == json.dumps([{**given, "data": expected}])


def test_whole_numbers_of_a_float_tensor_are_floats() -> None:
    """JSON clients write 1 for 1.0; a tensor made of it must not become one of integers."""
    got: list[Any] = []
    envelope = KServev2Envelope(lambda data, context: got.extend(data) or [0])
    envelope.handle(rows({"inputs": [tensor(datatype="FP64", data=[1, 2])]}), context_of({}))
    assert torch.as_tensor(got[0]["data"]).dtype == torch.float32


BAD = [
    ({"x": 1}, 'no "inputs"'),
    ({"inputs": {}}, '"inputs" in the request body is not a list of tensors'),
    ({"inputs": []}, '"inputs" in the request body is not a list of tensors'),
    ({"inputs": [5]}, r"inputs\[0\] is not an object"),
    ({"inputs": [tensor(), {"shape": [1], "datatype": "INT8", "data": [1]}]}, r"inputs\[1\]\.name is missing"),
    ({"inputs": [{"name": "n", "datatype": "INT8", "data": [1]}]}, r"inputs\[0\]\.shape is missing"),
    ({"inputs": [{"name": "n", "shape": [1], "data": [1]}]}, r"inputs\[0\]\.datatype is missing"),
    ({"inputs": [{"name": "n", "shape": [1], "datatype": "INT8"}]}, r"inputs\[0\] \('n'\)\.data is missing"),
    ({"inputs": [tensor(name=5)]}, r"inputs\[0\]\.name is not a string"),  # type: ignore[arg-type]
    ({"inputs": [tensor(datatype="STRING")]}, "datatype is 'STRING'; known are BOOL, .*BYTES"),
    ({"inputs": [tensor(datatype=["FP32"])]}, r"datatype is \"\['FP32'\]\"; known are"),  # type: ignore[arg-type]
    ({"inputs": [tensor(shape=[3])]}, r"data has 2 elements, its shape \[3\] asks for 3"),
    ({"inputs": [tensor(shape=2)]}, "shape is not a list"),
    ({"inputs": [tensor(shape=[-1, -2])]}, "shape is not a list of at most 64 whole numbers"),
    ({"inputs": [tensor(shape=[2.0])]}, "shape is not a list of at most 64 whole numbers"),
    ({"inputs": [tensor(shape=[1] * 65 + [2])]}, "shape is not a list of at most 64 whole numbers"),
    ({"inputs": [tensor(data={"a": 1})]}, "data is not a list"),
    ({"inputs": [tensor(data=[1, [2]])]}, "data is not nested evenly"),
    ({"inputs": [tensor()], "outputs": 5}, '"outputs" in the request body is not a list'),
    ({"inputs": [tensor()], "outputs": [{}]}, r"outputs\[0\]\.name is missing"),
    ({"inputs": [tensor(parameters={"binary_data_size": -1})]}, "binary_data_size is not a whole number"),
    ({"inputs": [tensor(parameters={"binary_data_size": 8})]}, "8 bytes of binary data, the request body only 0 more"),
    (b"zz", "not JSON"),
]


@pytest.mark.parametrize(("body", "message"), BAD)
def test_a_request_that_makes_no_sense_says_which_field(body: Any, message: str) -> None:
    def never(data: Any, context: Any) -> Any:
        raise AssertionError(data)

    with pytest.raises(ValueError, match=message):
        KServev2Envelope(never).handle(rows(body), context_of({}))


@pytest.mark.parametrize(
    ("result", "datatype", "shape", "data"),
    [
        (torch.tensor([[1.5, 2.5]]), "FP32", [1, 2], [1.5, 2.5]),
        (torch.tensor([[1.5]], requires_grad=True), "FP32", [1, 1], [1.5]),
        (torch.tensor([1.5], dtype=torch.float64), "FP64", [1], [1.5]),
        (torch.tensor([1.5], dtype=torch.float16), "FP16", [1], [1.5]),
        (torch.tensor([1.5], dtype=torch.bfloat16), "FP32", [1], [1.5]),
        (torch.tensor(3), "INT64", [1], [3]),
        (torch.tensor([[1, 2], [3, 4]]).t(), "INT64", [2, 2], [1, 3, 2, 4]),
        (torch.zeros(0, 3), "FP32", [0, 3], []),
        *((np.array([1], dtype), name, [1], [1]) for dtype, name in [
            ("uint8", "UINT8"), ("uint16", "UINT16"), ("uint32", "UINT32"), ("uint64", "UINT64"),
            ("int8", "INT8"), ("int16", "INT16"), ("int32", "INT32"), ("int64", "INT64"), (">i4", "INT32"),
        ]),
        (np.array([True]), "BOOL", [1], [True]),
        (np.float32(0.5), "FP32", [1], [0.5]),
        (np.array(["a", "é"]), "BYTES", [2], ["a", "é"]),
        (np.array([b"a", {"k": 1}], dtype=object), "BYTES", [2], ["a", {"k": 1}]),
        ([0.1, 2], "FP64", [2], [0.1, 2.0]),
        ([[1, 2, 3], [4, 5, 6]], "INT64", [2, 3], [1, 2, 3, 4, 5, 6]),
        ((True, False), "BOOL", [2], [True, False]),
        ([], "FP64", [0], []),
        ([[], []], "FP64", [2, 0], []),
        ([[1, 2], [3]], "BYTES", [2], [[1, 2], [3]]),
        ([1, "a"], "BYTES", [2], [1, "a"]),
        ([True, 1], "BYTES", [2], [True, 1]),
        ([2**70], "BYTES", [1], [2**70]),
        ([{"label": "cat"}, {"label": "dog"}], "BYTES", [2], [{"label": "cat"}, {"label": "dog"}]),
        ([torch.tensor([1.5]), np.array([2.5])], "FP64", [2, 1], [1.5, 2.5]),
        (7, "INT64", [1], [7]),
        (0.5, "FP64", [1], [0.5]),
        (True, "BOOL", [1], [True]),
        ("text", "BYTES", [1], ["text"]),
        (b"text", "BYTES", [1], ["text"]),
        (None, "BYTES", [1], [None]),
        ({"scores": np.array([0.5])}, "BYTES", [1], [{"scores": [0.5]}]),
    ],
)  # fmt: skip
def test_what_a_result_becomes(result: Any, datatype: str, shape: list[int], data: Any) -> None:
    (output,) = outputs_of(result)
    expected = {"name": "n", "datatype": datatype, "data": data, "shape": shape}
    assert json.dumps(output) == json.dumps(expected)


def test_bytes_that_are_no_text_are_base64_in_json() -> None:
    (output,) = outputs_of([b"\xff\xd8", "text"])
    assert output["parameters"] == {"content_type": "base64"}
    assert [base64.b64decode(each) for each in output["data"]] == [b"\xff\xd8", b"text"]


def test_a_result_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="an array of complex128 cannot be sent as a tensor"):
        outputs_of(np.array([1j]))


@pytest.mark.parametrize("results", ["text", {"a": 1}, 5, b"x"])
def test_results_that_are_no_list_are_refused(results: Any) -> None:
    with pytest.raises(TypeError, match=f"the handler returned {type(results).__name__}, not a list of outputs"):
        KServev2Envelope(lambda data, context: results).handle(rows({"inputs": [tensor()]}), context_of({}))


def test_a_tensor_as_the_list_of_outputs() -> None:
    envelope = KServev2Envelope(lambda data, context: torch.tensor([[1.5, 2.5]]))
    (answer,) = envelope.handle(rows({"inputs": [tensor()]}), context_of({}))
    assert answer["outputs"] == [{"name": "n", "datatype": "FP32", "data": [1.5, 2.5], "shape": [2]}]


# ---- names


def test_names_come_from_the_inputs_and_go_on_from_there() -> None:
    def handle(data: Any, context: Any) -> Any:
        return [1, 2, 3]

    two = {"inputs": [tensor("a"), tensor("b")]}
    (answer,) = KServev2Envelope(handle).handle(rows(two), context_of({}))
    assert [output["name"] for output in answer["outputs"]] == ["a", "b", "output_2"]


def test_one_output_for_two_inputs() -> None:
    (answer,) = KServev2Envelope(lambda d, c: [1]).handle(rows({"inputs": [tensor("a"), tensor("b")]}), context_of({}))
    assert [output["name"] for output in answer["outputs"]] == ["a"]


def test_names_that_the_client_asks_for() -> None:
    assert [output["name"] for output in outputs_of(1, outputs=[{"name": "p"}])] == ["p"]
    unclear = outputs_of(1, 2, outputs=[{"name": "p"}])
    assert [output["name"] for output in unclear] == ["n", "output_1"], "nobody knows which one is meant"


def test_names_that_the_yaml_declares() -> None:
    yaml = {"outputs": [{"name": "probability"}, {"name": "label"}]}

    def names(yaml: Any, **request: Any) -> list[str]:
        envelope = KServev2Envelope(lambda data, context: [[0.5], ["cat"]])
        (answer,) = envelope.handle(rows({"inputs": [tensor()], **request}), context_of({}, yaml=yaml))
        return [output["name"] for output in answer["outputs"]]

    assert names(yaml) == ["probability", "label"]
    assert names(yaml, outputs=[{"name": "label"}]) == ["label"]
    for other in (None, {}, {"outputs": 5}, {"outputs": [5, {"name": "label"}]}, {"outputs": [{"name": "one"}]}):
        assert names(other) == ["n", "output_1"], other


# ---- batches


def test_requests_of_one_input_share_a_call() -> None:
    calls: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        calls.append((data_of(data, context), context.input_names, hasattr(context, "input_request_id")))
        return [np.array(each["data"]) * 10 for each in data]

    requests = [{"id": f"id{i}", "inputs": [tensor(f"n{i}", data=[i, i])]} for i in range(3)]
    del requests[1]["id"]
    answers = KServev2Envelope(handle).handle(rows(*requests), context_of({}, {}, {}))
    assert calls == [([[0, 0], [1, 1], [2, 2]], ["n0", "n1", "n2"], False)]
    assert [answer["id"] for answer in answers] == ["id0", "r1", "id2"]
    assert [[(o["name"], o["data"]) for o in answer["outputs"]] for answer in answers] == [
        [("n0", [0, 0])],
        [("n1", [10, 10])],
        [("n2", [20, 20])],
    ]


def test_a_request_of_several_inputs_has_a_call_of_its_own() -> None:
    """With one output for two inputs nobody could say which request it belongs to."""
    calls: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        calls.append(context.input_names)
        for place in range(len(context.request_ids)):
            context.set_response_header(place, "seen", str(context.get_request_id(place)))
        return [sum(each["data"][0] for each in data)] if len(data) == 2 else data_of(data, context)

    one, two = (
        {"inputs": [tensor("a", data=[1])]},
        {"id": "x", "inputs": [tensor("b", data=[2]), tensor("c", data=[3])]},
    )
    context = context_of({}, {}, {})
    answers = KServev2Envelope(handle).handle(rows(two, one, two), context)
    assert calls == [["a"], ["b", "c"], ["b", "c"]]
    assert [answer["outputs"][0]["data"] for answer in answers] == [[5], [1], [5]]
    assert [answer["id"] for answer in answers] == ["x", "r1", "x"]
    assert [context.get_response_headers(i)["seen"] for i in range(3)] == ["r0", "r1", "r2"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_that_fails_spares_the_others(asynchronous: bool) -> None:
    def handle(data: Any, context: Any) -> Any:
        if len(data) == 2:
            raise RuntimeError("two are too many")
        return data_of(data, context)

    async def handle_later(data: Any, context: Any) -> Any:
        return handle(data, context)

    one, two = {"inputs": [tensor("a")]}, {"inputs": [tensor("b"), tensor("c")]}
    outcome = KServev2Envelope(handle_later if asynchronous else handle).handle(
        rows(two, one, two), context_of({}, {}, {})
    )
    failed, fine, also = asyncio.run(outcome) if asynchronous else outcome
    assert [str(failed), str(also)] == ["two are too many"] * 2
    assert fine["outputs"][0]["data"] == [7, 8]


def test_a_result_that_cannot_be_sent_spares_the_others() -> None:
    def handle(data: Any, context: Any) -> Any:
        return [np.array([1j]), [1]]

    bad, fine = KServev2Envelope(handle).handle(rows(*[{"inputs": [tensor()]}] * 2), context_of({}, {}))
    assert isinstance(bad, TypeError)
    assert fine["outputs"][0]["data"] == [1]


# ---- binary


def binary_row(request: dict[str, Any], *blobs: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    head = json.dumps(request).encode()
    return {"body": bytearray(head + b"".join(blobs))}, {HEADER.lower(): str(len(head))}


def binary_tensor(datatype: str, shape: list[int], blob: bytes, name: str = "n") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(blob)}}


def counted(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


NUMBERS = [
    ("BOOL", "?"), ("UINT8", "<u1"), ("UINT16", "<u2"), ("UINT32", "<u4"), ("UINT64", "<u8"),
    ("INT8", "<i1"), ("INT16", "<i2"), ("INT32", "<i4"), ("INT64", "<i8"),
    ("FP16", "<f2"), ("FP32", "<f4"), ("FP64", "<f8"),
]  # fmt: skip


@pytest.mark.parametrize(("datatype", "dtype"), NUMBERS)
def test_binary_numbers_in_and_out(datatype: str, dtype: str) -> None:
    array = np.array([[0, 1], [1, 1], [3, 0]]).astype(dtype)
    got: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        got.append(data[0]["data"])
        return [np.array(data[0]["data"]).astype(dtype)]

    request = {"inputs": [binary_tensor(datatype, [3, 2], array.tobytes())], "parameters": {"binary_data_output": True}}
    row, headers = binary_row(request, array.tobytes())
    context = context_of(headers)
    (answer,) = KServev2Envelope(handle).handle([row], context)
    assert got == [array.tolist()]
    size = int(context.get_response_headers(0)[HEADER])
    assert context.get_response_content_type(0) == "application/octet-stream"
    (output,) = json.loads(answer[:size])["outputs"]
    assert output == binary_tensor(datatype, [3, 2], array.tobytes())
    assert answer[size:] == array.tobytes()


def test_binary_bfloat16_in() -> None:
    values = torch.tensor([1.5, -2.0, 3.140625], dtype=torch.bfloat16)
    blob = values.view(torch.int16).numpy().tobytes()
    row, headers = binary_row({"inputs": [binary_tensor("BF16", [3], blob)]}, blob)
    (answer,) = KServev2Envelope(data_of).handle([row], context_of(headers))
    assert answer["outputs"][0]["data"] == [1.5, -2.0, 3.140625]


def test_binary_bytes_are_text_where_they_can_be() -> None:
    got: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        got.extend(data_of(data, context))
        return [["é", b"\xff\xd8"], {"label": "cat"}]

    texts, image = counted("é".encode(), b""), counted(b"\xff\xd8\xff")
    request = {
        "inputs": [binary_tensor("BYTES", [2], texts, "texts"), binary_tensor("BYTES", [1], image, "image")],
        "outputs": [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}],
    }
    row, headers = binary_row(request, texts, image)
    context = context_of(headers)
    (answer,) = KServev2Envelope(handle).handle([row], context)
    assert got == [["é", ""], b"\xff\xd8\xff"]
    size = int(context.get_response_headers(0)[HEADER])
    first, second = json.loads(answer[:size])["outputs"]
    assert first == binary_tensor("BYTES", [2], answer[size:], "a")
    assert second == {"name": "b", "datatype": "BYTES", "data": [{"label": "cat"}], "shape": [1]}
    assert answer[size:] == counted("é".encode(), b"\xff\xd8")


def test_binary_and_json_inputs_mix() -> None:
    blob = np.array([1.5], "<f4").tobytes()
    row, headers = binary_row({"inputs": [tensor("a"), binary_tensor("FP32", [1], blob, "b"), tensor("c")]}, blob)
    (answer,) = KServev2Envelope(data_of).handle([row], context_of(headers))
    assert [output["data"] for output in answer["outputs"]] == [[7, 8], [1.5], [7, 8]]


def test_an_output_may_decline_binary() -> None:
    (output,) = outputs_of(
        [1], parameters={"binary_data_output": True}, outputs=[{"name": "p", "parameters": {"binary_data": False}}]
    )
    assert output == {"name": "p", "datatype": "INT64", "data": [1], "shape": [1]}


@pytest.mark.parametrize(
    ("datatype", "shape", "blob", "message"),
    [
        ("FP32", [1], b"123", r"inputs\[0\] \('n'\) has 3 bytes of data, which is no multiple of 4"),
        ("FP32", [2], b"1234", "data has 1 elements"),
        ("BYTES", [1], b"\x05\0\0\0ab", "an element of BYTES that ends after its data"),
        ("BYTES", [1], b"\x05\0", "an element of BYTES that ends after its data"),
    ],
)
def test_binary_data_that_make_no_sense(datatype: str, shape: list[int], blob: bytes, message: str) -> None:
    row, headers = binary_row({"inputs": [binary_tensor(datatype, shape, blob)]}, blob)
    with pytest.raises(ValueError, match=message):
        KServev2Envelope(data_of).handle([row], context_of(headers))


def test_binary_data_that_are_too_many_or_too_few() -> None:
    row, headers = binary_row({"inputs": [tensor()]}, b"more")
    with pytest.raises(ValueError, match="4 bytes of binary data that no input asks for"):
        KServev2Envelope(data_of).handle([row], context_of(headers))
    row, headers = binary_row({"inputs": [binary_tensor("INT8", [4], b"1234")]}, b"12")
    with pytest.raises(ValueError, match=r"inputs\[0\] has 4 bytes of binary data, the request body only 2 more"):
        KServev2Envelope(data_of).handle([row], context_of(headers))


@pytest.mark.parametrize("length", ["0", "-1", "x", "99999", "9" * 30, "²"])
def test_a_header_length_that_cannot_be(length: str) -> None:
    body = json.dumps({"inputs": [tensor()]}).encode()
    with pytest.raises(ValueError, match=f"{HEADER} is '.*', for a request body of {len(body)} bytes"):
        KServev2Envelope(data_of).handle(rows(body), context_of({HEADER: length}))


def test_the_header_in_any_spelling_without_binary_data() -> None:
    body = json.dumps({"inputs": [tensor()]}).encode()
    for name, content in ((HEADER.upper(), body), (HEADER, json.loads(body))):
        (answer,) = KServev2Envelope(data_of).handle(rows(content), context_of({name: str(len(body))}))
        assert answer["outputs"][0]["data"] == [7, 8]
