"""The server maps no torch, whatever its workers do, and none of its processes outlives it, however it dies."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.archives import GATED, STUCK_LOAD, TORCH, write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import Server, eventually, processes_of

pytestmark = pytest.mark.e2e

GONE_S = 5.0


def maps_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def kill_and_see_all_gone(server: Server, *, at_least: int) -> None:
    """`at_least`: processes that must have been there, the server among them."""
    mark = server.mark
    assert len(processes_of(mark)) >= at_least
    server.kill()
    eventually("every process is gone", lambda: not processes_of(mark), within_s=GONE_S)


def in_background(call: Callable[[], object]) -> tuple[threading.Thread, threading.Event]:
    """A client, and whether it lost its connection."""
    broken = threading.Event()

    def run() -> None:
        try:
            call()
        except OSError:
            broken.set()

    client = threading.Thread(target=run, daemon=True)
    client.start()
    return client, broken


def test_torch_is_in_the_worker_only(make_server: MakeServer, store: Path) -> None:
    """Without a zygote, whose torch every worker has, needed or not."""
    write(store, "tensors.mar", TORCH, name="tensors")
    write(store, "echo.mar")
    server = make_server("worker_start=fresh")
    server.start()
    assert not maps_torch(server.pid)
    for url, name, body in (("tensors.mar", "tensors", b"2.0"), ("echo.mar", "echo", b"echo 1.0 of 1")):
        assert server.register(url, initial_workers=1, synchronous=True).status == 200
        assert server.predict(name).body == body
    server.describe("tensors", "all")
    (worker,) = server.ready_workers("tensors")
    (other,) = server.ready_workers("echo")
    assert maps_torch(worker), "the look at the maps can tell"
    assert not maps_torch(other)
    assert not maps_torch(server.pid)


def test_kill_during_a_prediction(make_server: MakeServer, store: Path, tmp_path: Path) -> None:
    write(store, "gated.mar", GATED, name="gated")
    server = make_server()
    server.start()
    assert server.register("gated.mar", initial_workers=2, synchronous=True).status == 200
    client, broken = in_background(lambda: server.predict("gated", body=str(tmp_path).encode()))
    eventually("the handler runs", (tmp_path / "running").exists)
    kill_and_see_all_gone(server, at_least=3)
    client.join(10)
    assert broken.is_set()


def test_kill_while_a_worker_starts(make_server: MakeServer, store: Path, tmp_path: Path) -> None:
    write(store, "stuck.mar", STUCK_LOAD.format(mark=str(tmp_path / "loading")), name="stuck")
    server = make_server()
    server.start()
    assert server.register("stuck.mar", initial_workers=3).status == 202
    eventually("a model is being loaded", (tmp_path / "loading").exists)
    kill_and_see_all_gone(server, at_least=3)


@pytest.mark.parametrize("moment", range(5))
def test_kill_as_processes_are_being_made(make_server: MakeServer, store: Path, moment: int) -> None:
    """At once after the answer, or as soon as so many processes are there: each dies before or after it can ask for
    the signal that comes with the server's death."""
    write(store, "echo.mar")
    server = make_server()
    server.start()
    assert server.register("echo.mar", initial_workers=4).status == 202
    mark = server.mark
    eventually(f"{moment} workers", lambda: len(processes_of(mark)) > moment)
    kill_and_see_all_gone(server, at_least=1)


def test_kill_while_an_archive_is_taken_in(make_server: MakeServer, store: Path) -> None:
    write(store, "big.mar", padding_mb=24)
    server = make_server()
    server.start()
    client, broken = in_background(lambda: server.register("big.mar"))
    eventually("the archive is being unpacked", server.incoming)
    (intake,) = (pid for pid, command in processes_of(server.mark).items() if "tserve.archive.intake" in command)
    os.kill(intake, signal.SIGSTOP)
    kill_and_see_all_gone(server, at_least=2)
    client.join(10)
    assert broken.is_set()
    assert server.incoming() != []
    assert server.kept() == set()
    server.start()
    assert server.models() == {}
    server.check_whole()
