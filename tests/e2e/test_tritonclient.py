"""A client that was written for another server: Triton's, over HTTP and gRPC, against models behind `kservev2`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.e2e.archives import write
from tests.e2e.server import Server, eventually, running

pytestmark = pytest.mark.e2e

# Doubles numbers and turns texts round; one model does so with torch's tensors, one with plain lists.
TENSORS = """
import torch

def handle(data, context):
    if data is None:
        return None
    kinds = {"FP32": torch.float32, "FP64": torch.float64, "INT64": torch.int64, "FP16": torch.float16}
    return [torch.tensor(each["data"], dtype=kinds[each["datatype"]]) * 2 for each in data]
"""
LISTS = """
def twice(value):
    if isinstance(value, list):
        return [twice(each) for each in value]
    return value[::-1] if isinstance(value, (str, bytes)) else value * 2

def handle(data, context):
    return None if data is None else [twice(each["data"]) for each in data]
"""
FAILS = """
def handle(data, context):
    if data is not None:
        raise RuntimeError("not today")
"""
YAML = """
minWorkers: 1
maxWorkers: 1
inputs: [{name: x, datatype: FP32, shape: [-1, 2]}]
outputs: [{name: doubled, datatype: FP32, shape: [-1, 2]}]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("triton")
    store = folder / "store"
    store.mkdir()
    write(store, "tensors.mar", TENSORS, name="tensors", config=YAML)
    write(store, "lists.mar", LISTS, name="lists")
    write(store, "batched.mar", LISTS, name="batched", config="batchSize: 4\nmaxBatchDelay: 200\n")
    write(store, "fails.mar", FAILS, name="fails")
    write(store, "idle.mar", LISTS, name="idle")
    config = ["ts_open_inference_protocol=true", "service_envelope=kservev2"]
    with running(Server(folder / "server", store, config, grpc=True)) as server:
        for name in ("tensors", "lists", "batched", "fails"):
            assert server.register(f"{name}.mar", initial_workers=1, synchronous=True).status == 200
        assert server.register("idle.mar").status == 200
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.urls["inference"].removeprefix("http://"), concurrency=4) as client:
        yield client


@pytest.fixture
def grpc_client(server: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(server.urls["grpc_inference"]) as client:
        yield client


@pytest.fixture
def stub(server: Server) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """For what the client's own classes never send."""
    with grpc.insecure_channel(server.urls["grpc_inference"]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def given(name: str, array: Any, datatype: str, *, binary: bool) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_health(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tensors")
    assert not client.is_model_ready("idle")
    assert not client.is_model_ready("nosuch")
    assert not client.is_model_ready("tensors", "1.0"), "versions are not served"


def test_metadata(client: triton.InferenceServerClient) -> None:
    assert client.get_server_metadata()["name"] == "Torchserve"
    assert client.get_model_metadata("tensors") == {
        "name": "tensors",
        "versions": ["1.0"],
        "platform": "pytorch_torchserve",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "doubled", "datatype": "FP32", "shape": [-1, 2]}],
    }
    with pytest.raises(InferenceServerException, match="Model not found: nosuch"):
        client.get_model_metadata("nosuch")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_a_declared_output(client: triton.InferenceServerClient, binary: bool, asked: bool) -> None:
    """Without outputs asked for the client wants all of them in binary."""
    array = np.array([[0.5, 1.5], [2.5, -3.0]], np.float32)
    outputs = [triton.InferRequestedOutput("doubled", binary_data=binary)] if asked else None
    result = client.infer("tensors", [given("x", array, "FP32", binary=binary)], outputs=outputs, request_id="mine")
    doubled = result.as_numpy("doubled")
    assert doubled.dtype == np.float32
    np.testing.assert_array_equal(doubled, array * 2)
    assert result.get_response()["id"] == "mine"
    assert result.get_response()["model_name"] == "tensors"
    assert ("data" in result.get_output("doubled")) == (asked and not binary)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.array([[1, -2, 3]], np.int64), "INT64"),
        (np.array([0.25], np.float64), "FP64"),
        (np.zeros((0, 3), np.float64), "FP64"),
    ],
)
def test_numbers(client: triton.InferenceServerClient, array: Any, datatype: str, binary: bool) -> None:
    outputs = [triton.InferRequestedOutput("n", binary_data=binary)]
    result = client.infer("lists", [given("n", array, datatype, binary=binary)], outputs=outputs)
    assert result.get_output("n")["datatype"] == datatype
    doubled = result.as_numpy("n")
    if array.size:
        np.testing.assert_array_equal(doubled, array * 2)
        assert (doubled.dtype, doubled.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize("binary", [False, True])
def test_texts(client: triton.InferenceServerClient, binary: bool) -> None:
    array = np.array([["abc", "dé"], ["", "x"]], dtype=np.object_)
    outputs = [triton.InferRequestedOutput("n", binary_data=binary)]
    turned = client.infer("lists", [given("n", array, "BYTES", binary=binary)], outputs=outputs).as_numpy("n")
    texts = [[each.decode() if isinstance(each, bytes) else each for each in row] for row in turned.tolist()]
    assert texts == [["cba", "éd"], ["", "x"]]


def test_bytes_that_are_no_text(client: triton.InferenceServerClient) -> None:
    array = np.array([b"\xff\xd8\x00"], dtype=np.object_)
    turned = client.infer("lists", [given("n", array, "BYTES", binary=True)]).as_numpy("n")
    assert turned.tolist() == [b"\x00\xd8\xff"]


def test_several_inputs_of_both_kinds(client: triton.InferenceServerClient) -> None:
    one, two = np.array([1, 2], np.int64), np.array([0.5], np.float64)
    inputs = [given("one", one, "INT64", binary=True), given("two", two, "FP64", binary=False)]
    result = client.infer("lists", inputs)
    np.testing.assert_array_equal(result.as_numpy("one"), [2, 4])
    np.testing.assert_array_equal(result.as_numpy("two"), [1.0])


def test_requests_of_a_batch_get_their_own_answers(client: triton.InferenceServerClient) -> None:
    calls = [
        client.async_infer("batched", [given("n", np.array([i, i]), "INT64", binary=True)], request_id=f"r{i}")
        for i in range(8)
    ]
    results = [call.get_result() for call in calls]
    assert [result.as_numpy("n").tolist() for result in results] == [[2 * i, 2 * i] for i in range(8)]
    assert [result.get_response()["id"] for result in results] == [f"r{i}" for i in range(8)]


def test_what_fails_says_why(client: triton.InferenceServerClient) -> None:
    array = np.array([1], np.int64)
    with pytest.raises(InferenceServerException, match="Prediction failed") as failed:
        client.infer("fails", [given("n", array, "INT64", binary=True)])
    assert failed.value.status() == "503"
    assert "not today" in failed.value.debug_details()
    with pytest.raises(InferenceServerException, match="has no worker to serve inference request"):
        client.infer("idle", [given("n", array, "INT64", binary=True)])
    with pytest.raises(InferenceServerException, match="Model versioning is not yet supported"):
        client.infer("lists", [given("n", array, "INT64", binary=True)], model_version="1.0")


def test_a_server_that_lost_a_worker_is_not_ready(client: triton.InferenceServerClient, server: Server) -> None:
    assert server.scale("idle", min_worker=1, synchronous=True).status == 200
    assert client.is_model_ready("idle")
    assert server.scale("idle", min_worker=0, synchronous=True).status == 200
    eventually("no worker", lambda: not client.is_model_ready("idle"))
    assert client.is_server_ready(), "nobody wants one"


# -- over gRPC


def tensor(name: str, array: Any, datatype: str) -> triton_grpc.InferInput:
    """The client sends data raw, whatever it is."""
    one = triton_grpc.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array)
    return one


def test_health_over_grpc(grpc_client: triton_grpc.InferenceServerClient) -> None:
    assert grpc_client.is_server_live()
    assert grpc_client.is_server_ready()
    assert grpc_client.is_model_ready("tensors")
    assert grpc_client.is_model_ready("tensors", "1.0"), "versions are served here"
    assert not grpc_client.is_model_ready("idle")
    with pytest.raises(InferenceServerException, match="Model not found: nosuch") as refused:
        grpc_client.is_model_ready("nosuch")
    assert refused.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="Model version: 9 does not exist"):
        grpc_client.is_model_ready("tensors", "9")


def test_metadata_over_grpc(grpc_client: triton_grpc.InferenceServerClient) -> None:
    about = grpc_client.get_server_metadata(as_json=True)
    assert about == {"name": "Torchserve", "version": "0.12.0", "extensions": ["kserve", "kubeflow"]}
    for version in ("", "1.0"):
        assert grpc_client.get_model_metadata("tensors", version, as_json=True) == {
            "name": "tensors",
            "versions": ["1.0"],
            "platform": "pytorch_torchserve",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "2"]}],
            "outputs": [{"name": "doubled", "datatype": "FP32", "shape": ["-1", "2"]}],
        }


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_tensors_over_grpc(grpc_client: triton_grpc.InferenceServerClient, dtype: str) -> None:
    kinds = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "int64": "INT64"}
    array = np.array([[1.0, -2.0], [3.0, 4.0]], dtype)
    result = grpc_client.infer("tensors", [tensor("x", array, kinds[dtype])], model_version="1.0", request_id="mine")
    doubled = result.as_numpy("doubled")
    assert doubled.dtype == dtype
    np.testing.assert_array_equal(doubled, array * 2)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("mine", "tensors", "1.0")
    assert result.get_output("doubled").datatype == kinds[dtype]


def test_texts_and_bytes_over_grpc(grpc_client: triton_grpc.InferenceServerClient) -> None:
    texts = np.array([["abc", "dé"], ["", "x"]], dtype=np.object_)
    turned = grpc_client.infer("lists", [tensor("n", texts, "BYTES")]).as_numpy("n")
    assert [[each.decode() for each in row] for row in turned.tolist()] == [["cba", "éd"], ["", "x"]]
    noise = np.array([b"\xff\xd8\x00"], dtype=np.object_)
    assert grpc_client.infer("lists", [tensor("n", noise, "BYTES")]).as_numpy("n").tolist() == [b"\x00\xd8\xff"]


def test_several_inputs_and_outputs_asked_for_over_grpc(grpc_client: triton_grpc.InferenceServerClient) -> None:
    inputs = [tensor("one", np.array([1, 2], np.int64), "INT64"), tensor("two", np.array([0.5]), "FP64")]
    result = grpc_client.infer("lists", inputs, outputs=[triton_grpc.InferRequestedOutput("two")])
    np.testing.assert_array_equal(result.as_numpy("two"), [1.0])
    assert result.as_numpy("one") is None


def test_requests_side_by_side_over_grpc(grpc_client: triton_grpc.InferenceServerClient) -> None:
    results: SimpleQueue[Any] = SimpleQueue()
    for i in range(8):
        done = partial(lambda mark, result, error: results.put((mark, error or result)), f"r{i}")
        grpc_client.async_infer("batched", [tensor("n", np.array([i, i]), "INT64")], done, request_id=f"r{i}")
    for mark, result in sorted(results.get(timeout=60) for _ in range(8)):
        assert result.get_response().id == mark
        assert result.as_numpy("n").tolist() == [2 * int(mark[1:])] * 2


def test_what_fails_over_grpc_says_why(grpc_client: triton_grpc.InferenceServerClient) -> None:
    array = np.array([1], np.int64)
    for model, status, said in [
        ("fails", "UNAVAILABLE", "Prediction failed"),
        ("idle", "UNAVAILABLE", "has no worker to serve inference request"),
        ("nosuch", "NOT_FOUND", "Model not found: nosuch"),
    ]:
        with pytest.raises(InferenceServerException, match=said) as failed:
            grpc_client.infer(model, [tensor("n", array, "INT64")])
        assert failed.value.status() == f"StatusCode.{status}"


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("FP32", "fp32_contents", [0.5, -1.5]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
        ("INT64", "int64_contents", [1, -(2**40)]),
        ("BYTES", "bytes_contents", [b"abc", b"\xff\x00"]),
    ],
)
def test_typed_contents(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, datatype: str, field: str, values: list[Any]
) -> None:
    """Typed requests have typed answers, unless they ask for raw ones."""
    request = service_pb2.ModelInferRequest(model_name="lists", id="mine")
    given = request.inputs.add(name="n", datatype=datatype, shape=[2])
    getattr(given.contents, field).extend(values)
    response = stub.ModelInfer(request, timeout=60)
    [output] = response.outputs
    expected = [value[::-1] if isinstance(value, bytes) else value * 2 for value in values]
    kind = datatype if datatype in ("BYTES", "INT64") else "FP64"  # what lists of floats are
    assert (response.id, output.datatype, list(output.shape)) == ("mine", kind, [2])
    filled = {"BYTES": "bytes_contents", "INT64": "int64_contents"}.get(kind, "fp64_contents")
    assert list(getattr(output.contents, filled)) == expected
    assert not response.raw_output_contents
    request.parameters["binary_data_output"].bool_param = True
    raw = stub.ModelInfer(request, timeout=60)
    assert len(raw.raw_output_contents) == 1
    assert not raw.outputs[0].HasField("contents")
    assert not raw.outputs[0].parameters


def test_a_half_float_is_answered_raw_to_whoever_asks(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    """No typed contents can have it."""
    request = service_pb2.ModelInferRequest(model_name="tensors")
    request.inputs.add(name="x", datatype="FP16", shape=[1, 2])
    request.raw_input_contents.append(np.array([1.5, -2.0], "<f2").tobytes())
    response = stub.ModelInfer(request, timeout=60)
    assert response.outputs[0].datatype == "FP16"
    np.testing.assert_array_equal(np.frombuffer(response.raw_output_contents[0], "<f2"), [3.0, -4.0])


def test_requests_that_contradict_themselves(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    def refused(*raw: bytes, datatype: str = "INT32", **contents: Any) -> str:
        request = service_pb2.ModelInferRequest(model_name="lists", raw_input_contents=raw)
        request.inputs.add(name="n", datatype=datatype, shape=[1], contents=contents or None)
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(request, timeout=60)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return str(error.value.details()).partition("\n")[0]

    assert refused(b"abcd", b"abcd") == "raw_input_contents has the data of 2 inputs, the request 1 inputs."
    assert refused(b"abcd", int_contents=[1]) == "raw_input_contents and contents cannot be mixed."
    assert refused(int64_contents=[1]) == (
        "inputs[0]: its data stand in int64_contents; those of INT32 belong in int_contents."
    )
    assert refused(datatype="INT8", int_contents=[300]).startswith("inputs[0]: its data are not INT8: ")
    assert refused(datatype="FP16", fp32_contents=[1.0]).endswith("those of FP16 belong in raw_input_contents.")
    assert refused(datatype="INT7").startswith("inputs[0]: its datatype is 'INT7'; known are BOOL, ")
    with pytest.raises(grpc.RpcError) as unnamed:
        stub.ModelInfer(service_pb2.ModelInferRequest(), timeout=60)
    assert unnamed.value.details() == "Parameter name is required.\nBadRequestException.()"


def test_large_tensors_over_grpc(grpc_client: triton_grpc.InferenceServerClient) -> None:
    """Both ways of 2 MiB, converted beside the loop."""
    array = np.arange(1 << 19, dtype=np.float32)
    result = grpc_client.infer("tensors", [tensor("x", array, "FP32")])
    np.testing.assert_array_equal(result.as_numpy("doubled"), array * 2)
