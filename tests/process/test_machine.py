"""Pool, slots and real workers together: what clients get when real processes misbehave."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import trio

from tests.fakes import Asked, pool_spec
from tests.process.launcher_contract import HANDLERS
from tserve.domain.phases import Phase
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import Input, JobRequest
from tserve.runtime.family import Family
from tserve.runtime.fresh import FreshLauncher
from tserve.runtime.pool import NoCapacity, Pool, Settled

pytestmark = [
    pytest.mark.process,
    # TorchScript is what archives hold, whatever torch thinks of its future.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@asynccontextmanager
async def machine(
    handler: str, *, model_dir: Path = HANDLERS, manifest: Mapping[str, object] | None = None, **settings: Any
) -> AsyncIterator[Pool]:
    """A pool on real workers, ended at once when the block is left."""
    worker = WorkerSpec("m", str(model_dir), handler, int(settings.get("batch_size", 1)), manifest=manifest)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            pool = Pool(pool_spec(worker=worker, **settings), FreshLauncher(Family()), itertools.count(9000))
            nursery.start_soon(pool.run)
            await pool.caught_up()
            yield pool
            pool.apply(None, drain_s=0)


async def up(pool: Pool) -> int:
    """The pid of the first worker, once all are up."""
    assert await pool.settled(patience_s=30) == Settled(ready=True)
    return pool.view().slots[0].pid


async def ask(pool: Pool, body: str) -> Asked:
    job = Asked(body)
    pool.submit(job)
    await job.answered.wait()
    return job


async def until(pool: Pool, phase: Phase) -> None:
    """Real time passes, and a pool has no event for this."""
    while pool.view().slots[0].phase is not phase:  # noqa: ASYNC110
        await trio.sleep(0.01)


async def test_many_jobs_over_two_workers() -> None:
    async with machine("echo.py", min_workers=2, max_workers=2, batch_size=4, batch_delay_s=0.01) as pool:
        await up(pool)
        jobs = [Asked(str(number)) for number in range(100)]
        for job in jobs:
            pool.submit(job)
        for job in jobs:
            await job.answered.wait()
        assert [job.body for job in jobs] == [job.text for job in jobs]


@pytest.mark.parametrize(
    ("how", "code", "reason", "end"),
    [
        ("exit 7", 500, "crashed", "exit code 7"),
        ("signal 15", 500, "crashed", "signal SIGTERM"),
        ("signal 9", 500, "killed", "signal SIGKILL"),
    ],
)
async def test_a_crash_is_told_and_healed(how: str, code: int, reason: str, end: str) -> None:
    async with machine("crash_on_predict.py") as pool:
        pid = await up(pool)
        job = await ask(pool, how)
        assert (job.error.code, job.error.message) == (code, "Worker died.")
        assert (job.error.cause["reason"], job.error.cause["exit"]) == (reason, end)
        await until(pool, Phase.READY)
        (slot,) = pool.view().slots
        assert (slot.id, slot.restarts) == (9000, 1)
        assert slot.pid != pid


async def test_a_worker_that_hangs_up_and_lingers_is_no_lack_of_memory() -> None:
    async with machine("lingers.py") as pool:
        await up(pool)
        job = await ask(pool, "")
        assert (job.error.code, job.error.cause["reason"]) == (500, "crashed")


async def test_an_unresponsive_worker_is_replaced() -> None:
    """And at once: that it ignores SIGTERM and sits in its batch buys it no time."""
    async with machine("stuck.py", response_timeout_s=0.3) as pool:
        pid = await up(pool)
        began = trio.current_time()
        job = await ask(pool, "")
        assert (job.error.code, job.error.message) == (500, "Worker died.")
        assert job.error.cause["reason"] == "response_timeout"
        assert trio.current_time() - began >= 0.3
        await until(pool, Phase.READY)
        assert trio.current_time() - began < 0.3 + 1.5
        assert pool.view().slots[0].pid != pid


async def test_a_worker_killed_from_outside_while_idle() -> None:
    async with machine("crash_on_predict.py") as pool:
        pid = await up(pool)
        os.kill(pid, signal.SIGKILL)
        while (failure := pool.view().slots[0].failure) is None:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert (failure.reason, failure.exit) == ("killed", "signal SIGKILL")
        await until(pool, Phase.READY)
        assert pool.view().slots[0].pid != pid


async def test_what_was_printed_last_is_in_the_cause() -> None:
    async with machine("forks.py") as pool:
        await up(pool)
        job = await ask(pool, "near dies")
        assert job.error.cause["exit"] == "exit code 4"
        assert str(job.error.cause["log_tail"]).startswith("child ")


@pytest.mark.parametrize(
    ("source", "reason", "detail"),
    [
        ("import not_installed\n", "missing_requirement", "'not_installed'"),
        ("def handle(:\n", "syntax_error", "def handle(:"),
        ("class A: ...\nclass B: ...\n", "handler_not_found", "found A, B"),
    ],
)
async def test_what_cannot_heal_fails_fast(tmp_path: Path, source: str, reason: str, detail: str) -> None:
    (tmp_path / "handler.py").write_text(source)
    async with machine("handler.py", model_dir=tmp_path) as pool:
        found = await pool.settled(patience_s=30)
        assert found.failure is not None
        assert found.failure.reason == reason
        assert detail in found.failure.detail
        await until(pool, Phase.FAILED)
        with pytest.raises(NoCapacity, match="all_failed"):
            pool.submit(Asked())


async def test_what_a_failed_load_printed_is_in_the_cause() -> None:
    """The report comes over the socket, the print through a pipe: one may overtake the other."""
    async with machine("refuses.py", min_workers=4, max_workers=4) as pool:
        found = await pool.settled(patience_s=30)
        assert found.failure is not None
        assert (found.failure.reason, found.failure.exit) == ("load_error", None)
        assert "RuntimeError: no weights today" in found.failure.log_tail
        while not all(slot.failure for slot in pool.view().slots):  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert all("no weights today" in slot.failure.log_tail for slot in pool.view().slots if slot.failure)


async def test_a_crash_while_loading_backs_off() -> None:
    async with machine("crash_on_start.py") as pool:
        found = await pool.settled(patience_s=30)
        assert found.failure is not None
        assert (found.failure.reason, found.failure.exit) == ("died_loading", "exit code 3")
        await until(pool, Phase.BACKING_OFF)


async def test_draining_a_stuck_worker_ends_with_the_limit() -> None:
    async with machine("stuck.py") as pool:
        await up(pool)
        job = Asked()
        pool.submit(job)
        await until(pool, Phase.BUSY)
        began = trio.current_time()
        pool.apply(pool_spec(0), drain_s=0.3)
        await job.answered.wait()
        assert trio.current_time() - began >= 0.3
        assert job.error.cause["reason"] == "drain_timeout"
        assert await pool.settled(patience_s=30) == Settled(ready=True)


async def test_a_worker_finds_itself_in_the_model_folder(tmp_path: Path) -> None:
    """spec/inference.md section 16.2; nothing of the archive's neighbours is on the path."""
    (tmp_path / "handler.py").write_text(
        "import os, sys\n"
        "def handle(data, context):\n"
        "    return data and ['|'.join([os.getcwd(), sys.path[0], str('' in sys.path), os.environ['PYTHONPATH']])]\n"
    )
    async with machine("handler.py", model_dir=tmp_path) as pool:
        cwd, first, anything, inherited = (await ask(pool, "")).body.split("|")
        assert (cwd, first, anything) == (str(tmp_path), str(tmp_path), "False")
        assert str(tmp_path) in inherited.split(os.pathsep)


# -- torch

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x)
"""
HANDLER = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Handler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row["body"] for row in data])
"""


@pytest.fixture(params=["eager", "script"])
def linear(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """A model [a, b] -> 2a + 3b + 1 in `tmp_path`, and its manifest."""
    layer = torch.nn.Linear(2, 1)
    layer.load_state_dict({"weight": torch.tensor([[2.0, 3.0]]), "bias": torch.tensor([1.0])})
    (tmp_path / "handler.py").write_text(HANDLER)
    if request.param == "script":
        torch.jit.save(torch.jit.script(layer), str(tmp_path / "net.pt"))
        return {"model": {"serializedFile": "net.pt"}}
    (tmp_path / "net.py").write_text(NET)
    torch.save({f"layer.{name}": value for name, value in layer.state_dict().items()}, tmp_path / "net.pt")
    return {"model": {"modelFile": "net.py", "serializedFile": "net.pt"}}


async def test_torch_models_answer_in_batches(linear: dict[str, object], tmp_path: Path) -> None:
    async with machine("handler.py", model_dir=tmp_path, manifest=linear, batch_size=2, batch_delay_s=5.0) as pool:
        await up(pool)
        jobs = [Tensors([1.0, 1.0]), Tensors([0.5, -1.0])]
        for job in jobs:
            pool.submit(job)
        for job in jobs:
            await job.answered.wait()
        assert [job.body for job in jobs] == ["[\n  6.0\n]", "[\n  -1.0\n]"]


class Tensors(Asked):
    """A job whose body is JSON."""

    __slots__ = ()

    def __init__(self, values: list[float]) -> None:
        super().__init__(str(values))
        self.request = JobRequest("id", {}, (Input("body", "application/json", str(values).encode()),))
