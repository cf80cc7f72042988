"""Real worker processes: what they print, how they end, and that nothing of them is left."""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

import tserve
from tests.process.launcher_contract import HANDLERS, ask, load, send, spec
from tserve.runtime import process
from tserve.runtime.family import Family
from tserve.runtime.fresh import FreshLauncher
from tserve.runtime.launcher import Exit, Worker, WorkerGone
from tserve.runtime.process import TAIL_BYTES

pytestmark = pytest.mark.process

LABEL = "W-9000-m_1.0"


@asynccontextmanager
async def loaded(handler: str) -> AsyncIterator[Worker]:
    async with FreshLauncher(Family()).launch(spec(handler), label=LABEL) as worker:
        assert (await load(worker, handler)).meta == {"ok": True}
        yield worker


@contextmanager
def watched(pid: int) -> Iterator[int]:
    """A descriptor that is readable once the process has ended, whoever its parent is."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


def descriptors() -> dict[str, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except FileNotFoundError:  # the one that lists the folder
            continue
    return found


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


async def printed(worker: Worker, text: str) -> None:
    """Output comes through a pipe of its own, which has no event for this."""
    while text not in worker.tail():  # noqa: ASYNC110
        await trio.sleep(0.01)


# -- output


async def test_what_user_code_prints_is_logged_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tserve.model")
    async with loaded("prints.py") as worker:
        assert await ask(worker, b"") == [b"said"]
        worker.hang_up()
        await worker.wait()
        tail = worker.tail()
    said = [
        "loading",
        "to stdout",
        "to stderr",
        "\\udcff lone surrogate",
        "from a child",
        "\ufffd no text",
        "no newline",
    ]
    assert tail.splitlines() == said
    logged = [record.getMessage() for record in caplog.records if record.name == "tserve.model"]
    assert logged == [f"{LABEL} {line}" for line in said]


async def test_the_tail_is_bounded_and_long_lines_do_not_pile_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tserve.model")
    size = 256 << 10
    async with loaded("floods.py") as worker:
        await ask(worker, str(size).encode())
        worker.hang_up()
        await worker.wait()
        assert len(worker.tail()) == TAIL_BYTES
        assert worker.tail().endswith("yyy\nend\n")
    lines = [record.getMessage().removeprefix(f"{LABEL} ") for record in caplog.records]
    assert sum(len(line) for line in lines if line.startswith("y")) == size
    assert lines.count("x" * 63) == size // 64
    assert max(map(len, lines)) <= 512 << 10


async def test_a_flood_of_lines_leaves_gaps_in_the_log_and_none_in_the_tail(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever prints without end would have the server log without end."""
    monkeypatch.setattr(process, "LINES_AT_ONCE", 100)
    monkeypatch.setattr(process, "LINES_PER_S", 0)
    caplog.set_level(logging.INFO, "tserve.model")
    async with loaded("floods.py") as worker:
        await ask(worker, str(256 << 10).encode())
        worker.hang_up()
        await worker.wait()
        assert len(worker.tail()) == TAIL_BYTES
        assert worker.tail().endswith("yyy\nend\n")
    lines = [record.getMessage().removeprefix(f"{LABEL} ") for record in caplog.records]
    assert len(lines) == 101
    assert lines[-1].endswith(" lines left out here")


async def test_metrics_are_neither_in_the_log_nor_in_the_tail(caplog: pytest.LogCaptureFixture) -> None:
    """However long their lines are: they are for the server, not for people."""
    caplog.set_level(logging.INFO, "tserve.model")
    async with loaded("measures.py") as worker:
        await ask(worker, b"x")
        worker.hang_up()
        await worker.wait()
        assert worker.tail() == "before\namid\nafter\n"
    assert not any("METRICS" in record.getMessage() or "mmm" in record.getMessage() for record in caplog.records)


async def test_what_a_handler_logs_is_in_the_log() -> None:
    """From INFO on, and nothing but its words, as the contract has it."""
    async with loaded("logs.py") as worker:
        await ask(worker, b"replace")
        await ask(worker, b"again")
        worker.hang_up()
        await worker.wait()
        assert worker.tail() == "at import\nin initialize\nin handle: replace\nin handle: again\n"


async def test_a_refusal_is_said_in_the_log_too() -> None:
    async with FreshLauncher(Family()).launch(spec("refuses.py"), label=LABEL) as worker:
        report = (await load(worker, "refuses.py")).meta
        await worker.wait()
        assert "RuntimeError: no weights today" in report["detail"]
        assert "RuntimeError: no weights today" in worker.tail()


# -- ends


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("exit 0", 0, "exit code 0"),
        ("exit 42", 42, "exit code 42"),
        ("sys.exit 5", 5, "exit code 5"),
        ("signal 9", 137, "signal SIGKILL"),
        ("signal 15", 143, "signal SIGTERM"),
        ("signal 10", 138, "signal SIGUSR1"),
    ],
)
async def test_exit_codes_and_signals(how: str, code: int, words: str) -> None:
    async with loaded("crash_on_predict.py") as worker:
        await send(worker, how.encode())
        with pytest.raises(WorkerGone):
            await worker.receive()
        end = await worker.wait()
    assert (end, str(end), end.killed) == (Exit(code), words, code == 137)


async def test_a_signal_from_outside() -> None:
    async with loaded("echo.py") as worker:
        os.kill(worker.pid, signal.SIGTERM)
        with trio.fail_after(5):
            assert str(await worker.wait()) == "signal SIGTERM"


async def test_interrupting_the_terminal_is_not_the_workers_business() -> None:
    async with loaded("echo.py") as worker:
        os.killpg(worker.pid, signal.SIGINT)
        assert await ask(worker, b"still here") == [b"still here"]


async def test_a_worker_that_ignores_sigterm_is_ended() -> None:
    with trio.fail_after(5):
        async with loaded("stuck.py") as worker:
            await send(worker, b"")
            await printed(worker, "stuck")
            os.kill(worker.pid, signal.SIGTERM)
            with trio.move_on_after(0.1):
                await worker.exited.wait()
            assert not worker.exited.is_set()
    assert await worker.wait() == Exit(137)


async def test_a_stopped_worker_is_ended() -> None:
    with trio.fail_after(5):
        async with loaded("echo.py") as worker:
            os.kill(worker.pid, signal.SIGSTOP)
    assert await worker.wait() == Exit(137)


async def test_a_worker_leads_its_own_session() -> None:
    """A signal to the terminal's group, or a `kill` of the worker's, never meets the server."""
    async with loaded("echo.py") as worker:
        assert os.getsid(worker.pid) == os.getpgid(worker.pid) == worker.pid


# -- what a worker started


@pytest.mark.parametrize("then", ["lives", "dies"])
async def test_a_grandchild_ends_with_the_worker(then: str) -> None:
    """It holds the socket and the pipe, which must keep nobody waiting."""
    with trio.fail_after(5):
        async with loaded("forks.py") as worker:
            if then == "lives":
                (answer,) = await ask(worker, b"near lives")
                grandchild = int(answer)
            else:
                await send(worker, b"near dies")
                with trio.fail_after(1), pytest.raises(WorkerGone):
                    await worker.receive()
                assert await worker.wait() == Exit(4)
                grandchild = int(worker.tail().rpartition("child ")[2])
            with watched_or_gone(grandchild) as pidfd:
                if then == "lives":
                    assert not has_ended(pidfd)
                    worker.hang_up()
                    await worker.wait()
                await trio.lowlevel.wait_readable(pidfd)


@contextmanager
def watched_or_gone(pid: int) -> Iterator[int]:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        pidfd, other_end = os.pipe()
        os.close(other_end)  # readable at once
    try:
        yield pidfd
    finally:
        os.close(pidfd)


async def test_a_grandchild_out_of_reach_keeps_nobody_waiting() -> None:
    """In a session of its own it survives, and still holds the worker's socket and pipe."""
    grandchild = 0
    try:
        with trio.fail_after(5):
            async with loaded("forks.py") as worker:
                await send(worker, b"away dies")
                with trio.fail_after(1), pytest.raises(WorkerGone):
                    await worker.receive()
                assert await worker.wait() == Exit(4)
                grandchild = int(worker.tail().rpartition("child ")[2])
    finally:
        if grandchild:
            os.kill(grandchild, signal.SIGKILL)


# -- nothing is left


async def test_nothing_is_left_after_many_lives() -> None:
    """No descriptor, no zombie; every way out in turn."""
    async with loaded("echo.py"):
        pass  # whatever is opened once and kept
    before, had = descriptors(), children()
    for number in range(30):
        with trio.CancelScope() as scope:
            async with FreshLauncher(Family()).launch(spec("crash_on_start.py"), label=LABEL) as worker:
                match number % 5:
                    case 0:
                        worker.kill()
                    case 1:
                        worker.hang_up()
                    case 2:
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
                    case 3 if number < 10:
                        with pytest.raises(WorkerGone):
                            await load(worker, "crash_on_start.py")
                    case _:
                        os.kill(worker.pid, signal.SIGKILL)
        assert worker.exited.is_set()
        assert str(worker.pid) not in children(), "no zombie"
    assert descriptors().keys() == before.keys()
    assert children() == had


async def test_too_few_descriptors_are_an_os_error_and_leak_none() -> None:
    """Whichever of the descriptors of a start is the one too many."""
    async with loaded("echo.py"):
        pass
    before, had = descriptors(), children()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = 0
    for limit in (number for number in range(soft) if str(number) not in before):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            async with FreshLauncher(Family()).launch(spec("echo.py"), label=LABEL):
                break
        except OSError:
            refused += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.collect()  # what is closed only by the collector has leaked, and says so
        assert descriptors().keys() == before.keys()
        assert children() == had
    assert refused >= 5
    assert descriptors().keys() == before.keys()


async def test_a_process_that_cannot_be_watched_is_not_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pidfd(pid: int) -> int:
        raise OSError(errno.EMFILE, "no pidfd")

    before, had = descriptors(), children()
    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    with pytest.raises(OSError, match="no pidfd"):
        async with FreshLauncher(Family()).launch(spec("echo.py"), label=LABEL):
            raise AssertionError
    assert descriptors().keys() == before.keys()
    assert children() == had


PARENT = """
import sys
import trio
import trio.testing
from dataclasses import asdict
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import Frame, Input, JobRequest, Kind, encode_batch
from tserve.runtime.family import Family
from tserve.runtime.fresh import FreshLauncher

async def main():
    spec = WorkerSpec("m", sys.argv[1], sys.argv[2], 1)
    async with FreshLauncher(Family()).launch(spec, label="W") as worker:
        await worker.send(Frame(Kind.LOAD, 0, asdict(spec)))
        await worker.receive()
        await worker.send(encode_batch(0, [JobRequest("id", {}, (Input("body", "", b""),))]))
        print(worker.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("handler", ["echo.py", "stuck.py"], ids=["idle", "busy"])
async def test_a_worker_dies_with_its_server(handler: str) -> None:
    """Killed with -9, the server has no time to say goodbye."""
    environment = {**os.environ, "PYTHONPATH": str(Path(tserve.__file__).parents[1])}
    server = subprocess.Popen(  # noqa: ASYNC220 - as the server starts workers
        [sys.executable, "-c", PARENT, str(HANDLERS), handler], stdout=subprocess.PIPE, env=environment
    )
    with server:
        assert server.stdout is not None
        pid = int(await trio.to_thread.run_sync(server.stdout.readline))
        with watched(pid) as pidfd:
            assert not has_ended(pidfd)
            server.kill()
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(pidfd)


# -- frames


async def test_a_forked_child_that_comes_back_neither_answers_nor_reads() -> None:
    """Its answers would be taken for those of later requests, of other clients."""
    async with loaded("comes_back_twice.py") as worker:
        for text in (b"one", b"two", b"three"):
            assert await ask(worker, text) == [text]


async def test_a_child_that_is_forked_while_loading_reports_nothing() -> None:
    async with loaded("forks_at_load.py") as worker:
        assert await ask(worker, b"one") == [b"one"]


async def test_big_frames_go_both_ways() -> None:
    body = os.urandom(5 << 20)
    async with loaded("echo.py") as worker:
        assert await ask(worker, body) == [body]
        assert await ask(worker, body, b"", body[:7]) == [body, b"", body[:7]]


async def test_a_death_amid_a_frame_is_a_death() -> None:
    """Half a frame is what the kernel leaves of a worker that it kills: not a breach of the protocol."""
    async with loaded("half_frame.py") as worker:
        await send(worker, b"")
        with pytest.raises(WorkerGone, match="within a frame"):
            await worker.receive()
        assert (await worker.wait()).killed


async def test_a_worker_that_does_not_read_can_be_killed() -> None:
    """Its sender is stuck in a full socket then."""
    async with loaded("stuck.py") as worker, trio.open_nursery() as nursery:
        await send(worker, b"")
        nursery.start_soon(_kill_when_stuck, worker)
        with trio.fail_after(5), pytest.raises(WorkerGone):
            await send(worker, bytes(5 << 20))


async def _kill_when_stuck(worker: Worker) -> None:
    await trio.testing.wait_all_tasks_blocked(0.05)
    worker.kill()
