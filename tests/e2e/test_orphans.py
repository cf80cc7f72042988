"""`kill -9` of the server at random moments: within a second no process of it is left, whatever workers had started.

TSERVE_ORPHAN_ROUNDS sets the number of rounds (15), TSERVE_ORPHAN_LANES how many run side by side (1), and
TSERVE_ORPHAN_SEED the choices.  In most rounds torch cannot be imported, so that a zygote is there in 0.2 s.
"""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.archives import write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import Server, eventually, processes_of, running

pytestmark = pytest.mark.e2e

ROUNDS = int(os.environ.get("TSERVE_ORPHAN_ROUNDS", "15"))
LANES = int(os.environ.get("TSERVE_ORPHAN_LANES", "1"))
SEED = os.environ.get("TSERVE_ORPHAN_SEED") or str(random.SystemRandom().randrange(10**6))
WITH_TORCH = 0.05  # of the rounds
FRESH = 0.15
WORKERS = 2
GONE_S = 10.0  # a few tenths, and what a loaded machine adds to them

# At each load and each batch a process is started that stays, in the group of the worker, and is deaf to SIGTERM.
WITH_CHILDREN = """
import os, signal, time

def handle(data, context):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    time.sleep(0.01)
    return None if data is None else ["x" for _ in data]
"""
NO_CHILDREN = WITH_CHILDREN.replace("os.fork()", "1")
# The server, on a path where torch fails to import; the zygote and the workers inherit it.
_BOOT = """
import os, sys
os.environ["PYTHONPATH"] = {folder!r} + os.pathsep + os.environ["PYTHONPATH"]
from tserve.cli.main import main
sys.exit(main())
"""


def boot_without_torch(folder: Path) -> tuple[str, str]:
    (folder / "torch.py").write_text('raise ImportError("not for this test")\n')
    return "-c", _BOOT.format(folder=str(folder))


def zygotes(server: Server) -> list[int]:
    """Those that run; a worker forked from one has its command line, but leads a session."""
    there = processes_of(server.mark)
    found = []
    for pid, command in there.items():
        with suppress(ProcessLookupError):
            if "tserve.child.zygote" in command and os.getsid(pid) == os.getsid(server.pid):
                found.append(pid)
    return found


def the_zygote(server: Server) -> int:
    """Once it has imported what it needs."""
    eventually("the zygote is ready", lambda: "the zygote is ready" in server.log())
    (pid,) = zygotes(server)
    return pid


def check_gone(mark: str, moment: str) -> float:
    """To be called right after the kill; how long it took.  What is left is ended, so that nothing piles up."""
    began = time.monotonic()
    try:
        eventually("every process is gone", lambda: not processes_of(mark), within_s=GONE_S)
    except AssertionError:
        left = processes_of(mark)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if left:
            pytest.fail(f"killed {moment}: {GONE_S:g} s later there is {left}")
    return time.monotonic() - began


def in_background(call: Callable[[], object]) -> threading.Thread:
    """A client that ends when the server does."""

    def run() -> None:
        with suppress(OSError, http.client.HTTPException):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


class Lane:
    """Rounds one after another, each on a copy of a state folder in which a model wants two workers."""

    def __init__(self, folder: Path, store: Path, states: dict[str, Path], program: tuple[str, str]) -> None:
        self.states, self.program = states, program
        self.seen: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.server = Server(folder, store)
        self.fresh = self.torch = False

    def round(self, seed: str) -> None:
        rng = random.Random(seed)
        self.fresh, self.torch = rng.random() < FRESH, rng.random() < WITH_TORCH
        shutil.rmtree(self.server.folder, ignore_errors=True)
        # Without a zygote nobody is left who knows what a worker had started.
        shutil.copytree(self.states["childless" if self.fresh else "model"], self.server.state)
        self.server.config = ["worker_start=fresh"] if self.fresh else []
        self.server.program = ("-m", "tserve") if self.torch else self.program
        moments: dict[str, Callable[[random.Random], list[threading.Thread]]] = {
            "while it starts": self._starting,
            "while the zygote imports": self._importing,
            "while workers start": self._workers_start,
            "while workers are scaled": self._scaling,
            "while requests are served": self._serving,
            "while it stops": self._stopping,
        }
        moment = rng.choice(list(moments))
        self.server.start(ready=False)
        callers = moments[moment](rng)
        mark = self.server.mark
        at_kill = len(processes_of(mark))
        self.server.kill()
        self.slowest_s = max(self.slowest_s, check_gone(mark, f"{moment}, round {seed}"))
        for caller in callers:
            caller.join(10)
            assert not caller.is_alive()
        self.seen[moment] += 1
        self.seen["processes at a kill"] += at_kill
        self.seen["with torch"] += self.torch
        self.seen["with fresh interpreters"] += self.fresh

    def _starting(self, rng: random.Random) -> list[threading.Thread]:
        time.sleep(rng.uniform(0, 1.0))
        return []

    def _importing(self, rng: random.Random) -> list[threading.Thread]:
        if not self.fresh:
            eventually("there is a zygote", lambda: zygotes(self.server))
        time.sleep(rng.uniform(0, 2.0 if self.torch else 0.3))
        return []

    def _workers_start(self, rng: random.Random) -> list[threading.Thread]:
        eventually("there is a worker", lambda: len(processes_of(self.server.mark)) > 2)
        time.sleep(rng.uniform(0, 0.1))
        return []

    def _scaling(self, rng: random.Random) -> list[threading.Thread]:
        self._up()
        wanted = rng.choice([0, 1, 5])
        caller = in_background(lambda: self.server.scale("model", min_worker=wanted, max_worker=wanted))
        time.sleep(rng.uniform(0, 0.15))
        return [caller]

    def _serving(self, rng: random.Random) -> list[threading.Thread]:
        self._up()
        callers = [in_background(self._ask_on) for _ in range(3)]
        time.sleep(rng.uniform(0, 0.15))
        return callers

    def _stopping(self, rng: random.Random) -> list[threading.Thread]:
        self._up()
        os.kill(self.server.pid, signal.SIGTERM)
        time.sleep(rng.uniform(0, 0.3))
        return []

    def _up(self) -> None:
        self.server.wait_ready()
        eventually("workers are up", lambda: len(self.server.ready_workers("model")) == WORKERS)

    def _ask_on(self) -> None:
        while True:
            self.server.predict("model")


@pytest.fixture
def states(tmp_path: Path, store: Path) -> dict[str, Path]:
    """State folders with `model` registered, once with a handler that starts processes, once with one that does not."""
    made = {}
    for name, handler in (("model", WITH_CHILDREN), ("childless", NO_CHILDREN)):
        write(store, f"{name}.mar", handler, name="model")
        with running(Server(tmp_path / name, store, ["worker_start=fresh"])) as server:
            answer = server.register(f"{name}.mar", initial_workers=WORKERS, synchronous=True)
            assert answer.status == 200, answer
            assert server.stop() == 0
        made[name] = tmp_path / name / "state"
    return made


def test_nothing_outlives_the_server(tmp_path: Path, store: Path, states: dict[str, Path]) -> None:
    print(f"TSERVE_ORPHAN_SEED={SEED}", flush=True)
    program = boot_without_torch(tmp_path)
    lanes = [Lane(tmp_path / f"lane{i}", store, states, program) for i in range(LANES)]
    rounds = iter(range(ROUNDS))
    turn = threading.Lock()

    def run(lane: Lane) -> None:
        try:
            while True:
                with turn:
                    number = next(rounds, None)
                if number is None:
                    return
                lane.round(f"{SEED}-{number}")
        finally:
            lane.server.discard()

    with ThreadPoolExecutor(LANES) as pool:
        for done in [pool.submit(run, lane) for lane in lanes]:
            done.result()
    seen = sum((lane.seen for lane in lanes), Counter())
    print("\n".join(f"{count:7} {what}" for what, count in sorted(seen.items())))
    print(f"all gone {max(lane.slowest_s for lane in lanes):.3f} s after the kill, at the latest")
    assert seen["processes at a kill"] > 3 * ROUNDS


@pytest.fixture
def server(make_server: MakeServer, tmp_path: Path, store: Path) -> Server:
    """Not started; in its store a model whose workers start processes."""
    write(store, "model.mar", WITH_CHILDREN, name="model")
    server = make_server()
    server.program = boot_without_torch(tmp_path)
    return server


def start_with_workers(server: Server) -> int:
    """The zygote's pid."""
    server.start()
    assert server.register("model.mar", initial_workers=WORKERS, synchronous=True).status == 200
    return the_zygote(server)


def test_workers_outlive_the_zygote(server: Server) -> None:
    """They serve on, another zygote comes, and forks."""
    first = start_with_workers(server)
    workers = server.ready_workers("model")
    os.kill(first, signal.SIGKILL)
    eventually("another zygote", lambda: zygotes(server) not in ([first], []))
    assert server.predict("model").status == 200
    assert server.scale("model", min_worker=WORKERS + 1, synchronous=True).status == 200
    assert set(server.ready_workers("model")) > set(workers)
    mark = server.mark
    server.kill()
    check_gone(mark, "with its second zygote")


def test_a_zygote_that_hangs_is_replaced(server: Server) -> None:
    first = start_with_workers(server)
    os.kill(first, signal.SIGSTOP)
    assert server.scale("model", min_worker=WORKERS + 1, synchronous=True).status == 200
    assert len(server.ready_workers("model")) == WORKERS + 1
    assert zygotes(server) != [first]
    mark = server.mark
    server.kill()
    check_gone(mark, "with its second zygote")


def test_killed_with_a_zygote_that_does_not_run(server: Server) -> None:
    os.kill(start_with_workers(server), signal.SIGSTOP)
    mark = server.mark
    server.kill()
    check_gone(mark, "while its zygote was stopped")


@pytest.mark.parametrize("attempt", range(3))
def test_killed_while_the_second_zygote_comes(server: Server, attempt: int) -> None:
    """It has not imported anything yet, but must know what to end."""
    first = start_with_workers(server)
    os.kill(first, signal.SIGKILL)
    eventually("another zygote", lambda: zygotes(server) not in ([first], []))
    time.sleep(random.Random(f"{SEED}-{attempt}").uniform(0, 0.2))
    mark = server.mark
    server.kill()
    check_gone(mark, "while the second zygote came")


def test_killed_with_a_zygote_that_only_watches(server: Server) -> None:
    server.config = ["worker_start=fresh"]
    start_with_workers(server)
    mark = server.mark
    server.kill()
    check_gone(mark, "with fresh workers")
