"""Register: answers, precedence of what fails, roll-back, and clients that leave (spec/management.md 1.4, 3.7, 3.8)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import FakeLauncher, Script
from tests.services.stack import HANDLERS, LOAD_S, TEST, Services, jump, running, until
from tserve.domain.versions import Key
from tserve.errors import (
    BadRequest,
    Conflict,
    InternalServer,
    InvalidModel,
    ModelNotFound,
    ModelVersionNotFound,
    TserveError,
)
from tserve.services.desired import RegisterRequest
from tserve.services.management import ACCEPTED, Progress, Result

NO_DISK = InternalServer("The change could not be written.", cause={"reason": "store"})


def registered(count: int, name: str = "noop", version: str = "1.0") -> Result:
    return Result(Progress.DONE, f'Model "{name}" Version: {version} registered with {count} initial workers')


# ---- what is answered


async def test_without_workers(services: Services) -> None:
    """Done at once, whatever `synchronous` says; the version is in memory, in the store and on the disk."""
    text = (
        'Model "noop" Version: 1.0 registered with 0 initial workers. '
        "Use scale workers API to add workers for the model."
    )
    assert await services.register() == Result(Progress.DONE, text)
    assert await services.register(model_name="b", synchronous=False) == Result(
        Progress.DONE, text.replace('"noop"', '"b"')
    )
    assert services.keys() == ["noop:1.0", "b:1.0"]
    assert services.store.changes == [
        ("add_version", Key("noop", "1.0"), "test"),
        ("add_version", Key("b", "1.0"), "test"),
    ]
    assert services.launcher.asked == 0
    await services.same_in_store()


async def test_asynchronous_is_the_default(services: Services, mock_clock: MockClock) -> None:
    services.mar(handler="slow_load")
    assert await services.register(initial_workers=2) == ACCEPTED
    assert services.statuses() == ["UNLOADING", "UNLOADING"]
    await jump(mock_clock, LOAD_S)
    await until(lambda: services.statuses() == ["READY", "READY"])


async def test_synchronous_waits_for_all_workers(services: Services, mock_clock: MockClock) -> None:
    services.mar(handler="slow_load")
    answers: list[Result] = []

    async def register() -> None:
        answers.append(await services.register(initial_workers=2, synchronous=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(register)
        await until(lambda: services.launcher.asked == 2)
        assert services.described()["minWorkers"] == 2, "others see it while it loads"
        assert answers == []
        await jump(mock_clock, LOAD_S)
    assert answers == [registered(2)]
    assert services.statuses() == ["READY", "READY"]


@pytest.mark.parametrize(
    ("setting", "asked", "expected"),
    [
        (False, None, ACCEPTED),
        (False, True, registered(1)),
        (True, None, registered(1)),
        (True, False, ACCEPTED),
    ],
)
async def test_default_register_synchronous(
    tmp_path: Path, setting: bool, asked: bool | None, expected: Result
) -> None:
    async with running(tmp_path, default_register_synchronous=setting) as services:
        services.mar()
        assert await services.register(initial_workers=1, synchronous=asked) == expected


async def test_the_number_of_workers_in_the_answer_is_the_minimum_in_effect(services: Services) -> None:
    services.mar(config="minWorkers: 1\nmaxWorkers: 3\n")
    assert await services.register(synchronous=True) == registered(1)
    assert (services.described()["minWorkers"], services.described()["maxWorkers"]) == (1, 3)


async def test_default_workers_per_model(tmp_path: Path) -> None:
    async with running(tmp_path, default_workers_per_model=2) as services:
        services.mar()
        assert await services.register(synchronous=True) == registered(2)
        assert await services.register(model_name="b", initial_workers=-1, synchronous=True) != registered(2, "b")
        assert services.described("b")["minWorkers"] == 0


async def test_the_first_version_stays_the_default(services: Services) -> None:
    await services.register()
    services.mar("two.mar", version="2.0")
    await services.register("two.mar")
    assert services.described()["modelVersion"] == "1.0"
    await services.same_in_store()


# ---- what is refused


REFUSED: list[tuple[dict[str, Any], type[TserveError], str]] = [
    ({}, BadRequest, "Parameter url is required."),
    ({"runtime": "python4"}, BadRequest, "Parameter url is required."),
    ({"url": "nowhere.mar", "runtime": "python4"}, BadRequest, "Invalid RuntimeType value: python4"),
    ({"url": "", "runtime": ""}, BadRequest, "Invalid RuntimeType value: "),
    ({"url": ""}, ModelNotFound, "empty url"),
    ({"url": "../noop.mar"}, ModelNotFound, "Relative path is not allowed in url: ../noop.mar"),
    ({"url": "nowhere.mar"}, ModelNotFound, "Model not found at: nowhere.mar"),
    ({"url": "nameless.mar"}, InvalidModel, "Model name is not defined."),
    ({"url": "runtime.mar"}, InvalidModel, "Runtime is not defined or invalid."),
    ({"url": "garbage.tar.gz"}, InternalServer, "Failed to save model: garbage.tar.gz"),
]


async def test_refusals_in_the_contracts_order(services: Services) -> None:
    services.mar("nameless.mar", name=None)
    services.mar("runtime.mar", runtime="java")
    (services.settings.model_store / "garbage.tar.gz").write_bytes(b"garbage")
    for ask, error, message in REFUSED:
        with pytest.raises(error) as refused:
            await services.management.register(RegisterRequest(**ask), actor=TEST)
        assert refused.value.message == message
    assert services.keys() == []
    assert services.store.changes == []
    await services.same_in_store()


@pytest.mark.parametrize("file", ["noop.mar", "other.mar"])
async def test_conflict(services: Services, file: str) -> None:
    """Whatever the archive, and a new one's content does not stay."""
    services.mar("other.mar", handler="other")
    await services.register()
    kept = services.kept()
    with pytest.raises(Conflict) as refused:
        await services.register(file)
    assert refused.value.message == "Model version 1.0 is already registered for model noop"
    assert services.kept() == kept
    await services.same_in_store()


async def test_two_at_once(services: Services) -> None:
    """One of them registers, the other is told so."""
    outcomes: list[Result | Conflict] = []

    async def register() -> None:
        try:
            outcomes.append(await services.register(initial_workers=1, synchronous=True))
        except Conflict as e:
            outcomes.append(e)

    services.store.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(register)
        nursery.start_soon(register)
        await services.store.reached.wait()
        await until(lambda: services.in_progress() == [])
        services.store.open()
    assert [outcome for outcome in outcomes if isinstance(outcome, Result)] == [registered(1)]
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
    assert len(services.store.changes) == 1
    assert services.statuses() == ["READY"]
    await services.same_in_store()


async def test_a_store_that_fails_leaves_nothing(services: Services) -> None:
    services.store.fails_with = NO_DISK
    with pytest.raises(InternalServer) as failed:
        await services.register(initial_workers=1, synchronous=True)
    assert failed.value is NO_DISK
    assert services.keys() == []
    assert services.launcher.asked == 0
    await services.same_in_store()
    services.store.fails_with = None
    assert await services.register(initial_workers=1, synchronous=True) == registered(1)


# ---- roll-back of a synchronous one whose workers do not come up


async def failed_register(services: Services, **ask: Any) -> InternalServer:
    with pytest.raises(InternalServer) as failed:
        await services.register(**{"initial_workers": 1, "synchronous": True, **ask})
    return failed.value


@pytest.mark.parametrize(
    ("handler", "code", "reason"),
    [("broken", 500, "load_error"), ("hopeless", 500, "import_error"), ("out_of_memory", 507, "out_of_memory")],
)
async def test_roll_back(services: Services, handler: str, code: int, reason: str) -> None:
    services.mar(handler=handler)
    failed = await failed_register(services, initial_workers=2)
    assert (failed.code, failed.message) == (code, "Failed to start workers for model noop version: 1.0")
    assert failed.cause["reason"] == reason
    assert failed.cause["detail"] == "no weights"
    assert services.keys() == []
    assert services.launcher.alive == []
    await services.same_in_store()
    assert services.kept() == []
    services.mar(handler="ok")
    assert await services.register(initial_workers=1, synchronous=True) == registered(1)


async def test_roll_back_after_startup_timeout(services: Services, mock_clock: MockClock) -> None:
    services.mar(handler="slow_load")
    async with trio.open_nursery() as nursery:

        async def register() -> None:
            failed = await failed_register(services, startup_timeout=2)
            assert failed.cause["reason"] == "startup_timeout"

        nursery.start_soon(register)
        await until(lambda: services.launcher.asked == 1)
        await jump(mock_clock, 2)
    assert services.keys() == []
    await services.same_in_store()


async def test_a_startup_timeout_of_zero_fails_every_start(services: Services) -> None:
    """Step 31 of the recorded test collection."""
    failed = await failed_register(services, startup_timeout=0)
    assert failed.cause["reason"] == "startup_timeout"
    assert services.keys() == []


async def test_one_bad_worker_of_two_rolls_back(tmp_path: Path) -> None:
    launcher = FakeLauncher(Script(), HANDLERS["broken"])
    async with running(tmp_path, launcher=launcher) as services:
        services.mar()
        await failed_register(services, initial_workers=2)
        assert services.keys() == []
        assert launcher.alive == []


async def test_roll_back_keeps_content_that_another_version_stands_on(services: Services) -> None:
    services.mar(handler="broken")
    await services.register(model_name="b")
    await failed_register(services)
    assert services.keys() == ["b:1.0"]
    assert len(services.kept()) == 1
    await services.same_in_store()


async def test_asynchronous_failures_are_not_rolled_back(services: Services) -> None:
    services.mar(handler="hopeless")
    assert await services.register(initial_workers=1) == ACCEPTED
    await until(lambda: "lastFailure" in services.described()["workers"][0]["tserve"])
    assert services.keys() == ["noop:1.0"]


async def while_it_loads(services: Services, *, then: Callable[[], Any], clock: MockClock) -> InternalServer:
    """Register a version that takes LOAD_S to fail; `then` happens meanwhile."""
    services.mar(handler="slow_broken")
    failures: list[InternalServer] = []

    async def register() -> None:
        failures.append(await failed_register(services))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(register)
        await until(lambda: services.launcher.asked == 1)
        await then()
        await jump(clock, LOAD_S)
    (failure,) = failures
    return failure


async def test_roll_back_of_a_default_that_got_company(services: Services, mock_clock: MockClock) -> None:
    """The version that came meanwhile becomes the default: the failed one must not stay for being it."""

    async def then() -> None:
        services.mar("two.mar", version="2.0")
        await services.register("two.mar")
        services.mar("three.mar", version="3.0")
        await services.register("three.mar")

    await while_it_loads(services, then=then, clock=mock_clock)
    assert services.keys() == ["noop:2.0", "noop:3.0"]
    assert services.described()["modelVersion"] == "2.0"
    await services.same_in_store()


async def test_roll_back_of_a_version_that_is_not_the_default(services: Services, mock_clock: MockClock) -> None:
    services.mar("two.mar", version="2.0")
    await services.register("two.mar")
    await while_it_loads(services, then=trio.lowlevel.checkpoint, clock=mock_clock)
    assert services.keys() == ["noop:2.0"]
    await services.same_in_store()


async def test_unregistered_while_it_loads(services: Services, mock_clock: MockClock) -> None:
    failure = await while_it_loads(services, then=services.unregister, clock=mock_clock)
    assert failure.message == "Failed to start workers for model noop version: 1.0"
    assert failure.cause["reason"] == "unregistered"
    assert services.keys() == []
    await services.same_in_store()


async def test_a_server_that_stops_takes_nothing_back(services: Services) -> None:
    """What was committed is started again next time; stopping is no fault of the version."""
    services.mar(handler="slow_load")

    async def register() -> None:
        assert (await failed_register(services)).message == "Failed to start workers for model noop version: 1.0"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(register)
        await until(lambda: services.launcher.asked == 1)
        await services.reconciler.drain(drain_s=0)
    assert services.keys() == ["noop:1.0"]
    await services.same_in_store()


async def test_a_newer_wish_is_not_rolled_back(services: Services, mock_clock: MockClock) -> None:
    """Scaled while it loads, the version is that caller's now; the first one still learns what happened."""

    async def then() -> None:
        await services.scale(min_worker=2)

    failure = await while_it_loads(services, then=then, clock=mock_clock)
    assert failure.cause["reason"] == "load_error"
    assert services.described()["minWorkers"] == 2
    await services.same_in_store()


async def test_unregistered_by_another_before_the_roll_back(services: Services) -> None:
    """The roll-back finds nothing left to do; its client hears of the failure all the same."""
    services.mar(handler="broken")
    services.store.shut()
    failures: list[InternalServer] = []

    async def register() -> None:
        failures.append(await failed_register(services))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(register)
        await services.store.reached.wait()
        services.store.open()
        await until(lambda: services.keys() == ["noop:1.0"])
        services.store.shut()
        nursery.start_soon(services.unregister)  # holds the lock that the roll-back wants
        await services.store.reached.wait()
        await until(lambda: "lastFailure" in services.described()["workers"][0]["tserve"])
        await wait_all_tasks_blocked()
        services.store.open()
    assert failures[0].message == "Failed to start workers for model noop version: 1.0"
    await services.same_in_store()


async def test_the_roll_back_spares_who_took_the_place(services: Services) -> None:
    """Unregistered and registered again by others before the roll-back gets its turn: that one is not touched."""
    services.mar(handler="broken")
    failures: list[InternalServer] = []

    async def register() -> None:
        failures.append(await failed_register(services))

    async def again() -> None:
        assert await services.register(initial_workers=1) == ACCEPTED

    async with trio.open_nursery() as nursery:
        services.store.shut()
        nursery.start_soon(register)
        await services.store.reached.wait()
        services.store.open()
        await until(lambda: services.keys() == ["noop:1.0"])
        services.store.shut()
        nursery.start_soon(services.unregister)
        await services.store.reached.wait()
        nursery.start_soon(again)
        await until(lambda: "lastFailure" in services.described()["workers"][0]["tserve"])
        await wait_all_tasks_blocked()
        services.store.open()
    assert services.keys() == ["noop:1.0"]
    await services.same_in_store()


# ---- clients that hang up


async def test_a_client_that_leaves_before_the_commit_leaves_nothing(services: Services) -> None:
    """It waits for another's change here; there is nothing of its own yet but content, which goes."""
    services.mar("first.mar", name="first")
    services.store.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(services.register, "first.mar")
        await services.store.reached.wait()
        with trio.CancelScope() as client:
            async with trio.open_nursery() as calls:
                calls.start_soon(services.register)
                await until(lambda: len(services.kept()) == 2)
                client.cancel()
        services.store.open()
    assert services.keys() == ["first:1.0"]
    await services.same_in_store()


async def test_a_client_that_leaves_while_its_archive_is_read(services: Services) -> None:
    with trio.CancelScope() as client:
        async with trio.open_nursery() as calls:
            calls.start_soon(services.register)
            await until(services.in_progress)
            client.cancel()
    assert services.keys() == []
    assert services.store.changes == []
    await services.same_in_store()


@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_client_that_leaves_during_the_commit(services: Services, synchronous: bool) -> None:
    """Memory follows the store, and the workers follow memory."""
    services.store.shut()
    with trio.CancelScope() as client:
        async with trio.open_nursery() as calls:

            async def register() -> None:
                await services.register(initial_workers=1, synchronous=synchronous)

            calls.start_soon(register)
            await services.store.reached.wait()
            client.cancel()
            services.store.open()
    await until(lambda: services.statuses() == ["READY"])
    await services.same_in_store()


@pytest.mark.parametrize(("handler", "left"), [("slow_load", ["noop:1.0"]), ("slow_broken", [])])
async def test_a_client_that_leaves_while_workers_load(
    services: Services, mock_clock: MockClock, handler: str, left: list[str]
) -> None:
    """The work goes on to its end without it: the version stays, or is rolled back."""
    services.mar(handler=handler)
    with trio.CancelScope() as client:
        async with trio.open_nursery() as calls:

            async def register() -> None:
                await services.register(initial_workers=1, synchronous=True)

            calls.start_soon(register)
            await until(lambda: services.launcher.asked == 1)
            client.cancel()
    assert services.keys() == ["noop:1.0"]
    await jump(mock_clock, LOAD_S)
    await until(lambda: services.keys() == left and (services.launcher.alive == [] or services.statuses() == ["READY"]))
    await until(lambda: len(services.kept()) == len(left) and services.in_progress() == [])
    await services.same_in_store()
    with pytest.raises((Conflict, ModelNotFound, ModelVersionNotFound)):
        await (services.register() if left else services.unregister())
