"""The real server, asked why a worker is down: by describe, by the failed call, by the events, by the probes."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.archives import write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import Answer, Server, eventually

pytestmark = pytest.mark.e2e

HANGS = """
import sys, threading

def hang():
    print("about to hang", file=sys.stderr)
    threading.Event().wait()

def handle(data, context):
    if data is None:
        return None
    if bytes(data[0]["body"]) == b"hang":
        hang()
    return ["well"]
"""
NEEDS = """
import pathlib

def handle(data, context):
    if not pathlib.Path({needed!r}).exists():
        import a_module_that_is_nowhere
    return None if data is None else ["well"]
"""


def worker_of(server: Server, name: str) -> dict[str, Any]:
    (worker,) = server.describe(name)[0]["workers"]
    return dict(worker)


def events_of(server: Server, name: str, **query: Any) -> list[dict[str, Any]]:
    answer = server.call("GET", f"/tserve/models/{name}/events", **query)
    assert answer.status == 200, answer
    events: list[dict[str, Any]] = answer.json["events"]
    return events


def test_a_killed_worker(make_server: MakeServer, store: Path) -> None:
    """Describe says it at once, the events keep it over a restart, with who asked for what before."""
    write(store, "echo.mar")
    server = make_server()
    server.start()
    registered = server.register("echo.mar", initial_workers=1, synchronous=True)
    assert registered.status == 200
    (pid,) = server.ready_workers("echo")
    os.kill(pid, signal.SIGKILL)
    eventually("another worker", lambda: server.ready_workers("echo") not in ([], [pid]))
    worker = worker_of(server, "echo")
    assert worker["tserve"]["restarts"] == 1
    failure = worker["tserve"]["lastFailure"]
    assert (failure["reason"], failure["exit"]) == ("killed", "signal SIGKILL")
    # History is written behind what it tells of: a kill may come before it.
    eventually("all of it is written down", lambda: len(events_of(server, "echo")) >= 4)
    server.restart("kill")
    eventually("a worker again", lambda: server.ready_workers("echo"))
    eventually("the events of this start", lambda: len(events_of(server, "echo")) >= 5)
    kinds = [event["kind"] for event in reversed(events_of(server, "echo"))]
    assert kinds[:4] == ["register", "worker_ready", "worker_died", "worker_ready"]
    first, *_, died, _again, _ready = reversed(events_of(server, "echo"))
    assert (first["actor"], first["requestId"]) == ("127.0.0.1", registered.headers["x-request-id"])
    assert first["after"]["minWorkers"] == 1
    assert (died["pid"], died["reason"], died["worker"]) == (pid, "killed", worker["id"])


def test_a_worker_that_hangs_says_where(make_server: MakeServer, store: Path) -> None:
    """And the other worker goes on answering meanwhile."""
    write(store, "hangs.mar", HANGS, name="hangs")
    server = make_server()
    server.start()
    asked = server.register("hangs.mar", initial_workers=2, response_timeout=2, synchronous=True)
    assert asked.status == 200
    answers: list[Answer] = []
    client = threading.Thread(target=lambda: answers.append(server.predict("hangs", body=b"hang")))
    client.start()
    served = 0
    while client.is_alive():
        assert server.predict("hangs").status == 200
        served += 1
    client.join()
    assert served > 10
    (answer,) = answers
    assert (answer.status, answer.json["message"]) == (500, "Worker died.")
    cause = answer.json["tserve"]
    assert (cause["reason"], cause["file"]) == ("response_timeout", "handler.py:6")
    assert cause["detail"] == "no answer within response_timeout, 2 s"
    assert "about to hang" in cause["log_tail"]
    eventually("both workers", lambda: len(server.ready_workers("hangs")) == 2)


def test_what_gave_up_is_told_everywhere_and_started_again_on_request(
    make_server: MakeServer, store: Path, tmp_path: Path
) -> None:
    needed = tmp_path / "needed"
    write(store, "needs.mar", NEEDS.format(needed=str(needed)), name="needs")
    server = make_server()
    server.start()
    assert server.register("needs.mar", initial_workers=1).status == 202
    eventually("it has given up", lambda: worker_of(server, "needs")["tserve"]["phase"] == "failed")
    assert server.describe("needs")[0]["tserve"]["state"] == "failed"
    assert worker_of(server, "needs")["status"] == "UNLOADING"
    assert server.call("GET", "/ping", role="inference").status == 500
    assert server.call("GET", "/tserve/livez", role="inference").status == 200
    ready = server.call("GET", "/tserve/readyz", verbose=True)
    assert ready.status == 503
    failure = ready.json["models"][0]["versions"][0]["lastFailure"]
    assert failure["reason"] == "missing_requirement"
    refused = server.predict("needs")
    assert (refused.status, refused.json["tserve"]["workers"]["file"]) == (503, "handler.py:6")

    needed.touch()
    again = server.call("POST", "/tserve/models/needs/retry", synchronous=True)
    assert again.status == 200, again
    assert server.predict("needs").body == b"well"
    assert server.call("GET", "/ping", role="inference").status == 200
    assert server.call("GET", "/tserve/readyz").status == 200
    eventually("the retry is told", lambda: "retry" in [event["kind"] for event in events_of(server, "needs")])
    told = {event["kind"]: event for event in events_of(server, "needs")}
    assert told["worker_gave_up"]["reason"] == "missing_requirement"
    assert "a_module_that_is_nowhere" in told["worker_gave_up"]["logTail"]


def test_a_retry_does_not_wait_for_the_back_off(make_server: MakeServer, store: Path, tmp_path: Path) -> None:
    needed = tmp_path / "needed"
    source = NEEDS.format(needed=str(needed)).replace("import a_module_that_is_nowhere", "raise OSError('no network')")
    write(store, "needs.mar", source, name="needs")
    server = make_server()
    server.start()
    assert server.register("needs.mar", initial_workers=1).status == 202
    eventually("a long wait", lambda: worker_of(server, "needs")["tserve"].get("nextTrySeconds", 0) > 1.5)
    needed.touch()
    assert server.call("POST", "/tserve/models/needs/1.0/retry", synchronous=True).status == 200
    assert worker_of(server, "needs")["status"] == "READY"


def test_a_worker_that_will_not_leave_is_told(make_server: MakeServer, store: Path) -> None:
    """SIGTERM is ignored, and the interpreter's end held up: it takes SIGKILL, after worker_kill_grace."""
    stays = "import signal, atexit, time\n" + HANGS + "\natexit.register(time.sleep, 3600)\n"
    stays += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    write(store, "stays.mar", stays, name="stays")
    server = make_server("worker_kill_grace=1")
    server.start()
    assert server.register("stays.mar", initial_workers=1, synchronous=True).status == 200
    assert server.scale("stays", min_worker=0, synchronous=True).status == 200
    eventually("it is told", lambda: events_of(server, "stays", limit=1)[0]["kind"] == "worker_stopped")
    (stopped,) = events_of(server, "stays", limit=1)
    assert (stopped["reason"], stopped["exit"]) == ("kill_grace", "signal SIGKILL")
    assert stopped["detail"] == "did not leave within worker_kill_grace, 1 s"
