"""One request through a version's queue and worker: answers, refusals, and clients that leave."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.services.stack import BATCH_S, TEST, Services, jump, running, until
from tserve.domain.wire import JobReply
from tserve.errors import InternalServer, ModelNotFound, ModelVersionNotFound, ServiceUnavailable

NO_WORKER = (
    "Model {} has no worker to serve inference request. Please use scale workers API to add workers. "
    "If this is a sequence inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)


async def test_an_answer(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    assert await services.predict(body=b"echo") == JobReply(200, "", {}, b"echo")
    assert await services.predict(version="1.0", body=b"echo") == JobReply(200, "", {}, b"echo")


async def test_the_default_version_answers_when_none_is_named(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    services.mar("two.mar", version="2.0")
    await services.register("two.mar", initial_workers=1, synchronous=True)
    await services.predict(body=b"1")
    await services.management.set_default("noop", "2.0", actor=TEST)
    await services.predict(body=b"2")
    await services.predict(version="1.0", body=b"3")
    one, two = services.launcher.workers
    assert ([b for batch in one.batches for b in batch], [b for batch in two.batches for b in batch]) == (
        [b"1", b"3"],
        [b"2"],
    )


async def test_unknown(services: Services) -> None:
    await services.register()
    with pytest.raises(ModelNotFound):
        await services.predict("fake")
    with pytest.raises(ModelNotFound):
        services.inference.exists("fake", None)
    with pytest.raises(ModelVersionNotFound):
        await services.predict(version="9")
    with pytest.raises(ModelVersionNotFound):
        services.inference.exists("noop", "9")
    services.inference.exists("noop", None)


@pytest.mark.parametrize(("version", "shown"), [(None, '"noop"'), ("1.0", '"noop" Version 1.0"')])
@pytest.mark.parametrize("scaled", [False, True])
async def test_no_worker(services: Services, version: str | None, shown: str, scaled: bool) -> None:
    """Never had one, or has none any more; the stray quote is recorded."""
    await services.register(initial_workers=int(scaled), synchronous=True)
    if scaled:
        await services.scale(min_worker=0, synchronous=True)
    with pytest.raises(ServiceUnavailable) as refused:
        await services.predict(version=version)
    assert refused.value.message == NO_WORKER.format(shown)
    assert refused.value.cause == {"reason": "no_worker"}


async def test_a_full_queue(tmp_path: Path, mock_clock: MockClock) -> None:
    """The same sentence; the reason stands beside it.  Only what waits counts."""
    async with running(tmp_path, job_queue_size=1) as services:
        services.mar(handler="slow")
        await services.register(initial_workers=1, synchronous=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(services.predict)
            await until(lambda: services.launcher.workers[0].batches)
            nursery.start_soon(services.predict)
            await until(lambda: services.described()["jobQueueStatus"]["pendingRequests"] == 1)
            with pytest.raises(ServiceUnavailable) as refused:
                await services.predict()
            assert refused.value.message == NO_WORKER.format('"noop"')
            assert refused.value.cause == {"reason": "queue_full"}
            await jump(mock_clock, BATCH_S)
            await jump(mock_clock, BATCH_S)


async def test_every_worker_gave_up(services: Services) -> None:
    """Nobody waits for a worker that will not come (section 12, row 3)."""
    services.mar(handler="hopeless")
    await services.register(initial_workers=1)
    await until(lambda: services.described()["workers"][0]["tserve"]["phase"] == "failed")
    with pytest.raises(ServiceUnavailable) as refused:
        await services.predict()
    assert refused.value.cause["reason"] == "all_failed"
    assert refused.value.cause["workers"] == {
        "reason": "import_error",
        "detail": "no weights",
        "log_tail": "last words of W-9000-noop_1.0\n",
    }


async def test_requests_wait_for_a_worker_that_loads(services: Services, mock_clock: MockClock) -> None:
    services.mar(handler="slow_load")
    await services.register(initial_workers=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(services.predict)
        await until(lambda: services.described()["jobQueueStatus"]["pendingRequests"] == 1)
        await jump(mock_clock, 5)


async def test_a_worker_that_dies(services: Services) -> None:
    services.mar(handler="dies")
    await services.register(initial_workers=1, synchronous=True)
    with pytest.raises(InternalServer) as failed:
        await services.predict()
    assert (failed.value.code, failed.value.message) == (500, "Worker died.")
    assert failed.value.cause["exit"] == "exit code 3"


async def test_a_worker_that_does_not_answer(services: Services, mock_clock: MockClock) -> None:
    services.mar(handler="slow")
    await services.register(initial_workers=1, synchronous=True, response_timeout=2)

    async def predict() -> None:
        with pytest.raises(InternalServer) as failed:
            await services.predict()
        assert (failed.value.code, failed.value.message) == (500, "Worker died.")
        assert failed.value.cause["reason"] == "response_timeout"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(predict)
        await until(lambda: services.launcher.workers[0].batches)
        await jump(mock_clock, 2)


async def test_a_client_that_leaves_frees_its_place(services: Services, mock_clock: MockClock) -> None:
    """What waits is dropped, what a worker has in hand runs on and its answer goes nowhere."""
    services.mar(handler="slow")
    await services.register(initial_workers=1, synchronous=True)
    async with trio.open_nursery() as nursery:
        for scope in (first := trio.CancelScope(), second := trio.CancelScope()):

            async def predict(scope: trio.CancelScope) -> None:
                with scope:
                    await services.predict(body=b"gone")

            nursery.start_soon(predict, scope)
            await until(lambda: services.launcher.workers[0].batches)
        await until(lambda: services.described()["jobQueueStatus"]["pendingRequests"] == 1)
        second.cancel()
        await until(lambda: services.described()["jobQueueStatus"]["pendingRequests"] == 0)
        first.cancel()
    bodies: list[bytes] = []

    async def stay() -> None:
        bodies.append((await services.predict(body=b"stays")).body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stay)
        await until(lambda: services.described()["jobQueueStatus"]["pendingRequests"] == 1)
        await jump(mock_clock, BATCH_S)
        await until(lambda: len(services.launcher.workers[0].batches) == 2)
        await jump(mock_clock, BATCH_S)
    assert bodies == [b"stays"]
    assert services.launcher.workers[0].batches == [[b"gone"], [b"stays"]]
