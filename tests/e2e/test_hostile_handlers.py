"""A handler that misbehaves harms its own request only, and the answer says what was wrong."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.archives import write
from tests.e2e.misdeeds import MISDEEDS, SLEEP, Misdeed, handler
from tests.e2e.server import Answer, Server, eventually, running

pytestmark = pytest.mark.e2e

# Never done with what it is told to do.
LATE = """
import os, signal

class Endless(dict):
    def items(self):
        while True:
            yield "a", 1

def handle(data, context):
    if data is None:
        return None
    word = bytes(data[0]["body"])
    if word == b"stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    return [Endless(a=1) if word == b"encode" else str(os.getpid())]
"""

# The first request leaves a thread that streams to it while the second one is in hand.
GOSSIP = """
import threading
from ts.handler_utils.utils import send_intermediate_predict_response

second, tried = threading.Event(), threading.Event()

def gossip(context, request_ids):
    second.wait()
    try:
        send_intermediate_predict_response(["the first one's"], request_ids, "", 200, context)
    except Exception as error:
        print("refused:", error)
    tried.set()

def handle(data, context):
    if data is None:
        return None
    if bytes(data[0]["body"]) == b"first":
        threading.Thread(target=gossip, args=(context, context.request_ids)).start()
        return ["first"]
    second.set()
    tried.wait()
    send_intermediate_predict_response(["the second "], context.request_ids, "", 200, context)
    return ["one's"]
"""

# Streams without end what HTTP cannot carry.
ENDLESS = """
def handle(data, context):
    if data is None:
        return None
    context.stopping_criteria = [lambda output: False] * len(data)
    for i in range(len(data)):
        context.set_response_header(i, "no header", "x")
    return ["more"] * len(data)
"""

# A request without anything to `do` waits until another one has done that.
COROUTINE = """
import asyncio, os, sys
from evil import Faceless, Panic

done = asyncio.Event()

async def handle(data, context):
    if data is None:
        return None
    asked = data[0]["body"]
    if "do" not in asked:
        await done.wait()
        done.clear()
        return [os.getpid()]
    scope = dict(globals(), context=context, result=["done"])
    try:
        exec(asked["do"], scope)
        await asyncio.sleep(0)
    finally:
        done.set()
    return scope["result"]
"""
EVIL = """
class Panic(BaseException): pass

class Faceless:
    @property
    def __class__(self): raise RuntimeError("no face")
"""
UNSUITED = "Unsupported model output data type."
MISDEEDS_OF_COROUTINES = {
    "raises": Misdeed("raise ValueError('x')", 503, "Prediction failed", "ValueError: x"),
    "panics": Misdeed("raise Panic('x')", 503, "Prediction failed", "Panic: x"),
    "is interrupted": Misdeed("raise KeyboardInterrupt", 503, "Prediction failed", "KeyboardInterrupt"),
    "is cancelled": Misdeed("raise asyncio.CancelledError", 503, "Prediction failed", "CancelledError"),
    "cancels itself": Misdeed("asyncio.current_task().cancel()", 503, "Prediction failed", "CancelledError"),
    "returns nothing": Misdeed("result = None", 503, "Invalid model predict output", "NoneType"),
    "returns too much": Misdeed("result = ['x' * 200_001]", 500, "Response of 200001 bytes is larger than"),
    "returns what has no face": Misdeed("result = Faceless()", 503, "Prediction failed", "no face"),
    "returns a thing without a face": Misdeed("result = [Faceless()]", 503, UNSUITED, "no face"),
    "takes the metrics away": Misdeed("context.metrics = None"),
    "closes descriptors, leaves the folder": Misdeed("os.closerange(0, 3); os.chdir('/')"),
    "forks": Misdeed("result = ['child'] if os.fork() == 0 else ['parent']"),
    "exits": Misdeed("sys.exit(3)", 500, "Worker died.", "exit code 3", dies=True, all_of_it=True),
}

LOADING = """
import os, sys
{code}

def handle(data, context):
    if data is None:
        return None
    print("printed by", context.model_name)
    return [type(row["body"]).__name__ for row in data]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    store = folder / "store"
    store.mkdir()
    write(store, "alone.mar", handler(), name="alone")
    write(store, "pair.mar", handler(), name="pair", config="batchSize: 2\nmaxBatchDelay: 60000\n")
    config = ["max_response_size=200000", "max_worker_restarts=0", "worker_kill_grace=0.2"]
    with running(Server(folder / "server", store, config)) as server:
        for name in ("alone", "pair"):
            assert server.register(f"{name}.mar", initial_workers=1, synchronous=True).status == 200
        yield server


def ask(server: Server, model: str, word: str | None) -> Answer:
    body = json.dumps({} if word is None else {"do": word}) if word is not None else "sound"
    headers = {"Content-Type": "application/json" if word is not None else "application/octet-stream"}
    return server.call("POST", f"/predictions/{model}", role="inference", body=body.encode(), headers=headers)


def worker(server: Server, model: str) -> dict[str, Any]:
    (described,) = server.describe(model)
    found: dict[str, Any] = described["workers"][0]
    return found


def check(answer: Answer, misdeed: Misdeed) -> None:
    """The answer to the request that misbehaved."""
    assert answer.status == misdeed.status, answer
    if misdeed.status == 200 or not misdeed.message:
        return
    assert answer.text.startswith(misdeed.message)
    assert misdeed.detail in json.dumps(answer.json.get("tserve", {}), ensure_ascii=False)


@pytest.mark.parametrize("word", MISDEEDS)
def test_the_next_request_is_answered_as_ever(server: Server, word: str) -> None:
    before = worker(server, "alone")
    check(ask(server, "alone", word), MISDEEDS[word])
    after = ask(server, "alone", None)
    assert (after.status, after.json["sound"]) == (200, True)
    if MISDEEDS[word].dies:
        eventually(
            "the worker is back",
            lambda: worker(server, "alone")["tserve"]["restarts"] == before["tserve"]["restarts"] + 1,
        )
    else:
        assert after.json["pid"] == before["pid"]
        assert worker(server, "alone")["tserve"]["restarts"] == before["tserve"]["restarts"]


@pytest.mark.parametrize("word", MISDEEDS)
def test_the_neighbour_in_its_batch(server: Server, word: str) -> None:
    misdeed = MISDEEDS[word]
    bad, good = pair(server, word, None)
    check(bad, misdeed)
    if misdeed.all_of_it:
        check(good, misdeed)
    else:
        assert (good.status, good.json["size"]) == (200, 2)
    if misdeed.dies:
        assert [answer.json["size"] for answer in pair(server, None, None)] == [2, 2], "the worker is back"


def pair(server: Server, *words: str | None) -> list[Answer]:
    """The answers to two requests of one batch."""
    with ThreadPoolExecutor(2) as clients:
        return list(clients.map(lambda word: ask(server, "pair", word), words))


def up(server: Server, name: str, source: str, config: str = "", **files: str) -> None:
    path = write(server.store, f"{name}.mar", source, name=name, config=config)
    with zipfile.ZipFile(path, "a") as archive:
        for module, text in files.items():
            archive.writestr(f"{module}.py", text)
    answer = server.register(f"{name}.mar", initial_workers=1, synchronous=True)
    assert answer.status == 200, answer


@pytest.mark.parametrize("word", ["encode", "stop"])
def test_a_handler_that_never_ends(server: Server, word: str) -> None:
    up(server, word, LATE, "responseTimeout: 1\n")
    pid = server.predict(word).body
    bad = server.predict(word, body=word.encode())
    assert (bad.status, bad.text) == (500, "Worker died.")
    assert bad.json["tserve"]["detail"] == "no answer within response_timeout, 1 s"
    assert server.predict(word).body != pid
    assert worker(server, word)["tserve"]["restarts"] == 1


def test_what_is_streamed_late_reaches_nobody(server: Server) -> None:
    up(server, "gossip", GOSSIP)
    assert server.predict("gossip", body=b"first").body == b"first"
    assert server.predict("gossip", body=b"second").body == b"the second one's"
    eventually("it is told", lambda: "refused: A piece of an answer is late" in server.log())


def test_a_stream_that_cannot_be_sent(server: Server) -> None:
    """It is given up, not streamed on to nobody."""
    up(server, "endless", ENDLESS, "continuousBatching: true\n")
    answer = server.predict("endless")
    assert (answer.status, answer.text.partition(":")[0]) == (503, "The handler set a header that HTTP does not allow")
    eventually("it is given up", lambda: worker(server, "endless")["tserve"]["phase"] == "ready")


@pytest.fixture(scope="module")
def coroutine(server: Server) -> str:
    up(server, "coroutine", COROUTINE, "asyncCommunication: true\n", evil=EVIL)
    return "coroutine"


@pytest.mark.parametrize("word", MISDEEDS_OF_COROUTINES)
def test_a_coroutine_that_misbehaves(server: Server, coroutine: str, word: str) -> None:
    """Its neighbour is in the worker's hand at that time, and answered after it."""
    misdeed = MISDEEDS_OF_COROUTINES[word]
    before = worker(server, coroutine)
    kind = {"Content-Type": "application/json"}

    def send(asked: dict[str, str]) -> Answer:
        body = json.dumps(asked).encode()
        return server.call("POST", f"/predictions/{coroutine}", role="inference", body=body, headers=kind)

    with ThreadPoolExecutor(1) as clients:
        neighbour = clients.submit(send, {})
        eventually("it is in hand", lambda: worker(server, coroutine)["tserve"]["phase"] == "busy")
        bad = send({"do": misdeed.code})
        check(bad, misdeed)
        if misdeed.dies:
            check(neighbour.result(), misdeed)
            eventually("the worker is back", lambda: worker(server, coroutine)["tserve"]["restarts"] == 1)
        else:
            assert neighbour.result().json == before["pid"]
            assert worker(server, coroutine)["tserve"]["restarts"] == 0


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("stdin", "sys.stdin.close()"),
        ("stdout", "sys.stdout.close()"),
        ("descriptor", "os.close(1)"),
        ("standard", "os.closerange(0, 2)"),
    ],
)
def test_streams_that_are_closed_while_it_loads(server: Server, name: str, code: str) -> None:
    """What it prints later on is in the log all the same."""
    up(server, name, LOADING.format(code=code))
    for _ in range(2):
        assert ask(server, name, "a word").body == b"dict"
        broken = server.call(
            "POST",
            f"/predictions/{name}",
            role="inference",
            body=b"{",
            headers={"Content-Type": "application/json"},
        )
        assert broken.body == b"bytearray"
    assert worker(server, name)["tserve"]["restarts"] == 0
    eventually("it is printed", lambda: server.log().count(f"printed by {name}") == 4)


def test_nothing_of_it_is_left(server: Server) -> None:
    """The last of all: what the handlers left goes with their workers."""
    for name in ("alone", "pair"):
        assert server.unregister(name).status == 200
    eventually("their processes are gone", lambda: not _sleepers())


def _sleepers() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line == f"sleep\0{SLEEP}\0".encode():
                found.append(entry.name)
    return found
