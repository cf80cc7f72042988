"""What every `Launcher` promises (tserve/runtime/launcher.py).

test_launchers.py runs it against the real launcher and against the fake that the tests of slots and pools trust.
The handlers are those of tests/handlers; the fake plays them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import trio
import trio.testing

from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import (
    Frame,
    HandlerFailed,
    Input,
    JobRequest,
    Kind,
    WireError,
    decode_reply,
    encode_batch,
)
from tserve.runtime.launcher import Exit, Launcher, Worker, WorkerGone

HANDLERS = Path(__file__).resolve().parents[1] / "handlers"
LEAVE_S = 60.0  # a bound for waiting; what is measured is that it ends
AT_ONCE_S = 1.5  # less than that


def spec(handler: str) -> WorkerSpec:
    return WorkerSpec("m", str(HANDLERS), handler, 1)


async def load(worker: Worker, handler: str) -> Frame:
    await worker.send(Frame(Kind.LOAD, 5, asdict(spec(handler))))
    return await worker.receive()


async def ask(worker: Worker, *bodies: bytes) -> list[bytes]:
    await send(worker, *bodies)
    replies = decode_reply(await worker.receive())
    assert not isinstance(replies, HandlerFailed), replies
    return [reply.body for reply in replies]


async def send(worker: Worker, *bodies: bytes) -> None:
    await worker.send(encode_batch(9, [JobRequest("id", {}, (Input("body", "", body),)) for body in bodies]))


class LauncherContract:
    """Subclasses give the fixtures `launcher` and `no_process`, which makes the next start impossible."""

    async def test_a_worker_loads_and_answers_in_order(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            loaded = await load(worker, "echo.py")
            assert (loaded.kind, loaded.id, loaded.meta) == (Kind.LOADED, 5, {"ok": True})
            assert await ask(worker, b"one", b"two") == [b"one", b"two"]
            await send(worker, b"three")
            await send(worker, b"four")
            third, fourth = await worker.receive(), await worker.receive()
            assert (third.kind, third.id, third.body, fourth.body) == (Kind.REPLY, 9, b"three", b"four")

    async def test_a_frame_is_seen_before_it_is_received(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            await load(worker, "echo.py")
            seen: list[Frame] = []
            worker.on_frame = seen.append
            assert await ask(worker, b"one") == [b"one"]
            assert [frame.body for frame in seen] == [b"one"]

            def refuse(frame: Frame) -> None:
                raise WireError("not mine")

            worker.on_frame = refuse
            await send(worker, b"two")
            with pytest.raises(WireError, match="not mine"):
                await worker.receive()

    async def test_a_running_worker(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            await load(worker, "echo.py")
            assert worker.pid > 0
            assert worker.memory() > 0
            assert isinstance(worker.tail(), str)
            assert not worker.exited.is_set()

    async def test_two_workers_know_nothing_of_each_other(self, launcher: Launcher) -> None:
        async with (
            launcher.launch(spec("echo.py"), label="W-1") as one,
            launcher.launch(spec("echo.py"), label="W-2") as two,
        ):
            assert one.pid != two.pid
            await load(one, "echo.py")
            await load(two, "echo.py")
            one.kill()
            await one.wait()
            assert await ask(two, b"here") == [b"here"]

    async def test_leaving_the_block_ends_the_worker(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            await load(worker, "echo.py")
        assert worker.exited.is_set()
        assert await worker.wait() == Exit(0)
        assert worker.memory() == 0

    async def test_a_worker_that_was_never_asked_to_load_leaves_too(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            pass
        assert worker.exited.is_set()

    async def test_an_error_in_the_block_ends_the_worker(self, launcher: Launcher) -> None:
        started: list[Worker] = []
        with pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True, flatten_subgroups=True):
            async with launcher.launch(spec("echo.py"), label="W-1") as worker:
                started.append(worker)
                raise ZeroDivisionError
        assert started[0].exited.is_set()

    async def test_a_cancelled_block_ends_the_worker_at_once(self, launcher: Launcher) -> None:
        """A worker that is stuck in a batch is not waited for then."""
        with trio.CancelScope() as scope:
            async with launcher.launch(spec("stuck.py"), label="W-1") as worker:
                await load(worker, "stuck.py")
                await send(worker, b"")
                began = trio.current_time()
                scope.cancel()
                await trio.sleep_forever()
        assert trio.current_time() - began < AT_ONCE_S
        assert await worker.wait() == Exit(137)

    async def test_a_worker_that_does_not_leave_is_killed(self, launcher: Launcher) -> None:
        with trio.fail_after(LEAVE_S):
            async with launcher.launch(spec("stuck.py"), label="W-1") as worker:
                await load(worker, "stuck.py")
                await send(worker, b"")
        end = await worker.wait()
        assert end.killed
        assert str(end) == "signal SIGKILL"

    async def test_hang_up_asks_the_worker_to_leave(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            await load(worker, "echo.py")
            worker.hang_up()
            worker.hang_up()
            with trio.fail_after(LEAVE_S):
                assert await worker.wait() == Exit(0)
            with pytest.raises(WorkerGone):
                await worker.receive()
            with pytest.raises(WorkerGone):
                await send(worker, b"")

    async def test_hang_up_ends_a_wait_for_a_frame(self, launcher: Launcher, nursery: trio.Nursery) -> None:
        async with launcher.launch(spec("stuck.py"), label="W-1") as worker:
            await load(worker, "stuck.py")
            await send(worker, b"")
            nursery.start_soon(self._call_when_idle, worker.hang_up)
            with trio.fail_after(LEAVE_S), pytest.raises(WorkerGone):
                await worker.receive()
            worker.kill()

    @staticmethod
    async def _call_when_idle(call: Callable[[], None]) -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        call()

    async def test_kill(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            await load(worker, "echo.py")
            worker.kill()
            worker.kill()
            end = await worker.wait()
            assert end == Exit(137)
            assert end.killed
            assert worker.exited.is_set()
            with pytest.raises(WorkerGone):
                await worker.receive()
            with pytest.raises(WorkerGone):
                await send(worker, b"x" * 100)
            worker.kill()
            worker.hang_up()
            assert isinstance(worker.tail(), str)

    async def test_abort(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("stuck.py"), label="W-1") as worker:
            await load(worker, "stuck.py")
            await send(worker, b"")
            worker.abort()
            end = await worker.wait()
            assert (end, str(end), end.killed) == (Exit(134), "signal SIGABRT", False)
            worker.abort()

    async def test_a_worker_is_ailing_when_it_ends(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            await load(worker, "echo.py")
            assert not worker.ailing.is_set()
            worker.kill()
            with trio.fail_after(LEAVE_S):
                await worker.ailing.wait()

    async def test_a_worker_is_ailing_when_it_hangs_up(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("hangs_up.py"), label="W-1") as worker:
            await load(worker, "hangs_up.py")
            await send(worker, b"")
            with trio.fail_after(LEAVE_S):
                await worker.ailing.wait()
            with pytest.raises(WorkerGone):
                await worker.receive()
            assert not worker.exited.is_set()
            worker.kill()

    async def test_a_worker_is_ailing_when_it_sends_what_is_no_frame(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("garbage.py"), label="W-1") as worker:
            await load(worker, "garbage.py")
            await send(worker, b"")
            with trio.fail_after(LEAVE_S):
                await worker.ailing.wait()
            for _ in range(2):
                with pytest.raises(WireError):
                    await worker.receive()

    async def test_a_worker_is_ailing_when_it_says_what_nobody_asked_for(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("twice.py"), label="W-1") as worker:
            await load(worker, "twice.py")
            assert await ask(worker, b"one") == [b"one"]
            with trio.fail_after(LEAVE_S):
                await worker.ailing.wait()
            with pytest.raises(WireError, match="nobody asked for"):
                await worker.receive()

    async def test_a_worker_that_started_nothing_is_one_process(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            assert await worker.processes(most=5) == 1

    async def test_an_end_can_be_waited_for_by_many(self, launcher: Launcher) -> None:
        ends: list[Exit] = []

        async def wait(worker: Worker) -> None:
            ends.append(await worker.wait())

        async with launcher.launch(spec("echo.py"), label="W-1") as worker, trio.open_nursery() as nursery:
            nursery.start_soon(wait, worker)
            nursery.start_soon(wait, worker)
            await load(worker, "echo.py")
            worker.hang_up()
        assert ends == [Exit(0), Exit(0)]
        assert await worker.wait() == Exit(0)

    async def test_what_was_sent_before_the_end_still_comes(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("refuses.py"), label="W-1") as worker:
            await worker.send(Frame(Kind.LOAD, 5, asdict(spec("refuses.py"))))
            await worker.exited.wait()
            report = await worker.receive()
            assert (report.kind, report.meta["ok"], report.meta["reason"]) == (Kind.LOADED, False, "load_error")
            with pytest.raises(WorkerGone):
                await worker.receive()
            assert await worker.wait() == Exit(1)

    @pytest.mark.parametrize(("handler", "code"), [("crash_on_start.py", 3), ("crash_on_predict.py", 7)])
    async def test_a_death_is_seen_at_once_and_has_its_exit_code(
        self, launcher: Launcher, handler: str, code: int
    ) -> None:
        async with launcher.launch(spec(handler), label="W-1") as worker:
            with pytest.raises(WorkerGone):
                await load(worker, handler)
                await send(worker, b"")
                await worker.receive()
            with trio.fail_after(LEAVE_S):
                assert await worker.wait() == Exit(code)

    async def test_what_is_no_frame_is_a_wire_error(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("garbage.py"), label="W-1") as worker:
            await load(worker, "garbage.py")
            await send(worker, b"")
            with pytest.raises(WireError):
                await worker.receive()

    async def test_a_cancelled_wait_for_a_frame_loses_none(self, launcher: Launcher) -> None:
        async with launcher.launch(spec("echo.py"), label="W-1") as worker:
            await load(worker, "echo.py")
            with trio.move_on_after(0.01) as scope:
                await worker.receive()
            assert scope.cancelled_caught
            assert await ask(worker, b"still here") == [b"still here"]

    async def test_no_process_can_be_started(self, launcher: Launcher, no_process: None) -> None:
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
            async with launcher.launch(spec("echo.py"), label="W-1"):
                raise AssertionError
