"""Writing fails, or the server is killed, at each write, sync and rename of a register and an unregister.

Faults are injected into the system calls of a running server from outside (strace).  Whatever the point, the state is
the old one or the new one, what was acknowledged is the new one, reads go on, and the server works again as soon as
the fault is over.  `tox -e faults`; TSERVE_FAULTS_POINTS bounds the points of each kind (all).
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.archives import write
from tests.e2e.server import Server, eventually

pytestmark = pytest.mark.faults

CALLS = ("write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2")
MOST_POINTS = int(os.environ.get("TSERVE_FAULTS_POINTS", "10000"))
TRIES = 5  # to meet a point: the thread that writes may be a new one, which nobody watched
ATTACHED = "attached"
DETACH_S = 5
COLLECTED_S = 1


def why_not() -> str | None:
    """Why system calls cannot be traced here."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    program = [sys.executable, "-c", "import os; os.getuid()"]
    words = ["strace", "-e", "trace=getuid", "-e", "inject=getuid:error=EIO:when=1", "--", *program]
    said = subprocess.run(words, capture_output=True, text=True)
    return None if "INJECTED" in said.stderr else f"tracing is not allowed here: {said.stderr.strip()[-200:]}"


@dataclass(frozen=True)
class Operation:
    """A change of the one model, and whether the model is there afterwards."""

    name: str
    act: Callable[[Server], int]
    leaves: bool


def register(server: Server) -> int:
    return server.register("echo.mar", model_name="echo").status


def unregister(server: Server) -> int:
    return server.unregister("echo").status


def _kind(fault: str) -> str:
    return "signal=KILL" if fault == "KILL" else f"error={fault}"


REGISTER, UNREGISTER = Operation("register", register, True), Operation("unregister", unregister, False)


@dataclass
class Sweep:
    server: Server
    trace: Path
    seen: Counter[str] = field(default_factory=Counter)
    killed_behind: bool = False  # its answer, by the last attempt

    def run(self, operation: Operation, fault: str, where: str) -> int:
        """Each point of one operation; how many there were."""
        return sum(self._run_call(operation, fault, where, call) for call in CALLS)

    def _run_call(self, operation: Operation, fault: str, where: str, call: str) -> int:
        for point in range(1, MOST_POINTS + 1):
            if not self._meet(operation, fault, where, f"inject={call}:{_kind(fault)}:when={point}"):
                return point - 1
        return MOST_POINTS

    def _meet(self, operation: Operation, fault: str, where: str, injection: str) -> bool:
        """One point; False when the operation has no such one."""
        for _ in range(TRIES):
            self._prepare(operation)
            with self._traced(where, injection):
                status = self._attempt(operation)
            if status != 200 or "(INJECTED)" in self.trace.read_text() or self.killed_behind:
                self._check(operation, fault, status)
                return True
            if where == "the rest":
                break
        return False

    def _prepare(self, operation: Operation) -> None:
        """The state that the operation starts from."""
        if self.there() == operation.leaves:
            assert (REGISTER if not operation.leaves else UNREGISTER).act(self.server) == 200
        assert self.there() != operation.leaves

    def there(self) -> bool:
        return "echo" in self.server.models()

    @contextmanager
    def _traced(self, where: str, injection: str) -> Iterator[None]:
        """`the writer`: the threads beside the main one, which write the database and move folders; `the rest`: the
        main thread and the processes that it starts, as what unpacks archives."""
        pid = self.server.pid
        threads = [int(each) for each in os.listdir(f"/proc/{pid}/task") if int(each) != pid]
        if where == "the writer":
            # One that rests may end before it is watched: something to do keeps it.
            who = [argument for thread in threads for argument in ("-p", str(thread))]
        else:
            who = ["-f", "-p", str(pid)]
        words = ["strace", "-o", str(self.trace), "-e", f"trace={','.join(CALLS)}", "-e", injection]
        process = subprocess.Popen([*words, *who], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            for _ in threads if where == "the writer" else [pid]:
                assert ATTACHED in process.stderr.readline()
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=DETACH_S)
            except subprocess.TimeoutExpired:  # it may wait for ever for threads whose main thread was killed
                process.kill()
                process.communicate()

    def _attempt(self, operation: Operation) -> int | None:
        """The status; None when the server did not live to say one."""
        self.killed_behind = False
        try:
            status = operation.act(self.server)
        except (OSError, http.client.HTTPException):
            return None
        # What nobody needs any more is removed behind the answer; that may fail, or be what ends the server.
        until = time.monotonic() + COLLECTED_S
        while not operation.leaves and self.server.kept() and time.monotonic() < until:
            time.sleep(0.01)
        try:
            self.server.models()
        except (OSError, http.client.HTTPException):
            self.seen["killed behind its answer"] += 1
            self.killed_behind = True
            assert self.server.ended() == -signal.SIGKILL
            self.server.start()
        return status

    def _check(self, operation: Operation, fault: str, status: int | None) -> None:
        assert self.server.process is not None
        if status is None:
            self.seen["killed"] += 1
            assert self.server.ended() == -signal.SIGKILL, self.server.log()[-3000:]
            self.server.start()
        else:
            self.seen["refused" if status != 200 else "done in spite of it"] += 1
            assert status in (200, 500, 507), (status, self.server.log()[-3000:])
            assert (self.there() == operation.leaves) == (status == 200), "reads go on, and say what was answered"
            assert self.server.process.poll() is None
        shown = self.there()
        if shown == operation.leaves:
            self.seen["the new state"] += 1
        else:
            assert status != 200, "what was acknowledged is kept"
            self.seen["the old state"] += 1
        if status is not None:
            self._prepare_again(operation)
        self.server.restart("kill")
        self.server.check_whole()

    def _prepare_again(self, operation: Operation) -> None:
        """The fault is over: the same operation works."""
        self._prepare(operation)
        assert operation.act(self.server) == 200, self.server.log()[-3000:]
        eventually("nothing is left over", lambda: not self.server.incoming())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    if (why := why_not()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("faults")
    store = folder / "store"
    store.mkdir()
    write(store, "echo.mar")
    config = ["worker_start=fresh", "metrics_mode=prometheus", "disable_system_metrics=true"]
    server = Server(folder / "server", store, config)
    server.start()
    try:
        made = Sweep(server, folder / "trace")
        yield made
        print("\n".join(f"{count:5} {what}" for what, count in sorted(made.seen.items())))
    finally:
        server.discard()


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC", "KILL"])
@pytest.mark.parametrize("where", ["the writer", "the rest"])
@pytest.mark.parametrize("operation", [REGISTER, UNREGISTER], ids=lambda operation: operation.name)
def test_every_point_leaves_the_old_or_the_new_state(
    sweep: Sweep, operation: Operation, where: str, fault: str
) -> None:
    points = sweep.run(operation, fault, where)
    print(f"{points} points of {operation.name} in {where}, {fault}")
    assert points >= min(MOST_POINTS, 10 if where == "the writer" else 1)
