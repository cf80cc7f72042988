"""Unregister and set-default (spec/management.md sections 1.7, 1.9, 4.2, 4.3), and when content is let go."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.services.stack import BATCH_S, TEST, Services, jump, running, until
from tserve.domain.actor import Actor
from tserve.domain.versions import Key
from tserve.errors import (
    DefaultVersionInUse,
    InternalServer,
    ModelNotFound,
    ModelVersionNotFound,
    ServiceUnavailable,
    TserveError,
)
from tserve.services.management import Progress, Result

GONE = Result(Progress.DONE, 'Model "noop" unregistered')
NO_DISK = InternalServer("The change could not be written.")


async def two_versions(services: Services) -> None:
    await services.register()
    services.mar("two.mar", version="2.0")
    await services.register("two.mar")


async def test_the_last_version_takes_the_model_along(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    assert await services.unregister() == GONE
    assert services.keys() == []
    assert services.launcher.alive == []
    assert services.kept() == []
    await services.same_in_store()
    with pytest.raises(ModelNotFound):
        await services.unregister()


async def test_a_version_among_others(services: Services) -> None:
    """The sentence never names it."""
    await two_versions(services)
    assert await services.unregister(version="2.0") == GONE
    assert services.keys() == ["noop:1.0"]
    await services.same_in_store()
    assert await services.unregister(version="1.0") == GONE
    assert services.keys() == []


REFUSED: list[tuple[str, str | None, type[TserveError], str]] = [
    ("fake", None, ModelNotFound, "Model not found: fake"),
    ("fake", "1.0", ModelNotFound, "Model not found: fake"),
    ("noop", "9", ModelVersionNotFound, "Model version: 9 does not exist for model: noop"),
    ("noop", "all", ModelVersionNotFound, "Model version: all does not exist for model: noop"),
    ("noop", "1.0", DefaultVersionInUse, "Cannot remove default version for model noop"),
    ("noop", None, DefaultVersionInUse, "Cannot remove default version for model noop"),
]


async def test_refusals(services: Services) -> None:
    await two_versions(services)
    for name, version, error, message in REFUSED:
        with pytest.raises(error) as refused:
            await services.unregister(name, version)
        assert refused.value.message == message
    assert services.keys() == ["noop:1.0", "noop:2.0"]
    await services.same_in_store()


async def test_the_default_is_the_one_at_the_moment_of_removal(services: Services) -> None:
    """A call that names no version waits for its turn; what was the default before does not count."""
    await two_versions(services)
    services.store.shut()
    async with trio.open_nursery() as nursery:

        async def unregister() -> None:
            with pytest.raises(DefaultVersionInUse):
                await services.unregister()

        async def set_default() -> None:
            await services.management.set_default("noop", "2.0", actor=TEST)

        nursery.start_soon(set_default)
        await services.store.reached.wait()
        nursery.start_soon(unregister)
        await wait_all_tasks_blocked()
        services.store.open()
    assert services.keys() == ["noop:1.0", "noop:2.0"]


async def test_a_store_that_fails_changes_nothing(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    services.store.fails_with = NO_DISK
    with pytest.raises(InternalServer) as failed:
        await services.unregister()
    assert failed.value is NO_DISK
    assert services.statuses() == ["READY"]
    assert (await services.predict(body=b"still")).body == b"still"
    await services.same_in_store()


async def test_it_is_forgotten_as_a_model_of_the_start(services: Services) -> None:
    await two_versions(services)
    services.management.startup_names.add("noop")
    await services.unregister(version="2.0")
    assert services.described()["loadedAtStartup"] is False


# ---- work in hand


@pytest.mark.parametrize(("limit", "answered"), [(120, True), (int(BATCH_S) + 1, True), (2, False), (0, False)])
async def test_workers_drain(tmp_path: Path, mock_clock: MockClock, limit: int, answered: bool) -> None:
    """Up to `unregister_model_timeout`; whoever is left then is told, and nobody waits for ever."""
    async with running(tmp_path, unregister_model_timeout=limit) as services:
        services.mar(handler="slow")
        await services.register(initial_workers=1, synchronous=True)
        outcomes: list[object] = []

        async def predict() -> None:
            try:
                outcomes.append((await services.predict()).body)
            except InternalServer as e:
                outcomes.append(e.message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(predict)
            await until(lambda: services.launcher.workers[0].batches)
            gone = trio.Event()

            async def unregister() -> None:
                assert await services.unregister() == GONE
                gone.set()

            nursery.start_soon(unregister)
            await until(lambda: services.keys() == [])
            await wait_all_tasks_blocked(0.05)
            assert gone.is_set() == (limit == 0)
            assert len(services.kept()) == (0 if limit == 0 else 1), "workers stand in that folder"
            with pytest.raises(ModelNotFound):
                await services.predict()
            await jump(mock_clock, 3)
            await jump(mock_clock, BATCH_S - 3)
        assert outcomes == [b"x" if answered else "Worker died."]
        await services.same_in_store()


async def test_what_waits_is_served_within_the_timeout_or_refused(tmp_path: Path, mock_clock: MockClock) -> None:
    async with running(tmp_path, unregister_model_timeout=int(BATCH_S) + 1) as services:
        services.mar(handler="slow")
        await services.register(initial_workers=1, synchronous=True)
        codes: list[int] = []

        async def predict() -> None:
            try:
                codes.append((await services.predict()).status)
            except (InternalServer, ServiceUnavailable) as e:
                codes.append(e.code)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(predict)
            await until(lambda: services.launcher.workers[0].batches)
            await until(lambda: services.described()["jobQueueStatus"]["pendingRequests"] == 2)
            nursery.start_soon(services.unregister)
            await until(lambda: services.keys() == [])
            await jump(mock_clock, BATCH_S)
            await jump(mock_clock, 1)
        assert codes == [200, 500, 503]


async def test_registered_again_while_the_old_one_drains(services: Services, mock_clock: MockClock) -> None:
    """The new one has workers of its own at once, and its content stays."""
    services.mar(handler="slow")
    await services.register(initial_workers=1, synchronous=True)
    bodies: list[bytes] = []

    async def predict(body: bytes) -> None:
        bodies.append((await services.predict(body=body)).body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(predict, b"old")
        await until(lambda: services.launcher.workers[0].batches)
        nursery.start_soon(services.unregister)
        await until(lambda: services.keys() == [])
        await services.register(initial_workers=1, synchronous=True)
        assert [worker["id"] for worker in services.described()["workers"]] == ["9001"]
        nursery.start_soon(predict, b"new")
        await until(lambda: services.launcher.workers[1].batches)
        await jump(mock_clock, BATCH_S)
    assert sorted(bodies) == [b"new", b"old"]
    assert services.statuses() == ["READY"]
    await services.same_in_store()


async def test_content_goes_with_its_last_version(services: Services) -> None:
    await services.register()
    await services.register(model_name="b")
    (digest,) = services.kept()
    await services.unregister()
    assert services.kept() == [digest]
    await services.unregister("b")
    assert services.kept() == []
    await services.same_in_store()


@pytest.mark.parametrize("moment", ["commit", "drain"])
async def test_a_client_that_leaves_does_not_stop_it(services: Services, mock_clock: MockClock, moment: str) -> None:
    services.mar(handler="slow")
    await services.register(initial_workers=1, synchronous=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(services.predict)
        await until(lambda: services.launcher.workers[0].batches)
        services.store.shut()
        with trio.CancelScope() as client:
            async with trio.open_nursery() as calls:
                calls.start_soon(services.unregister)
                await services.store.reached.wait()
                if moment == "drain":
                    services.store.open()
                    await until(lambda: services.keys() == [])
                client.cancel()
        services.store.open()
        await until(lambda: services.keys() == [])
        await jump(mock_clock, BATCH_S)
    await until(lambda: services.kept() == services.in_progress() == [])
    await services.same_in_store()


# ---- set-default


async def test_set_default(services: Services) -> None:
    await two_versions(services)
    text = 'Default version successfully updated for model "noop" to "2.0"'
    assert await services.management.set_default("noop", "2.0", actor=Actor("someone")) == Result(Progress.DONE, text)
    assert await services.management.set_default("noop", "2.0", actor=Actor("again")) == Result(Progress.DONE, text)
    assert services.store.changes[2:] == [("set_default", Key("noop", "2.0"), "someone")], "the second changes nothing"
    assert services.described()["modelVersion"] == "2.0"
    assert services.described(version="1.0")["tserve"]["default"] is False
    assert (await services.pages.page(limit=None, token=None)).models == [("noop", "two.mar")]
    await services.same_in_store()
    assert await services.unregister(version="1.0") == GONE


REFUSED_DEFAULTS: list[tuple[str, str, type[TserveError], str]] = [
    ("fake", "1.0", ModelNotFound, "Model not found: fake"),
    ("noop", "9", ModelVersionNotFound, "Model version 9 does not exist for model noop"),
    ("noop", "", ModelVersionNotFound, "Model version  does not exist for model noop"),
]


async def test_set_default_refusals(services: Services) -> None:
    """The sentence about the version has no colons here."""
    await two_versions(services)
    for name, version, error, message in REFUSED_DEFAULTS:
        with pytest.raises(error) as refused:
            await services.management.set_default(name, version, actor=TEST)
        assert refused.value.message == message


async def test_set_default_with_a_store_that_fails(services: Services) -> None:
    await two_versions(services)
    services.store.fails_with = NO_DISK
    with pytest.raises(InternalServer) as failed:
        await services.management.set_default("noop", "2.0", actor=TEST)
    assert failed.value is NO_DISK
    assert services.described()["modelVersion"] == "1.0"
    await services.same_in_store()


async def test_set_default_of_a_client_that_leaves_during_the_commit(services: Services) -> None:
    await two_versions(services)
    services.store.shut()
    with trio.CancelScope() as client:
        async with trio.open_nursery() as calls:

            async def set_default() -> None:
                await services.management.set_default("noop", "2.0", actor=TEST)

            calls.start_soon(set_default)
            await services.store.reached.wait()
            client.cancel()
            services.store.open()
    assert services.described()["modelVersion"] == "2.0"
    await services.same_in_store()


async def test_set_default_touches_no_workers(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    services.mar("two.mar", version="2.0")
    await services.register("two.mar", initial_workers=1, synchronous=True)
    await services.management.set_default("noop", "2.0", actor=TEST)
    await wait_all_tasks_blocked()
    assert services.launcher.asked == len(services.launcher.alive) == 2
    assert (services.statuses(version="1.0"), services.statuses(version="2.0")) == (["READY"], ["READY"])
