"""A handler that misbehaves harms its own request only, and the answer says what was wrong."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.archives import write
from tests.e2e.server import Answer, Server, eventually, running

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Misdeed:
    """`code` runs in the handler with `i`, the place of the request; what it sets `result` to is returned for that.

    `status` and `message` are the answer's, `detail` is in what the answer says beside it; `dies` that the process
    ends.  `all_of_it` that the neighbours in its batch share its fate, as the contract has it.
    """

    code: str
    status: int = 200
    message: str = ""
    detail: str = ""
    dies: bool = False
    all_of_it: bool = False


def raises(error: str, detail: str, *, status: int = 503, message: str = "Prediction failed") -> Misdeed:
    return Misdeed(f"raise {error}", status, message, detail, all_of_it=True)


def unencodable(value: str, detail: str) -> Misdeed:
    return Misdeed(f"result = {value}", 503, "Unsupported model output data type.", detail)


def deadly(code: str, detail: str, *, status: int = 500) -> Misdeed:
    return Misdeed(code, status, "Worker died.", detail, dies=True, all_of_it=True)


MISDEEDS = {
    # what ends its process, before anything is left behind that would keep it from ending
    "exits": deadly("sys.exit(3)", "exit code 3"),
    "exits behind Python's back": deadly("os._exit(13)", "exit code 13"),
    "is interrupted": deadly("raise KeyboardInterrupt", "exit code 1"),
    "raises what is no Exception": deadly("raise GeneratorExit", "exit code 1"),
    "crashes": deadly("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "leaves while it is encoded": deadly("result = Leaving(a=1)", "exit code 7"),
    "closes its socket": deadly("os.closerange(3, 64)", ""),
    # what it prints
    "prints a lot": Misdeed("print('x' * 100_000)\nfor _ in range(5000): print('line')"),
    "prints binary": Misdeed("os.write(1, bytes(range(256)) * 100); os.write(2, b'\\xff\\x00no end')"),
    "prints metrics of its own": Misdeed("print('[METRICS]x.Count:1|#Level:Host|#hostname:h,1'); print('[METRICS]')"),
    # what it does to its process
    "changes the folder": Misdeed("os.chdir('/')"),
    "removes its folder": Misdeed("d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)"),
    "closes descriptors": Misdeed("os.close(0); os.close(1); os.close(2)"),
    "closes descriptors by range": Misdeed("os.closerange(0, 3)"),
    "closes its output": Misdeed("sys.stdout.close(); sys.stderr.close()"),
    "replaces its output": Misdeed("sys.stdout = None; sys.stderr = open(os.devnull, 'w')"),
    "gives descriptor 1 to a file": Misdeed("os.close(1); tempfile.TemporaryFile()"),
    "ignores signals": Misdeed(
        "for s in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD): signal.signal(s, signal.SIG_IGN)"
    ),
    "handles signals": Misdeed(
        "signal.signal(signal.SIGTERM, lambda *_: None); signal.signal(signal.SIGALRM, lambda *_: None)"
    ),
    "leaks threads": Misdeed("for _ in range(20): threading.Thread(target=time.sleep, args=(600,)).start()"),
    "leaks a printing thread": Misdeed("threading.Thread(target=chatter, daemon=True).start()"),
    "streams later, from a thread": Misdeed("threading.Thread(target=late, args=(context,), daemon=True).start()"),
    "leaves a process": Misdeed("subprocess.Popen(['sleep', '600'])"),
    "forks, and the child returns": Misdeed("result = 'child' if os.fork() == 0 else 'parent'"),
    "forks, and the child stays": Misdeed("if os.fork() == 0: time.sleep(600)"),
    "forks, and the child raises": Misdeed("if os.fork() == 0: raise ValueError('in the child')"),
    "changes the environment": Misdeed("os.environ.clear(); os.umask(0o777); sys.setrecursionlimit(200)"),
    "empties the search path": Misdeed("sys.path.clear(); sys.argv.clear()"),
    "runs an event loop": Misdeed("asyncio.run(asyncio.sleep(0))"),
    "leaves an alarm that nobody hears": Misdeed("signal.signal(signal.SIGALRM, signal.SIG_IGN); signal.alarm(1)"),
    # what it does to what it was given
    "empties its data": Misdeed("data[i].clear()"),
    "spoils the context": Misdeed("context.request_ids = None; context.stopping_criteria = None; context.manifest = 3"),
    "sets a header that is no header": Misdeed(
        "context.set_response_header(i, 'X', 'a\\r\\nSet-Cookie: b')",
        503,
        "The handler set a header that HTTP does not",
    ),
    "sets headers without end": Misdeed(
        "for n in range(999): context.set_response_header(i, f'X-{n}', 'y' * 99)", 503, "The handler set more than"
    ),
    "sets a header that is no text": Misdeed(
        "context.set_response_header(i, 'X', 3)", 503, "Prediction failed", "needs str", all_of_it=True
    ),
    "sets a status out of range": Misdeed(
        "context.set_response_status(1000, '', i)", 503, "The handler set a status that HTTP does not allow: 1000"
    ),
    "sets a negative status": Misdeed(
        "context.set_response_status(-1, '', i)", 503, "The handler set a status that HTTP does not allow: -1"
    ),
    "sets a status beyond all numbers": Misdeed(
        "context.set_response_status(10**40, '', i)", 503, "Unsupported model output data type.", "no HTTP status"
    ),
    "sets a status that is text": Misdeed(
        "context.set_response_status('teapot', '', i)", 503, "Unsupported model output data type.", "teapot"
    ),
    # what it raises
    "raises": raises("ValueError('of its own')", "ValueError: of its own"),
    "raises what cannot be shown": raises("Unspeakable()", "Unspeakable"),
    "raises many": raises("ExceptionGroup('two', [ValueError('a'), KeyError('b')])", "two"),
    "raises StopIteration": raises("StopIteration('end')", "StopIteration"),
    "recurses for ever": Misdeed("forever(0)", 503, "Prediction failed", "RecursionError", all_of_it=True),
    "runs out of memory": raises("MemoryError('pretended')", "MemoryError", status=507, message="Out of resources"),
    "runs out of GPU memory": raises("RuntimeError('CUDA out')", "CUDA out", status=507, message="Out of resources"),
    "refuses": raises("PredictionException('not this one', 422)", "not this one", status=422, message="not this one"),
    "refuses one": Misdeed("result = PredictionException('not this one', 422)", 422, "not this one", "not this one"),
    # what it returns
    "returns a set": unencodable("{1, 2}", "set"),
    "returns an object": unencodable("object()", "object"),
    "returns bytes in a dict": unencodable("{'a': b'x'}", "bytes"),
    "returns a circle": unencodable("circle()", "Circular"),
    "returns half a character": unencodable("'\\ud800'", "surrogates"),
    "returns what fails to be read": unencodable("Explosive(a=1)", "boom"),
    "returns too much": Misdeed(
        "result = 'x' * 200_001", 500, "Response of 200001 bytes is larger than max_response_size"
    ),
    "returns nothing": Misdeed("whole = None", 503, "Invalid model predict output", "NoneType", all_of_it=True),
    "returns a generator": Misdeed(
        "whole = (r for r in 'ab')", 503, "Invalid model predict output", "generator", all_of_it=True
    ),
    "returns a dict": Misdeed("whole = {'a': 1}", 503, "Invalid model predict output", "dict", all_of_it=True),
    "returns too few": Misdeed(
        "whole = []", 503, "number of batch response mismatched", "0 answers for", all_of_it=True
    ),
    "returns too many": Misdeed(
        "whole = ['a'] * 9", 503, "number of batch response mismatched", "9 answers for", all_of_it=True
    ),
}

HANDLER = """
import asyncio, os, signal, subprocess, sys, tempfile, threading, time
from ts.utils.util import PredictionException

class Unspeakable(Exception):
    def __str__(self): raise ValueError
    __repr__ = __str__

class Explosive(dict):
    def items(self): raise RuntimeError("boom")

class Leaving(dict):
    def items(self): sys.exit(7)

def circle():
    ring = []
    ring.append(ring)
    return ring

def forever(n):
    return forever(n + 1) + 1

def chatter():
    for _ in range(1000):
        print("chatter")
        time.sleep(0.001)

def late(context):
    time.sleep(0.05)
    try:
        context._send_pieces(["late"] * len(context.request_ids))
    except Exception as error:
        print("refused:", error)

MISDEEDS = {misdeeds!r}
FOLDER = os.getcwd()

def handle(data, context):
    if data is None:
        return None
    out, whole, home = [], out_of_use, os.getcwd() == FOLDER
    for i in range(len(data)):
        word = data[i].get("body")
        word = word["do"] if isinstance(word, dict) else None
        scope = dict(globals(), data=data, context=context, i=i, result="done", whole=out_of_use)
        if word is None:
            scope["result"] = {{"pid": os.getpid(), "home": home, "size": len(data)}}
        else:
            exec(MISDEEDS[word], scope)
        out.append(scope["result"])
        whole = scope["whole"] if scope["whole"] is not out_of_use else whole
    return out if whole is out_of_use else whole

out_of_use = object()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    store = folder / "store"
    store.mkdir()
    handler = HANDLER.format(misdeeds={name: textwrap.dedent(misdeed.code) for name, misdeed in MISDEEDS.items()})
    write(store, "alone.mar", handler, name="alone")
    write(store, "pair.mar", handler, name="pair", config="batchSize: 2\nmaxBatchDelay: 60000\n")
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
    assert (after.status, after.json["home"]) == (200, True)
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
    with ThreadPoolExecutor(2) as clients:
        bad, good = clients.submit(ask, server, "pair", word), clients.submit(ask, server, "pair", None)
    if not misdeed.all_of_it:
        check(bad.result(), misdeed)
        assert (good.result().status, good.result().json["size"]) == (200, 2)
    else:
        check(bad.result(), misdeed)
        check(good.result(), misdeed)
    if misdeed.dies:
        eventually("the worker is back", lambda: worker(server, "pair")["status"] == "READY")


def test_nothing_of_it_is_left(server: Server, tmp_path: Path) -> None:
    """The last of all: what the handlers left goes with their workers."""
    for name in ("alone", "pair"):
        assert server.unregister(name).status == 200
    eventually("their processes are gone", lambda: not _sleepers())
    assert "refused: The batch is answered" in server.log()


def _sleepers() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line == b"sleep\x00600\x00":
                found.append(entry.name)
    return found
