"""Scale: the rules of spec/management.md sections 1.5 and 4.1, draining, failures, and clients that leave."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import FakeWorker
from tests.services.stack import BATCH_S, HANDLERS, LOAD_S, TEST, Services, jump, until
from tserve.domain.versions import Key
from tserve.domain.wire import JobReply
from tserve.errors import BadRequest, InternalServer, ModelNotFound, ModelVersionNotFound, TserveError
from tserve.services.management import ACCEPTED, PARTLY, Progress, Result

NO_DISK = InternalServer("The change could not be written.")


def scaled(count: int, version: str | None = None) -> Result:
    text = f"Workers scaled to {count} for model: noop"
    return Result(Progress.DONE, text if version is None else f"{text}, version: {version}")


def wanted(services: Services, version: str | None = None) -> tuple[int, int]:
    described = services.described(version=version)
    return described["minWorkers"], described["maxWorkers"]


def ids(services: Services) -> list[str]:
    return [worker["id"] for worker in services.described()["workers"]]


# ---- answers


async def test_answers(services: Services) -> None:
    await services.register()
    assert await services.scale(min_worker=2) == ACCEPTED
    assert await services.scale(min_worker=2) == ACCEPTED, "also when nothing changes"
    assert await services.scale(min_worker=2, synchronous=True) == scaled(2)
    assert await services.scale(version="1.0", min_worker=2, synchronous=True) == scaled(2, "1.0")
    assert services.statuses() == ["READY", "READY"]
    assert services.store.changes[1:] == [("replace_version", Key("noop", "1.0"), "test")], "only what changed"
    await services.same_in_store()


async def test_the_number_in_the_answer_is_what_was_asked_for(services: Services) -> None:
    """Not how many there are."""
    await services.register(initial_workers=3, synchronous=True)
    assert await services.scale(min_worker=1, max_worker=3, synchronous=True) == scaled(1)
    assert len(ids(services)) == 3


async def test_without_numbers_it_means_one(services: Services) -> None:
    """And shrinks: the maximum is the minimum unless it is named."""
    await services.register(initial_workers=3, synchronous=True)
    assert await services.scale(synchronous=True) == scaled(1)
    assert wanted(services) == (1, 1)
    assert ids(services) == ["9000"]


@pytest.mark.parametrize(
    ("before", "ask", "after"),
    [
        (0, (2, 2), ["9000", "9001"]),
        (1, (2, 3), ["9000", "9001"]),
        (2, (1, 3), ["9000", "9001"]),
        (3, (1, 2), ["9000", "9001"]),
        (3, (2, 2), ["9000", "9001"]),
        (1, (0, 0), []),
        (2, (0, 2), []),
        (0, (0, 2), []),
        (3, (-1, 2), ["9000", "9001"]),
        (3, (-1, 0), []),
        (0, (-1, 2), []),
    ],
)
async def test_how_many_there_are(services: Services, before: int, ask: tuple[int, int], after: list[str]) -> None:
    """Below the minimum some are started, above the maximum the newest are stopped, 0 stops all."""
    await services.register(initial_workers=before, synchronous=True)
    fewest, most = ask
    assert await services.scale(min_worker=fewest, max_worker=most, synchronous=True) == scaled(fewest)
    assert ids(services) == after
    assert wanted(services) == ask, "stored and shown as given"
    await services.same_in_store()


REFUSED: list[tuple[str, str | None, dict[str, int], type[TserveError], str]] = [
    ("noop", None, {"min_worker": 2, "max_worker": 1}, BadRequest, "max_worker cannot be less than min_worker."),
    ("fake", None, {"min_worker": 2, "max_worker": 1}, BadRequest, "max_worker cannot be less than min_worker."),
    ("noop", None, {"max_worker": -1}, BadRequest, "max_worker cannot be less than min_worker."),
    ("noop", None, {"max_worker": 0}, BadRequest, "max_worker cannot be less than min_worker."),
    ("noop", None, {"min_worker": -1}, BadRequest, "min_worker cannot be negative: -1"),
    ("noop", None, {"min_worker": -2, "max_worker": -1}, BadRequest, "min_worker cannot be negative: -2"),
    ("fake", None, {}, ModelNotFound, "Model not found: fake"),
    ("fake", "1.0", {}, ModelNotFound, "Model not found: fake"),
    ("noop", "9", {}, ModelVersionNotFound, "Model version: 9 does not exist for model: noop"),
    ("noop", "all", {}, ModelVersionNotFound, "Model version: all does not exist for model: noop"),
]


async def test_refusals(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    for name, version, ask, error, message in REFUSED:
        with pytest.raises(error) as refused:
            await services.scale(name, version, **ask)
        assert refused.value.message == message
    assert wanted(services) == (1, 1)
    assert services.statuses() == ["READY"]
    assert len(services.store.changes) == 1


async def test_one_version_only(services: Services) -> None:
    """Without a version it is the default one's turn."""
    await services.register()
    services.mar("two.mar", version="2.0")
    await services.register("two.mar")
    await services.scale(min_worker=1, synchronous=True)
    await services.scale(version="2.0", min_worker=2, synchronous=True)
    assert (wanted(services, "1.0"), wanted(services, "2.0")) == ((1, 1), (2, 2))
    assert [len(services.statuses(version=version)) for version in ("1.0", "2.0")] == [1, 2]
    await services.management.set_default("noop", "2.0", actor=TEST)
    await services.scale(min_worker=0, synchronous=True)
    assert (wanted(services, "1.0"), wanted(services, "2.0")) == ((1, 1), (0, 0))


async def test_synchronous_waits_for_new_workers(services: Services, mock_clock: MockClock) -> None:
    services.mar(handler="slow_load")
    await services.register()
    answers: list[Result] = []

    async def scale() -> None:
        answers.append(await services.scale(min_worker=2, synchronous=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scale)
        await until(lambda: services.launcher.asked == 2)
        assert wanted(services) == (2, 2), "at once"
        assert answers == []
        await jump(mock_clock, LOAD_S)
    assert answers == [scaled(2)]


# ---- workers that do not come up


@pytest.mark.parametrize(("version", "shown"), [(None, "null"), ("1.0", "1.0")])
@pytest.mark.parametrize(("handler", "code"), [("broken", 500), ("hopeless", 500), ("out_of_memory", 507)])
async def test_a_new_worker_that_fails(
    services: Services, version: str | None, shown: str, handler: str, code: int
) -> None:
    """No roll-back: the wanted numbers stay, and so does the model."""
    services.mar(handler=handler)
    await services.register()
    with pytest.raises(InternalServer) as failed:
        await services.scale(version=version, min_worker=2, synchronous=True)
    assert failed.value.code == code
    assert failed.value.message == f"Failed to start workers for model noop version: {shown}"
    assert failed.value.cause["detail"] == "no weights"
    assert wanted(services) == (2, 2)
    await services.same_in_store()


async def test_workers_that_were_down_before_are_waited_for_and_then_206(
    services: Services, mock_clock: MockClock
) -> None:
    """Up to the startup timeout (DESIGN.md section 9)."""
    services.mar(handler="broken")
    await services.register(initial_workers=1, startup_timeout=30)
    await until(lambda: "nextTrySeconds" in services.described()["workers"][0]["tserve"])
    answers: list[Result] = []

    async def scale() -> None:
        answers.append(await services.scale(min_worker=1, synchronous=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scale)
        await jump(mock_clock, 29)
        assert answers == []
        await jump(mock_clock, 1)
    assert answers == [PARTLY]


async def test_a_worker_that_comes_back_in_time(services: Services, mock_clock: MockClock) -> None:
    await services.register(initial_workers=1, synchronous=True)
    services.launcher.play(HANDLERS["broken"], HANDLERS["ok"])
    services.launcher.alive[0].crash(1)
    await until(lambda: "nextTrySeconds" in services.described()["workers"][0]["tserve"])
    answers: list[Result] = []

    async def scale() -> None:
        answers.append(await services.scale(min_worker=1, synchronous=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scale)
        await jump(mock_clock, 1)
    assert answers == [scaled(1)]
    assert services.statuses() == ["READY"]


async def test_a_worker_that_gave_up_is_tried_again(services: Services) -> None:
    services.mar(handler="hopeless")
    await services.register(initial_workers=1)
    await until(lambda: services.described()["workers"][0]["tserve"]["phase"] == "failed")
    assert services.launcher.asked == 1
    with pytest.raises(InternalServer):
        await services.scale(min_worker=1, synchronous=True)
    assert services.launcher.asked == 2


async def test_unregistered_meanwhile(services: Services) -> None:
    services.mar(handler="slow_load")
    await services.register()
    failures: list[InternalServer] = []

    async def scale() -> None:
        with pytest.raises(InternalServer) as failed:
            await services.scale(min_worker=1, synchronous=True)
        failures.append(failed.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scale)
        await until(lambda: services.launcher.asked == 1)
        await services.unregister()
    assert failures[0].message == "Failed to start workers for model noop version: null"
    assert failures[0].cause["reason"] == "unregistered"


# ---- work in hand


class Asked:
    """Predictions in flight and what became of them."""

    def __init__(self, services: Services, nursery: trio.Nursery) -> None:
        self._services, self._nursery = services, nursery
        self.outcomes: dict[str, JobReply | TserveError] = {}

    def predict(self, text: str) -> None:
        self._nursery.start_soon(self._predict, text)

    async def _predict(self, text: str) -> None:
        try:
            self.outcomes[text] = await self._services.predict(body=text.encode())
        except TserveError as e:
            self.outcomes[text] = e

    async def in_hand(self, *texts: str) -> None:
        """Wait until these, and no others, have reached the workers."""
        await until(lambda: sorted(self.at(worker) for worker in self._services.launcher.workers) == [*texts])

    @staticmethod
    def at(worker: FakeWorker) -> str:
        """What a worker got."""
        return b"".join(text for batch in worker.batches for text in batch).decode()

    async def waiting(self, count: int) -> None:
        await until(lambda: self._services.described()["jobQueueStatus"]["pendingRequests"] == count)

    def code(self, text: str) -> int:
        outcome = self.outcomes[text]
        return outcome.status if isinstance(outcome, JobReply) else outcome.code


async def busy(services: Services, workers: int, **ask: Any) -> None:
    services.mar(handler="slow")
    await services.register(initial_workers=workers, synchronous=True, **ask)


@pytest.mark.parametrize(("limit", "code"), [(-1, 200), (-7, 200), (6, 200), (2, 500), (0, 500)])
async def test_surplus_workers_get_time_for_what_they_have_in_hand(
    services: Services, mock_clock: MockClock, limit: int, code: int
) -> None:
    await busy(services, 2)
    async with trio.open_nursery() as nursery:
        asked = Asked(services, nursery)
        for text in ("a", "b"):
            asked.predict(text)
        await asked.in_hand("a", "b")
        answered = trio.Event()

        async def scale() -> None:
            assert await services.scale(min_worker=1, timeout=limit, synchronous=True) == scaled(1)
            answered.set()

        nursery.start_soon(scale)
        await until(lambda: len(ids(services)) == 1)
        await wait_all_tasks_blocked()
        assert answered.is_set() == (limit == 0), "synchronous waits for the surplus to be gone"
        await jump(mock_clock, 2.5)
        await jump(mock_clock, BATCH_S - 2.5)
    oldest, newest = (asked.at(worker) for worker in sorted(services.launcher.workers, key=lambda w: w.label))
    assert (asked.code(oldest), asked.code(newest)) == (200, code)
    if code == 500:
        cut = asked.outcomes[newest]
        assert isinstance(cut, InternalServer)
        assert cut.message == "Worker died."
        assert cut.cause["reason"] == "drain_timeout"


async def test_to_zero_serves_the_queue_within_the_timeout(services: Services, mock_clock: MockClock) -> None:
    """The rest is answered 503, and new requests at once."""
    await busy(services, 1)
    async with trio.open_nursery() as nursery:
        asked = Asked(services, nursery)
        asked.predict("a")
        await asked.in_hand("a")
        asked.predict("b")
        await asked.waiting(1)
        asked.predict("c")
        await asked.waiting(2)
        assert await services.scale(min_worker=0, timeout=int(BATCH_S * 2 + 1)) == ACCEPTED
        asked.predict("late")
        await until(lambda: "late" in asked.outcomes)
        await jump(mock_clock, BATCH_S)
        await jump(mock_clock, BATCH_S)
        await jump(mock_clock, BATCH_S)
    assert {text: asked.code(text) for text in asked.outcomes} == {"late": 503, "a": 200, "b": 200, "c": 500}
    assert services.statuses() == []


async def test_to_zero_at_once(services: Services) -> None:
    await busy(services, 1)
    async with trio.open_nursery() as nursery:
        asked = Asked(services, nursery)
        asked.predict("a")
        await asked.in_hand("a")
        asked.predict("b")
        await asked.waiting(1)
        assert await services.scale(min_worker=0, timeout=0, synchronous=True) == scaled(0)
    assert (asked.code("a"), asked.code("b")) == (500, 503)


# ---- the store, and clients that leave


async def test_a_store_that_fails_changes_nothing(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    services.store.fails_with = NO_DISK
    with pytest.raises(InternalServer) as failed:
        await services.scale(min_worker=2, synchronous=True)
    assert failed.value is NO_DISK
    assert wanted(services) == (1, 1)
    assert services.launcher.asked == 1
    await services.same_in_store()
    assert await services.scale(min_worker=1, synchronous=True) == scaled(1), "there is nothing to write"


@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_client_that_leaves_during_the_commit(services: Services, synchronous: bool) -> None:
    await services.register()
    services.store.shut()
    with trio.CancelScope() as client:
        async with trio.open_nursery() as calls:

            async def scale() -> None:
                await services.scale(min_worker=2, synchronous=synchronous)

            calls.start_soon(scale)
            await services.store.reached.wait()
            client.cancel()
            services.store.open()
    await until(lambda: services.statuses() == ["READY", "READY"])
    await services.same_in_store()


async def test_a_client_that_leaves_before_the_commit(services: Services) -> None:
    """It waits for its turn behind another's change."""
    await services.register()
    services.mar("two.mar", version="2.0")
    services.store.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(services.register, "two.mar")
        await services.store.reached.wait()
        with trio.CancelScope() as client:
            async with trio.open_nursery() as calls:
                calls.start_soon(services.scale)
                await wait_all_tasks_blocked()
                client.cancel()
        services.store.open()
    assert wanted(services) == (0, 0)
    assert services.launcher.asked == 0
    await services.same_in_store()
