"""The gRPC inference port of the real server, by a plain grpcio client and by clients that behave badly."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.e2e.archives import ECHO, FAILS_TO_LOAD, GATED, write
from tests.e2e.server import Server, eventually, running
from tests.e2e.test_orphans import boot_without_torch, zygotes
from tests.grpc.inference_client import ask, begin, connect, converse, end, request_of
from tserve.grpc.messages import INFERENCE, MANAGEMENT, OPEN_INFERENCE, STANDARD_OPEN_INFERENCE, message

pytestmark = pytest.mark.e2e

MOST_BYTES = 1 << 20
STREAMS = """
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(data, context):
    if data is None:
        return None
    row = data[0]
    for number in range(int(bytes(row["data"]))):
        piece = bytes(int(bytes(row["size"]))) if "size" in row else f"piece {number}|"
        send_intermediate_predict_response([piece], context.request_ids, "", 200, context)
    if "fail" in row:
        raise RuntimeError("out of words")
    return ["end"]
"""
# One piece, and the rest as soon as the file is there whose folder the request names.
SLOW_STREAMS = """
import asyncio, pathlib
from ts.handler_utils.utils import send_intermediate_predict_response

class Handler:
    def initialize(self, context):
        pass

    async def handle(self, data, context):
        go = pathlib.Path(bytes(data[0]["body"]).decode(), "go")
        send_intermediate_predict_response(["first"], context.request_ids, "", 200, context)
        while not go.exists():
            await asyncio.sleep(0.02)
        return ["last"]
"""
# Says the id of the sequence and the sum of its numbers so far.
SUMS = """
sums = {}

def handle(data, context):
    if data is None:
        return None
    said = []
    for idx, row in enumerate(data):
        id, start = context.get_sequence_id(idx), context.get_request_header(idx, "ts_request_sequence_start")
        if start == "true":
            sums[id] = 0
        if bytes(row["data"]) == b"bad":
            raise ValueError("no number")
        sums[id] = sums.get(id, 0) + int(bytes(row["data"]))
        said.append(f"{id} {sums[id]}")
    return said
"""
STATUS = """
from ts.utils.util import PredictionException

def handle(data, context):
    if data is None:
        return None
    code = int(bytes(data[0]["data"]))
    if code:
        raise PredictionException(f"said {code}", code)
    context.set_response_status(code=418, phrase="short and stout", idx=0)
    return ["tea"]
"""
# Answers in the protocol without an envelope: what it was sent, and its inputs as outputs.
OWN_PROTOCOL = """
import json

def handle(data, context):
    if data is None:
        return None
    asked = data[0]["body"]
    about = {"saw": json.dumps(asked, sort_keys=True)}
    return [{"model_name": "mine", "outputs": asked["inputs"], "parameters": about}]
"""
SEQUENCES = """
sequenceBatching: true
sequenceMaxIdleMSec: 600000
maxNumSequence: 4
maxSequenceJobQueueSize: 1
batchSize: 4
maxBatchDelay: 1
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("grpc")
    store = folder / "store"
    store.mkdir()
    write(store, "echo.mar", ECHO)
    write(store, "streams.mar", STREAMS, name="streams")
    write(store, "slow.mar", SLOW_STREAMS, name="slow", config="asyncCommunication: true\n")
    write(store, "sums.mar", SUMS, name="sums", config=SEQUENCES)
    write(store, "status.mar", STATUS, name="status")
    write(store, "gated.mar", GATED, name="gated", config="jobQueueSize: 1\n")
    write(store, "idle.mar", ECHO, name="idle")
    write(store, "own.mar", OWN_PROTOCOL, name="own")
    write(store, "broken.mar", FAILS_TO_LOAD, name="broken")
    config = [f"max_request_size={MOST_BYTES}", "ts_open_inference_protocol=true", "worker_start=fresh"]
    with running(Server(folder / "server", store, config, grpc=True)) as server:
        for name in ("echo", "streams", "slow", "sums", "status", "gated", "own"):
            answer = server.register(f"{name}.mar", initial_workers=1, synchronous=True)
            assert answer.status == 200, (answer, server.log()[-3000:])
        assert server.register("idle.mar").status == 200
        yield server
        print(server.log()[-4000:])


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with connect(server.urls["grpc_inference"]) as channel:
        yield channel


def pending(server: Server, name: str) -> int:
    return int(server.describe(name)[0]["jobQueueStatus"]["pendingRequests"])


def of(name: str, data: str = "x", **inputs: str) -> dict[str, Any]:
    """The fields of a request."""
    given = {"data": data, **inputs}
    return {"model_name": name, "input": {key: value.encode() for key, value in given.items()}}


def gated(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {"model_name": "gated", "input": {"body": str(folder).encode()}}


class Talk:
    """A conversation, request by request."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self.call = begin(channel, "StreamPredictions2", iter(self._requests.get, None))

    def say(self, **fields: Any) -> None:
        self._requests.put(request_of("StreamPredictions2", **fields))

    def ask(self, **fields: Any) -> Any:
        self.say(**fields)
        return next(self.call)

    def close(self) -> None:
        self._requests.put(None)


# -- answers


def test_ping(channel: grpc.Channel) -> None:
    told = ask(channel, "Ping")
    assert [reply.health for reply in told.replies] == ['{\n  "status": "Healthy"\n}']


def test_predictions(channel: grpc.Channel) -> None:
    assert ask(channel, "Predictions", **of("echo")).bodies == [b"echo 1.0 of 1"]
    assert ask(channel, "Predictions", **of("echo"), model_version="1.0").bodies == [b"echo 1.0 of 1"]
    assert ask(channel, "Predictions", **of("status", "0")).bodies == [b"tea"], "the status is the handler's own affair"


def test_a_streamed_answer_to_a_unary_call_is_joined(channel: grpc.Channel) -> None:
    assert ask(channel, "Predictions", **of("streams", "2")).bodies == [b"piece 0|piece 1|end"]
    told = ask(channel, "Predictions", **of("streams", "2", fail="yes"))
    assert (told.code, told.replies) == ("UNAVAILABLE", [])
    assert ask(channel, "Predictions", **of("streams", "0")).bodies == [b"end"], "the worker is well"


def test_streams(channel: grpc.Channel) -> None:
    assert ask(channel, "StreamPredictions", **of("streams", "2")).bodies == [b"piece 0|", b"piece 1|", b"end"]
    assert ask(channel, "StreamPredictions", **of("streams", "0")).bodies == [b"end"]
    assert ask(channel, "StreamPredictions", **of("echo")).bodies == [b"echo 1.0 of 1"]
    broken = ask(channel, "StreamPredictions", **of("streams", "2", fail="yes"))
    assert broken.bodies == [b"piece 0|", b"piece 1|"]
    assert (broken.code, broken.text.partition("\n")[0]) == ("UNAVAILABLE", "Prediction failed")
    assert "out of words" in broken.cause["detail"]


@pytest.mark.parametrize("method", ["Predictions", "StreamPredictions"])
def test_refusals(channel: grpc.Channel, method: str) -> None:
    package = "org.pytorch.serve."
    for fields, code, text in [
        ({}, "INTERNAL", "Parameter model_name is required.\nBadRequestException.()"),
        (of("nosuch"), "INTERNAL", f"Model not found: nosuch\n{package}archive.model.ModelNotFoundException"),
        (
            {**of("echo"), "model_version": "9"},
            "INTERNAL",
            f"Model version: 9 does not exist for model: echo\n{package}archive.model.ModelVersionNotFoundException",
        ),
        (of("status", "404"), "NOT_FOUND", f"said 404\n{package}http.InternalServerException"),
        (of("status", "429"), "RESOURCE_EXHAUSTED", f"said 429\n{package}http.InternalServerException"),
        (of("status", "507"), "INTERNAL", f"said 507\n{package}http.InternalServerException"),
    ]:
        told = ask(channel, method, **fields)
        assert (told.code, told.text, told.replies) == (code, text, [])
    idle = ask(channel, method, **of("idle"))
    assert (idle.code, idle.cause) == ("INTERNAL", {"reason": "no_worker"})
    assert idle.text.endswith("\nInternalServerException.()")


def test_methods_that_are_not_here(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{MANAGEMENT}/ListModels")(b"", timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert refused.value.details() == f"Method not found: {MANAGEMENT}/ListModels"


# -- conversations


def test_sequences_in_one_conversation(channel: grpc.Channel) -> None:
    talk = Talk(channel)
    for sequence, number, total in [("a", "1", 1), ("b", "10", 10), ("a", "2", 3), ("b", "20", 30)]:
        reply = talk.ask(**of("sums", number), sequence_id=sequence)
        assert (reply.prediction.decode(), reply.sequence_id) == (f"{sequence} {total}", sequence)
    reply = talk.ask(**of("sums", "5"))
    assert reply.sequence_id == "b", "without an id the sequence before goes on"
    reply = talk.ask(**of("sums", "7", ts_request_sequence_start="true"))
    assert reply.sequence_id.startswith("ts-seq-")
    own, total = reply.prediction.decode().split()
    assert (own, total) == (reply.sequence_id, "7")
    talk.close()
    assert end(talk.call).code == "OK"
    again = ask(channel, "Predictions", **of("sums", "1", ts_request_sequence_end="true"), sequence_id="a")
    assert (again.bodies, again.replies[0].sequence_id) == ([b"a 4"], "a"), "a sequence outlives the conversation"
    for sequence in ("b", own):
        ask(channel, "StreamPredictions", **of("sums", "0", ts_request_sequence_end="true"), sequence_id=sequence)


def test_requests_that_come_at_once_are_answered_in_order(channel: grpc.Channel) -> None:
    """Though a sequence may have one waiting only."""
    asked = [{**of("sums", "1"), "sequence_id": f"s{number % 3}"} for number in range(60)]
    asked += [{**of("sums", "0", ts_request_sequence_end="true"), "sequence_id": f"s{number}"} for number in range(3)]
    told = converse(channel, asked)
    assert told.code == "OK"
    for number in range(3):
        mine = [reply.prediction.decode() for reply in told.replies if reply.sequence_id == f"s{number}"]
        assert mine == [f"s{number} {total}" for total in [*range(1, 21), 20]]


def test_what_fails_is_told_in_the_conversation(channel: grpc.Channel) -> None:
    talk = Talk(channel)
    first = talk.ask(**of("sums"))
    assert (first.status.code, first.prediction) == (grpc.StatusCode.INTERNAL.value[0], b"")
    assert "sequence_id" in first.status.message
    assert talk.ask(**of("nosuch")).status.message == "Model not found: nosuch"
    assert talk.ask(model_name="").status.message == "Parameter model_name is required."
    failed = talk.ask(**of("sums", "bad"), sequence_id="f")
    assert (failed.status.code, failed.status.message) == (14, "Prediction failed")
    assert failed.sequence_id == "f"
    [detail] = failed.status.details
    assert detail.type_url == "type.googleapis.com/google.rpc.ErrorInfo"
    info = message("google.rpc.ErrorInfo").FromString(detail.value)
    assert info.reason == "org.pytorch.serve.http.InternalServerException"
    assert "no number" in info.metadata["tserve-cause"]
    assert not talk.ask(**of("sums", "1", ts_request_sequence_end="true"), sequence_id="f").HasField("status")
    talk.close()
    assert end(talk.call).code == "OK"


def test_a_stateless_model_knows_no_sequences(channel: grpc.Channel) -> None:
    """Else its requests would go to any worker, and nobody would notice."""
    told = converse(channel, [{**of("echo"), "sequence_id": "a"}, of("echo"), of("streams", "1")])
    refused, *served = told.replies
    assert refused.status.message == "Model echo is not stateful: it knows no sequences."
    assert [bytes(reply.prediction) for reply in served] == [b"echo 1.0 of 1", b"piece 0|", b"end"]
    assert not any(reply.HasField("sequence_id") for reply in served)


# -- the Open Inference Protocol; tests/e2e/test_tritonclient.py has it behind the envelope


@pytest.mark.parametrize("service", [OPEN_INFERENCE, STANDARD_OPEN_INFERENCE])
@pytest.mark.parametrize("raw", [False, True])
def test_a_handler_that_speaks_the_protocol_itself(channel: grpc.Channel, service: str, raw: bool) -> None:
    """It gets the recorded JSON, however its client sent the data."""
    request = request_of("ModelInfer", service=service, model_name="own", id="7")
    numbers = request.inputs.add(name="n", datatype="INT16", shape=[2])
    texts = request.inputs.add(name="t", datatype="BYTES", shape=[1])
    texts.parameters["lang"].string_param = "de"
    if raw:
        request.raw_input_contents.extend([struct.pack("<2h", 1, -2), struct.pack("<I", 2) + b"hi"])
    else:
        numbers.contents.int_contents.extend([1, -2])
        texts.contents.bytes_contents.append(b"hi")
    told = ask(channel, "ModelInfer", request, service=service)
    assert told.code == "OK", told
    [response] = told.replies
    assert (response.model_name, response.id) == ("mine", "7")
    assert json.loads(response.parameters["saw"].string_param) == {
        "id": "7",
        "model_name": "own",
        "inputs": [
            {"name": "n", "datatype": "INT16", "shape": [2], "data": [1, -2]},
            {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["aGk="], "parameters": {"lang": "de"}},
        ],
    }
    assert response.outputs[1].parameters["lang"].string_param == "de"
    if raw:
        assert list(response.raw_output_contents) == [struct.pack("<2h", 1, -2), struct.pack("<I", 4) + b"aGk="]
    else:
        assert list(response.outputs[0].contents.int_contents) == [1, -2]
        assert list(response.outputs[1].contents.bytes_contents) == [b"aGk="]


def test_a_handler_that_does_not_speak_the_protocol(channel: grpc.Channel) -> None:
    request = request_of("ModelInfer", service=STANDARD_OPEN_INFERENCE, model_name="echo")
    for _ in range(2):
        told = ask(channel, "ModelInfer", request, service=STANDARD_OPEN_INFERENCE)
        assert (told.code, told.cause["reason"]) == ("INTERNAL", "not_open_inference")
        assert told.text.startswith("The handler did not answer in the Open Inference Protocol")
    assert ask(channel, "Predictions", **of("echo")).bodies == [b"echo 1.0 of 1"], "the worker lives"


def test_readiness_is_true(channel: grpc.Channel, server: Server) -> None:
    def ready(method: str, **fields: str) -> bool:
        return bool(ask(channel, method, service=OPEN_INFERENCE, **fields).replies[0].ready)

    assert ready("ServerReady")
    assert ready("ModelReady", name="echo")
    assert ready("ModelReady", name="echo", version="1.0")
    assert not ready("ModelReady", name="idle")
    unknown = ask(channel, "ModelReady", service=OPEN_INFERENCE, name="nosuch")
    assert unknown.text == "Model not found: nosuch\norg.pytorch.serve.archive.model.ModelNotFoundException"
    assert unknown.code == "NOT_FOUND"
    unnamed = ask(channel, "ModelReady", service=OPEN_INFERENCE)
    assert (unnamed.code, unnamed.text) == ("INTERNAL", "Parameter name is required.\nBadRequestException.()")


# -- limits and time


def test_a_cancelled_call_frees_its_place_in_the_queue(channel: grpc.Channel, server: Server, tmp_path: Path) -> None:
    running_call = begin(channel, "Predictions", request_of("Predictions", **gated(tmp_path)))
    eventually("the first call runs", (tmp_path / "running").exists)
    waiting = begin(channel, "Predictions", request_of("Predictions", **gated(tmp_path)))
    eventually("the second one waits", lambda: pending(server, "gated") == 1)
    full = ask(channel, "Predictions", **gated(tmp_path))
    assert (full.code, full.cause) == ("INTERNAL", {"reason": "queue_full"})
    waiting.cancel()
    eventually("its place is free", lambda: pending(server, "gated") == 0)
    (tmp_path / "go").touch()
    assert end(running_call).bodies == [b"through"]


def test_a_deadline_ends_the_wait(channel: grpc.Channel, server: Server, tmp_path: Path) -> None:
    running_call = begin(channel, "StreamPredictions", request_of("StreamPredictions", **gated(tmp_path)))
    eventually("the first call runs", (tmp_path / "running").exists)
    request = request_of("Predictions", **gated(tmp_path))
    assert end(begin(channel, "Predictions", request, within_s=0.3)).code == "DEADLINE_EXCEEDED"
    eventually("its place is free", lambda: pending(server, "gated") == 0)
    (tmp_path / "go").touch()
    assert end(running_call).bodies == [b"through"]


def test_a_hundred_streams_at_once(channel: grpc.Channel, server: Server, tmp_path: Path) -> None:
    request = request_of("StreamPredictions", model_name="slow", input={"body": str(tmp_path).encode()})
    before = threads(server)
    calls = [begin(channel, "StreamPredictions", request) for _ in range(100)]
    assert [bytes(next(call).prediction) for call in calls] == [b"first"] * 100
    assert threads(server) - before < 10, "a stream costs no thread"
    assert ask(channel, "Predictions", **of("echo")).bodies == [b"echo 1.0 of 1"]
    (tmp_path / "go").touch()
    assert [end(call).bodies for call in calls] == [[b"last"]] * 100


def threads(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.pid}/task"))


def test_a_client_that_does_not_read_is_given_up(channel: grpc.Channel, server: Server) -> None:
    """And costs neither thread nor worker: the stream is of 200 MiB, 64 may be unread here, and some at the client."""
    before = threads(server)
    with connect(server.urls["grpc_inference"]) as other:
        stuck = begin(
            other, "StreamPredictions", request_of("StreamPredictions", **of("streams", "400", size="524288"))
        )
        assert len(next(stuck).prediction) == 524288
        assert ask(channel, "Predictions", **of("streams", "0")).bodies == [b"end"], "the worker is free again"
        assert threads(server) - before < 10
        told = end(stuck)
    assert told.code == "INTERNAL"
    assert told.text.startswith("The client left more than 67108864 bytes of the stream unread.")
    assert len(told.replies) < 100


def test_a_client_that_leaves_a_stream_ends_it(channel: grpc.Channel, server: Server) -> None:
    """A worker that streams without end is told that nobody listens, and is free for the next one."""
    stream = begin(channel, "StreamPredictions", request_of("StreamPredictions", **of("streams", "1000000000")))
    assert next(stream).prediction == b"piece 0|"
    stream.cancel()
    assert ask(channel, "Predictions", **of("streams", "0")).bodies == [b"end"]


def test_clients_that_leave_at_any_time(channel: grpc.Channel, server: Server) -> None:
    chance, before = random.Random(4), server.log()
    for _ in range(60):
        with connect(server.urls["grpc_inference"]) as other:
            method = chance.choice(["Predictions", "StreamPredictions", "StreamPredictions2"])
            request = request_of(method, **of("streams", str(chance.choice([0, 3, 400])), size="20000"))
            call = begin(other, method, iter([request, request]) if method == "StreamPredictions2" else request)
            for _ in range(chance.randrange(4) if call.streams else 0):
                next(call, None)
            if chance.random() < 0.5:
                call.cancel()
    assert ask(channel, "Predictions", **of("streams", "0")).bodies == [b"end"]
    eventually("nobody waits", lambda: pending(server, "streams") == 0)
    for word in ("ERROR", "never retrieved", "Traceback"):
        assert server.log().count(word) == before.count(word)


def test_too_large_a_message(channel: grpc.Channel) -> None:
    for method in ("Predictions", "StreamPredictions"):
        told = ask(channel, method, **of("echo", "x" * MOST_BYTES))
        assert told.code == "RESOURCE_EXHAUSTED", told
        assert str(MOST_BYTES) in told.text
    assert ask(channel, "Predictions", **of("echo", "x" * (MOST_BYTES - 100))).code == "OK"


@pytest.mark.parametrize("method", ["Predictions", "StreamPredictions", "StreamPredictions2"])
def test_bytes_that_are_no_message(channel: grpc.Channel, server: Server, method: str) -> None:
    noise, before = b"\xff\xff\xff\xff no protobuf", server.log().count("Traceback")
    told = ask(channel, method, iter([noise]) if method == "StreamPredictions2" else noise)
    assert (told.code, told.cause) == ("INTERNAL", {"reason": "undecodable"})
    assert told.text == "The request is not a message of its type.\nBadRequestException.()"
    assert server.log().count("Traceback") == before


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = struct.pack(">HBBBI", 0, 0, 4, 0, 0)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",  # TLS says hello
        PREFACE[:10],
        PREFACE,
        PREFACE + SETTINGS[:4],
        PREFACE + SETTINGS,
        PREFACE + SETTINGS + struct.pack(">HBBBI", 0, 200, 1, 4, 1) + b"\x82",  # half of a HEADERS frame
        PREFACE + SETTINGS + b"\xff" * 64,
        bytes(range(256)) * 16,
    ],
)
def test_clients_that_speak_otherwise_or_leave(channel: grpc.Channel, server: Server, said: bytes) -> None:
    host, port = server.urls["grpc_inference"].rsplit(":", 1)
    with closing(socket.create_connection((host, int(port)), timeout=60)) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        with ExitStack() as left:
            left.callback(client.close)
            while client.recv(1 << 16):
                pass
    assert ask(channel, "Predictions", **of("echo")).bodies == [b"echo 1.0 of 1"]


def test_hundreds_of_idle_connections(channel: grpc.Channel, server: Server) -> None:
    host, port = server.urls["grpc_inference"].rsplit(":", 1)
    before = threads(server)
    with ExitStack() as clients:
        for _ in range(400):
            client = clients.enter_context(closing(socket.create_connection((host, int(port)), timeout=60)))
            client.sendall(PREFACE + SETTINGS)
        assert ask(channel, "Predictions", **of("echo")).bodies == [b"echo 1.0 of 1"]
        assert threads(server) - before < 10


# -- health and reflection


def test_health(channel: grpc.Channel, server: Server) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with connect(server.urls["grpc_management"]) as other:
        inference, management = health_pb2_grpc.HealthStub(channel), health_pb2_grpc.HealthStub(other)
        for name in ("", INFERENCE, OPEN_INFERENCE, STANDARD_OPEN_INFERENCE):
            assert inference.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status == serving
        for name in ("", MANAGEMENT):
            assert management.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status == serving
        with pytest.raises(grpc.RpcError) as unknown:
            inference.Check(health_pb2.HealthCheckRequest(service=MANAGEMENT), timeout=30)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watch = inference.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == serving
        assert server.register("broken.mar", initial_workers=1).status == 202
        assert next(watch).status == not_serving
        assert management.Check(health_pb2.HealthCheckRequest(), timeout=30).status == serving
        assert server.unregister("broken").status == 200
        assert next(watch).status == serving
        watch.cancel()
        nobody = inference.Watch(health_pb2.HealthCheckRequest(service="nosuch"), timeout=60)
        assert next(nobody).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        nobody.cancel()


def test_reflection_describes_every_service_and_message(server: Server) -> None:
    found = {}
    for port, own in (
        ("grpc_inference", {INFERENCE, OPEN_INFERENCE, STANDARD_OPEN_INFERENCE}),
        ("grpc_management", {MANAGEMENT}),
    ):
        with connect(server.urls[port]) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            names = set(database.get_services())
            standard = {name for name in names if name.startswith("grpc.")}
            assert names - standard == own
            assert {name.rpartition(".")[2] for name in standard} == {"Health", "ServerReflection"}
            pool = DescriptorPool(database)
            for name in names:
                for method in pool.FindServiceByName(name).methods:
                    for described in (method.input_type, method.output_type):
                        found[described.full_name] = GetMessageClass(described)().SerializeToString()
            with pytest.raises(KeyError):
                pool.FindMessageTypeByName("no.such.Message")
    assert f"{OPEN_INFERENCE.rpartition('.')[0]}.ModelInferRequest" in found
    assert set(found.values()) == {b""}


# -- the server's own life


def test_a_zygote_that_is_killed_comes_again(tmp_path: Path) -> None:
    """While calls are made: no process of the server is forked out of gRPC's threads."""
    store = tmp_path / "store"
    store.mkdir()
    write(store, "echo.mar", ECHO)
    program = boot_without_torch(tmp_path)  # a zygote is there at once then
    with running(Server(tmp_path / "server", store, program=program, grpc=True)) as server:
        assert server.register("echo.mar", initial_workers=1, synchronous=True).status == 200
        [zygote] = eventually("the zygote is there", lambda: zygotes(server))
        with connect(server.urls["grpc_inference"]) as channel:
            for number in range(20):
                if number == 5:
                    os.kill(zygote, signal.SIGKILL)
                assert ask(channel, "Predictions", **of("echo")).bodies == [b"echo 1.0 of 1"]
            eventually("another zygote is ready", lambda: server.log().count("the zygote is ready") == 2)
            assert server.scale("echo", min_worker=2, synchronous=True).status == 200
            assert zygotes(server) not in ([], [zygote])
            assert ask(channel, "Predictions", **of("echo")).bodies == [b"echo 1.0 of 1"]
        assert server.stop() == 0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server to be stopped; connections to its management port grow no older than 0.2 s."""
    store = tmp_path / "store"
    store.mkdir()
    write(store, "gated.mar", GATED, name="gated")
    write(store, "sums.mar", SUMS, name="sums", config=SEQUENCES)
    ages = ["grpc_management_max_connection_age_ms=100", "grpc_management_max_connection_age_grace_ms=100"]
    config = ["worker_start=fresh", *ages]
    with running(Server(tmp_path / "server", store, config, grpc=True)) as server:
        for name in ("gated", "sums"):
            assert server.register(f"{name}.mar", initial_workers=1, synchronous=True).status == 200
        yield server
        print(server.log()[-4000:])


def test_a_stop_lets_calls_finish(own: Server, tmp_path: Path) -> None:
    host, port = own.urls["grpc_management"].rsplit(":", 1)
    with closing(socket.create_connection((host, int(port)), timeout=60)) as aged:
        aged.sendall(PREFACE + SETTINGS)
        while aged.recv(1 << 16):  # until it has come of age: no test of time, but one of the option
            pass
    with connect(own.urls["grpc_inference"]) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        reflection = ProtoReflectionDescriptorDatabase(channel)
        assert INFERENCE in reflection.get_services(), "and its call stays open"
        talk = Talk(channel)
        assert talk.ask(**of("sums", "1"), sequence_id="a").prediction == b"a 1"
        call = begin(channel, "Predictions", request_of("Predictions", **gated(tmp_path / "call")))
        eventually("the call runs", (tmp_path / "call" / "running").exists)
        process = own.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert [reply.status for reply in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]
        told = end(talk.call)
        assert (told.code, told.text) == ("UNAVAILABLE", "The server is stopping.")
        talk.close()
        assert ask(channel, "Ping").code == "UNAVAILABLE", "no further calls"
        (tmp_path / "call" / "go").touch()
        assert end(call).bodies == [b"through"]
        assert own.ended() == 0


def test_a_stop_that_is_hurried_tells_the_calls(own: Server, tmp_path: Path) -> None:
    with connect(own.urls["grpc_inference"]) as channel:
        methods = ("Predictions", "StreamPredictions")
        calls = [begin(channel, each, request_of(each, **gated(tmp_path / "call"))) for each in methods]
        eventually("a call runs", (tmp_path / "call" / "running").exists)
        eventually("a call waits", lambda: pending(own, "gated") == 1)
        assert own.process is not None
        own.process.send_signal(signal.SIGTERM)
        eventually("it stops", lambda: "finishing what is in hand" in own.log())
        own.process.send_signal(signal.SIGTERM)
        assert [end(call).code for call in calls] == ["UNAVAILABLE"] * 2
        assert own.ended() == 1
