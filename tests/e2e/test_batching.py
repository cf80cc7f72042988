"""The ways of batching that a model's yaml can ask for, one test per row of spec/inference.md section 9.3."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.archives import write
from tests.e2e.server import Answer, Server, eventually, exchange, running

pytestmark = pytest.mark.e2e

# Each call adds one token to what a request has; the state of a request lives between two calls, by its id.
CONTINUOUS = """
import pathlib, time

def handle(data, context):
    if data is None:
        context.cache = {}
        return None
    cache = context.cache
    calls = cache.setdefault("calls", [])
    calls.append([context.get_request_id(i)[:8] for i in range(len(data))])
    out, stop = [], []
    for i, row in enumerate(data):
        request = context.get_request_id(i)
        if request not in cache:
            asked = row["body"]
            if "status" in asked:
                context.set_response_status(asked["status"], "", i)
            cache[request] = {"left": asked["tokens"], "gate": asked.get("gate"), "said": 0}
        else:
            assert row == {}, "sent once only"
        mine = cache[request]
        if mine["gate"]:
            gate = pathlib.Path(mine["gate"])
            (gate / "running").touch()
            while not (gate / "go").exists():
                time.sleep(0.005)
        mine["left"] -= 1
        mine["said"] += 1
        out.append(f"{mine['said']} of batch {len(data)}|")
        stop.append(lambda output, left=mine["left"]: left <= 0)
    context.stopping_criteria = stop
    return out
"""

# Keeps a sum per sequence in its own process, and says which process that is.
STATEFUL = """
import os

class Stateful:
    def initialize(self, context):
        self.sums = {}

    def handle(self, data, context):
        out = []
        for i, row in enumerate(data):
            sequence = context.get_sequence_id(i)
            started = context.get_request_header(i, "ts_request_sequence_start")
            self.sums[sequence] = self.sums.get(sequence, 0) + int(bytes(row["body"]))
            context.set_response_header(i, "ts_request_sequence_id", sequence)
            out.append({"sum": self.sums[sequence], "pid": os.getpid(), "start": started, "batch": len(data)})
        return out
"""

# A sequence's request streams as many tokens as it asks for; a request of 0 ends the sequence.
STATEFUL_CONTINUOUS = """
class Handler:
    def initialize(self, context):
        self.sequences, self.requests = {}, {}

    def handle(self, data, context):
        out, stop = [], []
        for i, row in enumerate(data):
            request, sequence = context.get_request_id(i), context.get_sequence_id(i)
            if request not in self.requests:
                self.requests[request] = int(bytes(row["body"]))
            self.sequences[sequence] = self.sequences.get(sequence, 0) + 1
            left = self.requests[request] = self.requests[request] - 1
            stop.append(lambda output, left=left: left <= 0)
            if left < 0:
                context.set_response_header(i, context.header_key_sequence_end, sequence)
                del self.sequences[sequence]
                out.append("bye|")
            else:
                out.append(f"{self.sequences[sequence]}|")
        context.stopping_criteria = stop
        return out
"""

ASYNCHRONOUS = """
import asyncio
from ts.handler_utils.utils import send_intermediate_predict_response

class Handler:
    async def initialize(self, context):
        self.running, self.most = 0, 0
        self.all_here = asyncio.Event()
        context.marker = "the model's own"

    async def handle(self, data, context):
        (row,) = data
        asked = row["body"]
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == asked["wait_for"]:
            self.all_here.set()
        await self.all_here.wait()
        for n in range(asked.get("pieces", 0)):
            send_intermediate_predict_response([f"{n}|"], context.request_ids, "ok", 200, context)
            await asyncio.sleep(0)
        self.running -= 1
        if asked.get("fail"):
            raise ValueError("this one only")
        return [f"{asked['name']} of {self.most}, {context.marker}, {context.get_request_header(0, 'X-Name')}"]
"""

ENDLESS = """
import time
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(data, context):
    while data:
        send_intermediate_predict_response(["more"] * len(data), context.request_ids, "ok", 200, context)
        time.sleep(0.001)
"""

ENDLESS_ASYNCHRONOUS = """
import asyncio
from ts.handler_utils.utils import send_intermediate_predict_response

async def handle(data, context):
    while data:
        send_intermediate_predict_response(["more"], context.request_ids, "ok", 200, context)
        await asyncio.sleep(0.01)
"""

GATED = """
import pathlib, time

def handle(data, context):
    if data is None:
        return None
    for row in data:
        folder = pathlib.Path(bytes(row["body"]).decode())
        (folder / "running").touch()
        while not (folder / "go").exists():
            time.sleep(0.005)
    return ["through" for _ in data]
"""

MICRO = """
from ts.handler_utils.micro_batching import MicroBatching

class Handler:
    def preprocess(self, rows):
        return [int(bytes(row["body"])) for row in rows]

    def inference(self, numbers):
        return [(number * number, len(numbers)) for number in numbers]

    def postprocess(self, results):
        return [{"square": square, "chunk": chunk} for square, chunk in results]

    def initialize(self, context):
        self.context = context
        settings = context.model_yaml_config["micro_batching"]
        self.chunks = MicroBatching(self, settings["micro_batch_size"])
        self.chunks.parallelism = settings["parallelism"]

    def handle(self, data, context):
        return [{**answer, "batch": len(data)} for answer in self.chunks(data, context)]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("batching")
    store = folder / "store"
    store.mkdir()
    write(store, "continuous.mar", CONTINUOUS, name="continuous", config="continuousBatching: true\nbatchSize: 2\n")
    sequences = "sequenceBatching: true\nsequenceMaxIdleMSec: 60000\n"
    write(
        store,
        "stateful.mar",
        STATEFUL,
        name="stateful",
        config=f"{sequences}maxNumSequence: 2\nmaxSequenceJobQueueSize: 2\nbatchSize: 1\nmaxBatchDelay: 0\n",
    )
    write(
        store,
        "both.mar",
        STATEFUL_CONTINUOUS,
        name="both",
        config=f"{sequences}continuousBatching: true\nmaxNumSequence: 1\nbatchSize: 1\n",
    )
    write(store, "asynchronous.mar", ASYNCHRONOUS, name="asynchronous", config="asyncCommunication: true\n")
    write(store, "endless.mar", ENDLESS, name="endless")
    asynchronous = "asyncCommunication: true\n"
    write(store, "endless2.mar", ENDLESS_ASYNCHRONOUS, name="endless_asynchronous", config=asynchronous)
    write(store, "tickets.mar", GATED, name="tickets", config="useJobTicket: true\n")
    micro = "batchSize: 6\nmaxBatchDelay: 30000\nmicro_batching:\n  micro_batch_size: 2\n"
    micro += "  parallelism:\n    preprocess: 1\n    inference: 2\n    postprocess: 1\n"
    write(store, "micro.mar", MICRO, name="micro", config=micro)
    with running(Server(folder / "server", store)) as server:
        yield server


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def up(server: Server, name: str, workers: int = 1) -> None:
    answer = server.register(f"{name}.mar", initial_workers=workers, synchronous=True)
    assert answer.status == 200, answer


def ask(server: Server, name: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
    given = {"Content-Type": "application/json"} if isinstance(body, dict) else {"Content-Type": "application/x"}
    data = json.dumps(body).encode() if isinstance(body, dict) else str(body).encode()
    return server.call(
        "POST", f"/predictions/{name}", role="inference", body=data, headers={**given, **(headers or {})}
    )


def phase(server: Server, name: str) -> str:
    """Of its only worker."""
    (worker,) = server.describe(name)[0]["workers"]
    return str(worker["tserve"]["phase"])


def test_continuous_batching(server: Server, clients: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Requests join a batch that is under way and leave it when theirs is done; each is streamed."""
    up(server, "continuous")
    gate = tmp_path / "gate"
    gate.mkdir()
    long: Future[Answer] = clients.submit(ask, server, "continuous", {"tokens": 4, "gate": str(gate)})
    eventually("the first call runs", (gate / "running").exists)
    short: Future[Answer] = clients.submit(ask, server, "continuous", {"tokens": 2})
    eventually("the second waits", lambda: server.describe("continuous")[0]["jobQueueStatus"]["pendingRequests"] == 1)
    (gate / "go").touch()
    assert long.result().body == b"1 of batch 1|2 of batch 2|3 of batch 2|4 of batch 1|"
    assert short.result().body == b"1 of batch 2|2 of batch 2|"
    assert long.result().headers["ts_stream_next"] == "true"
    alone = ask(server, "continuous", {"tokens": 1})
    assert (alone.body, alone.headers["ts_stream_next"]) == (b"1 of batch 1|", "false")


def test_a_client_that_leaves_a_continuous_batch(server: Server, clients: ThreadPoolExecutor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    (gate / "go").touch()
    connection = server.connect("inference")
    body = json.dumps({"tokens": 10**9, "gate": str(gate)})
    connection.request("POST", "/predictions/continuous", body, {"Content-Type": "application/json"})
    connection.getresponse().read(4)  # the stream has begun
    connection.close()
    eventually("it is dropped", lambda: phase(server, "continuous") == "ready")


@pytest.mark.parametrize(("status", "seen"), [(204, 204), (304, 304), (99, 503)])
def test_a_stream_that_cannot_be_passed_on(server: Server, status: int, seen: int) -> None:
    """Its client has its answer; nobody waits for the rest."""
    assert ask(server, "continuous", {"tokens": 10**9, "status": status}).status == seen
    eventually("it is dropped", lambda: phase(server, "continuous") == "ready")


def test_a_stream_that_nobody_reads(server: Server, tmp_path: Path) -> None:
    """The handler hears of it when it sends the next piece, and the worker is free."""
    up(server, "endless")
    for _ in range(2):
        connection = server.connect("inference")
        connection.request("POST", "/predictions/endless", b"x")
        assert connection.getresponse().read(4) == b"more"
        connection.close()
    up(server, "endless2")
    for _ in range(120):  # more than such a worker may have in hand
        connection = server.connect("inference")
        connection.request("POST", "/predictions/endless_asynchronous", b"x")
        assert connection.getresponse().read(4) == b"more"
        connection.close()
    for name in ("endless", "endless_asynchronous"):
        eventually("it is free", lambda name=name: phase(server, name) == "ready")
        assert server.describe(name)[0]["workers"][0]["tserve"]["restarts"] == 0


def test_sequence_batching(server: Server) -> None:
    """Requests of a sequence reach one worker, in order; further sequences are refused; ids are the client's."""
    up(server, "stateful", workers=2)
    first, second = ({"ts_request_sequence_id": name} for name in ("first", "second"))
    sums = [ask(server, "stateful", n, headers).json for n in (1, 2, 3) for headers in (first, second)]
    assert [answer["sum"] for answer in sums] == [1, 1, 3, 3, 6, 6]
    assert {answer["batch"] for answer in sums} == {1}
    pids = [{answer["pid"] for answer in sums[i::2]} for i in (0, 1)]
    assert [len(pid) for pid in pids] == [1, 1]
    assert pids[0] != pids[1], "a worker has one sequence per place in its batch"
    refused = ask(server, "stateful", 1, {"ts_request_sequence_id": "third"})
    assert refused.status == 503
    assert "exceeds maxSequenceJobQueueSize" in refused.text
    ended = ask(server, "stateful", 1, {**first, "TS_Request_Sequence_End": "true"})
    assert ended.json["sum"] == 7
    begun = ask(server, "stateful", 5)
    assert (begun.json["sum"], begun.json["start"]) == (5, "true")
    generated = begun.headers["ts_request_sequence_id"]
    assert generated.startswith("ts-seq-")
    assert ask(server, "stateful", 5, {"ts_request_sequence_id": generated}).json["sum"] == 10


def test_a_sequence_ends_with_its_worker(server: Server) -> None:
    """Its state is gone: the rest of it must not be answered from another's."""
    sequence = {"ts_request_sequence_id": "second"}
    pid = ask(server, "stateful", 1, sequence).json["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually("both are up", lambda: len(set(server.ready_workers("stateful")) - {pid}) == 2)
    assert ask(server, "stateful", 1, sequence).json["sum"] == 1


def test_sequences_with_continuous_batching(server: Server) -> None:
    """A handler ends a sequence by a response header; only then may another one begin."""
    up(server, "both")
    talk = {"ts_request_sequence_id": "talk"}
    assert ask(server, "both", 3, talk).body == b"1|2|3|"
    assert ask(server, "both", 2, talk).body == b"4|5|"
    assert ask(server, "both", 1, {"ts_request_sequence_id": "other"}).status == 503
    assert ask(server, "both", 0, talk).body == b"bye|"
    assert ask(server, "both", 2, {"ts_request_sequence_id": "other"}).body == b"1|2|"


def test_asynchronous_workers(server: Server, clients: ThreadPoolExecutor) -> None:
    """Requests are in a worker's hand together, with a context of their own; one that fails fails alone."""
    up(server, "asynchronous")
    asks = [{"name": f"n{n}", "wait_for": 5, "pieces": n} for n in range(4)]
    answers = [clients.submit(ask, server, "asynchronous", body, {"X-Name": body["name"]}) for body in asks]
    failed = clients.submit(ask, server, "asynchronous", {"name": "bad", "wait_for": 5, "fail": True})
    for n, answer in enumerate(answers):
        pieces = "".join(f"{piece}|" for piece in range(n))
        assert answer.result().body.decode() == f"{pieces}n{n} of 5, the model's own, n{n}"
    assert (failed.result().status, failed.result().text) == (503, "Prediction failed")
    (described,) = server.describe("asynchronous")
    assert described["workers"][0]["tserve"]["restarts"] == 0


def test_job_tickets(server: Server, clients: ThreadPoolExecutor, tmp_path: Path) -> None:
    """A request is taken only when a worker is free for it."""
    up(server, "tickets", workers=2)
    gates = [tmp_path / "one", tmp_path / "two"]
    running_: list[Future[Answer]] = []
    for gate in gates:
        gate.mkdir()
        running_.append(clients.submit(ask, server, "tickets", gate))
        eventually("a worker has it", (gate / "running").exists)
    refused = ask(server, "tickets", gates[0])
    assert (refused.status, refused.json["tserve"]["reason"]) == (503, "no_job_ticket")
    (gates[0] / "go").touch()
    assert running_[0].result().status == 200
    assert ask(server, "tickets", gates[0]).status == 200
    (gates[1] / "go").touch()
    assert running_[1].result().status == 200


def test_micro_batching(server: Server, clients: ThreadPoolExecutor) -> None:
    """One batch of six is worked off in chunks of two; every client gets its own result."""
    up(server, "micro")
    start = threading.Barrier(6)

    def one(n: int) -> Any:
        start.wait()
        return ask(server, "micro", n).json

    answers = list(clients.map(one, range(6)))
    assert answers == [{"square": n * n, "chunk": 2, "batch": 6} for n in range(6)]


def test_a_connection_may_ask_again_after_a_stream(server: Server) -> None:
    connection = server.connect("inference")
    for _ in range(2):
        body = json.dumps({"name": "n", "wait_for": 1, "pieces": 2}).encode()
        answer = exchange(
            connection, "POST", "/predictions/asynchronous", body=body, headers={"Content-Type": "application/json"}
        )
        assert answer.body.startswith(b"0|1|n of")
    connection.close()
