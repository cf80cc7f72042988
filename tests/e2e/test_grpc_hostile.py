"""Clients of the gRPC port that are up to no good, and those that use what the protocol has beside plain calls."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hpack import Encoder

from tests.e2e.archives import write
from tests.e2e.server import Server, eventually, running
from tests.grpc.inference_client import ask, connect, request_of
from tserve.grpc.messages import INFERENCE, POOL, message

pytestmark = pytest.mark.e2e

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, UPDATE = 0, 1, 3, 4, 6, 7, 8
MOST_GROWTH = 200 << 20
MOST_CONNECTIONS = 40
SIZED = """
def handle(data, context):
    return data and [bytes(int(bytes(row["data"]))) for row in data]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    store = folder / "store"
    store.mkdir()
    write(store, "sized.mar", SIZED, name="sized")
    config = ["worker_start=fresh", f"max_connections={MOST_CONNECTIONS}"]
    with running(Server(folder / "server", store, config, grpc=True)) as server:
        assert server.register("sized.mar", initial_workers=1, synchronous=True).status == 200
        yield server
        print(server.log()[-4000:])


@pytest.fixture(autouse=True)
def others_are_served(server: Server) -> Iterator[None]:
    """Before and after; and nothing of it is an error in the log."""
    with connect(server.urls["grpc_inference"]) as channel:
        assert ask(channel, "Predictions", **sized(3)).bodies == [bytes(3)]
        yield
        assert ask(channel, "Predictions", **sized(3)).bodies == [bytes(3)]
    assert "Traceback" not in server.log()


def sized(size: int) -> dict[str, object]:
    return {"model_name": "sized", "input": {"data": b"%d" % size}}


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack("!HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload


HEAD = Encoder().encode(
    [
        (":method", "POST", True),
        (":path", f"/{INFERENCE}/Predictions", True),
        (":scheme", "http", True),
        ("content-type", "application/grpc", True),
    ]
)


def prediction(stream: int, size: int) -> bytes:
    data = request_of("Predictions", **sized(size)).SerializeToString()
    said = b"\0" + len(data).to_bytes(4, "big") + data
    return frame(HEADERS, 0x4, stream, HEAD) + frame(DATA, 0x1, stream, said)


@contextlib.contextmanager
def raw(server: Server, *, window: int = 65_535) -> Iterator[socket.socket]:
    """A connection that has said that it speaks HTTP/2, and how much it takes."""
    host, port = server.urls["grpc_inference"].rsplit(":", 1)
    with contextlib.closing(socket.create_connection((host, int(port)), timeout=60)) as client:
        client.sendall(PREFACE + frame(SETTINGS, 0, 0, struct.pack("!HI", 4, window)))
        if window > 65_535:
            client.sendall(frame(UPDATE, 0, 0, struct.pack("!I", window - 65_535)))
        yield client


def push(client: socket.socket, data: bytes, *, for_s: float = 5.0) -> int:
    """Send until all is sent, the server does not take any more, or closes; how much it has taken."""
    client.settimeout(0.5)
    sent, until = 0, time.monotonic() + for_s
    with contextlib.suppress(OSError):
        while sent < len(data) and time.monotonic() < until:
            sent += client.send(data[sent : sent + 65_536])
    return sent


def last_goodbye(client: socket.socket) -> int | None:
    """The error code of the GOAWAY that ends what the server says."""
    client.settimeout(60)
    said = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(1 << 16):
            said += part
    code = None
    while len(said) >= 9:
        high, low, kind, _, _ = struct.unpack("!HBBBI", said[:9])
        size = high << 8 | low
        if kind == GOAWAY:
            code = struct.unpack("!I", said[13:17])[0]
        said = said[9 + size :]
    return code


def resident(server: Server) -> int:
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, 0, 0, bytes(8)) * 300_000,
        frame(SETTINGS) * 300_000,
        frame(99, 0, 0, bytes(100)) * 100_000,
        b"".join(frame(HEADERS, 0x4, stream, HEAD) + frame(RST, 0, stream, bytes(4)) for stream in range(1, 60_000, 2)),
        b"".join(frame(HEADERS, 0x4, stream, HEAD) for stream in range(1, 60_000, 2)),
    ],
    ids=["pings", "settings", "unknown frames", "rapid reset (CVE-2023-44487)", "streams"],
)
def test_floods_end_the_connection(server: Server, flood: bytes) -> None:
    before = resident(server)
    with raw(server) as client:
        push(client, flood)
        assert last_goodbye(client) == 11, "ENHANCE_YOUR_CALM"
    assert resident(server) - before < MOST_GROWTH


def test_a_client_that_asks_and_never_reads(server: Server) -> None:
    before = resident(server)
    with raw(server, window=2**31 - 1) as client:
        push(client, b"".join(prediction(stream, 500_000) for stream in range(1, 40_001, 2)))
        assert resident(server) - before < MOST_GROWTH
    eventually("its calls are over", lambda: resident(server) - before < MOST_GROWTH / 2)


def test_a_client_that_has_no_room_for_answers(server: Server) -> None:
    before = resident(server)
    with raw(server, window=0) as client:
        push(client, b"".join(prediction(stream, 500_000) for stream in range(1, 401, 2)))
        assert resident(server) - before < MOST_GROWTH


def test_messages_that_are_announced_and_not_brought_to_an_end(server: Server) -> None:
    before = resident(server)
    with raw(server) as client:
        begun = b"\0" + (6 << 20).to_bytes(4, "big") + bytes(40_000)
        for stream in range(1, 2048, 2):
            push(client, frame(HEADERS, 0x4, stream, HEAD) + frame(DATA, 0, stream, begun[:16_000]))
        for at in range(200):  # as much of each as it has been given room for, and more
            push(client, frame(DATA, 0, 2 * at + 1, bytes(256 << 10)) * 8, for_s=1)
        assert resident(server) - before < MOST_GROWTH


def test_dribbling_costs_nobody_else(server: Server) -> None:
    with raw(server) as client:
        for byte in prediction(1, 5):
            client.sendall(bytes((byte,)))
        with connect(server.urls["grpc_inference"]) as channel:
            assert ask(channel, "Predictions", **sized(7)).bodies == [bytes(7)]


def test_idle_connections_make_room(server: Server) -> None:
    with contextlib.ExitStack() as held:
        idle = [held.enter_context(raw(server)) for _ in range(MOST_CONNECTIONS + 10)]
        with connect(server.urls["grpc_inference"]) as channel:
            assert ask(channel, "Predictions", **sized(4)).bodies == [bytes(4)]
        assert last_goodbye(idle[0]) == 0, "the one that has been idle for longest"


def test_http1_is_told_what_is_spoken_here(server: Server) -> None:
    host, port = server.urls["grpc_inference"].rsplit(":", 1)
    with contextlib.closing(socket.create_connection((host, int(port)), timeout=60)) as client:
        client.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
        said = b""
        while part := client.recv(4096):
            said += part
    assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"This port speaks gRPC" in said


@pytest.mark.parametrize("packed", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("method", ["Predictions", "StreamPredictions"])
def test_packed_messages(server: Server, packed: grpc.Compression, method: str) -> None:
    described = POOL.FindServiceByName(INFERENCE).methods_by_name[method]
    request, reply = message(described.input_type.full_name), message(described.output_type.full_name)
    asked = request(model_name="sized", input={"data": b"5", "padding": bytes(3 << 20)})
    with grpc.insecure_channel(server.urls["grpc_inference"], compression=packed) as channel:
        make = channel.unary_unary if method == "Predictions" else channel.unary_stream
        said = make(f"/{INFERENCE}/{method}", request.SerializeToString, reply.FromString)(asked, timeout=60)
        assert [each.prediction for each in (said if method == "StreamPredictions" else [said])] == [bytes(5)]


def test_metadata_has_its_limit(server: Server) -> None:
    request = request_of("Predictions", **sized(1)).SerializeToString()
    with connect(server.urls["grpc_inference"]) as channel:
        call = channel.unary_unary(f"/{INFERENCE}/Predictions")
        assert call(request, metadata=[("x-large", "v" * 10_000), ("x-bin", bytes(300))], timeout=60)
        with pytest.raises(grpc.RpcError) as refusal:
            call(request, metadata=[("x-large", "v" * 20_000)], timeout=60)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(request, timeout=60), "the connection is well"


def test_five_hundred_calls_at_once(server: Server) -> None:
    described = POOL.FindServiceByName(INFERENCE).methods_by_name["Predictions"]
    reply = message(described.output_type.full_name)
    request = request_of("Predictions", **sized(2)).SerializeToString()
    with connect(server.urls["grpc_inference"]) as channel:
        call = channel.unary_unary(f"/{INFERENCE}/Predictions", response_deserializer=reply.FromString)
        calls = [call.future(request, timeout=60) for _ in range(500)]
        codes = [each.code() for each in calls]  # waits
    assert codes.count(grpc.StatusCode.OK) >= 100, "as many as the job queue has room for"
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.INTERNAL}
