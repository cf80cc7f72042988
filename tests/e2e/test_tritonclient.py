"""A client that was written for another server: Triton's, over HTTP, against a model behind the `kservev2` envelope."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
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
    with running(Server(folder / "server", store, config)) as server:
        for name in ("tensors", "lists", "batched", "fails"):
            assert server.register(f"{name}.mar", initial_workers=1, synchronous=True).status == 200
        assert server.register("idle.mar").status == 200
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.urls["inference"].removeprefix("http://"), concurrency=4) as client:
        yield client


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
