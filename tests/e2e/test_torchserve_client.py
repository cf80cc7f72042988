"""A client that was written for another server, torchserve-client of PyPI, by REST and by gRPC.

What it cannot do by itself stands beside the call: its REST client sends the numbers of a scaling as a body, which the
contract does not read, and its gRPC client builds messages of `Ping` and `Predictions` that its own stubs refuse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import grpc
import pytest
import requests
from google.protobuf.empty_pb2 import Empty
from torchserve_client import TorchServeClientGRPC, TorchServeClientREST
from torchserve_client.proto import inference_pb2

from tests.e2e.archives import write
from tests.e2e.server import Server, eventually, running

pytestmark = pytest.mark.e2e

HANDLER = """
def handle(data, context):
    if data is None:
        return None
    version = context.manifest["model"]["modelVersion"]
    return [{"version": version, "got": bytes(row["data"]).decode()} for row in data]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("torchserve-client")
    (folder / "store").mkdir()
    for file, version in (("one.mar", "1.0"), ("two.mar", "2.0")):
        write(folder / "store", file, HANDLER, version=version)
    with running(Server(folder / "server", folder / "store", ["worker_start=fresh"], grpc=True)) as server:
        yield server


def port(server: Server, role: str) -> int:
    return int(server.urls[role].rpartition(":")[2])


def files() -> list[tuple[str, BytesIO]]:
    return [("data", BytesIO(b"hello"))]


def test_rest(server: Server) -> None:
    client = TorchServeClientREST("http://127.0.0.1", port(server, "management"), port(server, "inference"))
    manage = client.management
    advice = "Use scale workers API to add workers for the model."
    registered = manage.register_model("one.mar", model_name="rest")
    assert registered == {"status": f'Model "rest" Version: 1.0 registered with 0 initial workers. {advice}'}
    (described,) = manage.describe_model("rest")
    assert (described["modelUrl"], described["batchSize"], described["workers"]) == ("one.mar", 1, [])
    assert manage.scale_workers("rest", min_worker=1) == {"status": "Processing worker updates..."}
    eventually("a worker", lambda: server.ready_workers("rest"))
    assert client.inference.health_check() == {"status": "Healthy"}
    assert client.inference.prediction("rest", files()) == {"version": "1.0", "got": "hello"}
    registered = manage.register_model("two.mar", model_name="rest", initial_workers=1, synchronous=True)
    assert registered == {"status": 'Model "rest" Version: 2.0 registered with 1 initial workers'}
    assert client.inference.prediction("rest", files(), version="2.0") == {"version": "2.0", "got": "hello"}
    assert manage.list_models(limit=1)["models"] == [{"modelName": "rest", "modelUrl": "one.mar"}]
    text = 'Default version successfully updated for model "rest" to "2.0"'
    assert manage.set_default_version("rest", "2.0") == {"status": text}
    assert [version["modelVersion"] for version in manage.describe_model("rest", "all")] == ["1.0", "2.0"]
    for version in ("1.0", None):
        assert manage.unregister_model("rest", version) == {"status": 'Model "rest" unregistered'}
    assert manage.list_models() == {"models": []}
    with pytest.raises(requests.HTTPError, match="404"):
        manage.describe_model("rest")


def test_grpc(server: Server) -> None:
    ports = port(server, "grpc_management"), port(server, "grpc_inference")
    client = TorchServeClientGRPC("http://127.0.0.1", *ports)
    manage, infer = client.management, client.inference.stub

    def predict(version: str = "") -> Any:
        ask = inference_pb2.PredictionsRequest(model_name="grpc", model_version=version, input={"data": b"hello"})
        return json.loads(infer.Predictions(ask).prediction)

    try:
        advice = "Use scale workers API to add workers for the model."
        registered = manage.register_model(url="one.mar", model_name="grpc", batch_size=2, s3_sse_kms=False)
        assert registered.msg == f'Model "grpc" Version: 1.0 registered with 0 initial workers. {advice}'
        (described,) = json.loads(manage.describe_model("grpc").msg)
        assert (described["modelUrl"], described["batchSize"], described["workers"]) == ("one.mar", 2, [])
        scaled = manage.scale_worker("grpc", min_worker=1, model_version="1.0", synchronous=True, timeout=0)
        assert scaled.msg == "Workers scaled to 1 for model: grpc, version: 1.0"
        assert json.loads(infer.Ping(Empty()).health) == {"status": "Healthy"}
        assert predict() == {"version": "1.0", "got": "hello"}
        registered = manage.register_model(url="two.mar", model_name="grpc", initial_workers=1, synchronous=True)
        assert registered.msg == 'Model "grpc" Version: 2.0 registered with 1 initial workers'
        assert predict("2.0") == {"version": "2.0", "got": "hello"}
        for listed in (manage.list_models(), manage.list_models(limit=100)):
            assert json.loads(listed.msg) == {"models": [{"modelName": "grpc", "modelUrl": "one.mar"}]}
        text = 'Default version successfully updated for model "grpc" to "2.0"'
        assert manage.set_default("grpc", "2.0").msg == text
        assert predict() == {"version": "2.0", "got": "hello"}
        with pytest.raises(grpc.RpcError) as refused:
            manage.unregister_model("grpc")
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        for version in ("1.0", None):
            assert manage.unregister_model("grpc", version).msg == 'Model "grpc" unregistered'
        assert json.loads(manage.list_models().msg) == {"models": []}
        with pytest.raises(grpc.RpcError) as refused:
            manage.describe_model("grpc")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    finally:
        manage.channel.close()
        client.inference.channel.close()
