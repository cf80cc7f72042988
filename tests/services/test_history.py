"""History: events on their way to the store and back, and the retry that leaves one."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import MemoryStore, Script
from tests.services.stack import CANNOT_LOAD, HANDLERS, LOAD_S, TEST, Services, jump, until
from tserve.domain.actor import Actor
from tserve.domain.events import Happening, WorkerEvent
from tserve.domain.history import LIFE_S, Event, PastEvent
from tserve.domain.registry import Registry
from tserve.domain.versions import Key
from tserve.errors import InternalServer, ModelNotFound, ModelVersionNotFound
from tserve.services.history import MOST_WAITING, PAGE_BYTES, PRUNED_EVERY_S, TAIL_BYTES, TEXT_BYTES, History
from tserve.services.management import ACCEPTED, Progress, Result

KEY = Key("m", "1.0")


def died(at: float = 1.0, key: Key = KEY, log_tail: str = "", **detail: object) -> WorkerEvent:
    return WorkerEvent(at, key, 9000, 4711, Happening.DIED, detail, log_tail)


async def past(store: MemoryStore, name: str = "m") -> list[PastEvent]:
    return await store.events(name, None, before=None, limit=10_000)


async def kinds(services: Services, name: str = "noop") -> list[str]:
    await wait_all_tasks_blocked()
    return [event.event.kind for event in (await past(services.store, name))[::-1]]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def history(store: MemoryStore) -> History:
    return History(store, Registry())


# ---- in


async def test_what_is_reported_is_kept(history: History, store: MemoryStore, nursery: trio.Nursery) -> None:
    await nursery.start(history.run)
    history.report(died(2.5, log_tail="last words", reason="crashed", next_try_s=0.0))
    history.note(KEY, "retry", TEST)
    await wait_all_tasks_blocked()
    asked, death = (event.event for event in await past(store))
    expected = {"reason": "crashed", "next_try_s": 0.0}
    assert death == Event(2.5, "worker_died", KEY, 9000, 4711, detail=expected, log_tail="last words")
    assert (asked.kind, asked.key, asked.actor, asked.worker) == ("retry", KEY, TEST, None)


async def test_what_was_reported_before_the_end_is_kept(history: History, store: MemoryStore) -> None:
    """The machine has ended when the history is cancelled."""
    async with trio.open_nursery() as nursery:
        await nursery.start(history.run)
        nursery.cancel_scope.cancel()
        history.report(died())
    assert len(await past(store)) == 1


async def test_what_is_being_written_at_the_end_is_kept(history: History, store: MemoryStore) -> None:
    class Slow(MemoryStore):
        async def add_events(self, new: object) -> None:
            begun.set()
            await may_write.wait()
            await super().add_events(new)  # type: ignore[arg-type]

    begun, may_write, store = trio.Event(), trio.Event(), Slow()
    history = History(store, Registry())
    async with trio.open_nursery() as nursery:
        await nursery.start(history.run)
        history.report(died(1.0))
        await begun.wait()
        history.report(died(2.0))
        nursery.cancel_scope.cancel()
        may_write.set()
    assert [event.event.at for event in await past(store)] == [2.0, 1.0]


async def test_of_too_many_the_oldest_are_lost(
    history: History, store: MemoryStore, caplog: pytest.LogCaptureFixture, nursery: trio.Nursery
) -> None:
    for number in range(MOST_WAITING + 7):
        history.report(died(float(number), Key("m", str(number % 2))))
    await nursery.start(history.run)
    await wait_all_tasks_blocked()
    kept = await past(store)
    assert (kept[0].event.at, kept[-1].event.at, len(kept)) == (MOST_WAITING + 6.0, 7.0, MOST_WAITING)
    assert [record.getMessage()[:9] for record in caplog.records] == ["7 events "]


async def test_a_store_that_fails_costs_the_events_only(
    history: History, store: MemoryStore, caplog: pytest.LogCaptureFixture, nursery: trio.Nursery
) -> None:
    store.loses_events_with = InternalServer("The change could not be stored.", cause={"reason": "disk_full"})
    await nursery.start(history.run)
    history.report(died())
    await wait_all_tasks_blocked()
    assert ["disk_full" in record.getMessage() for record in caplog.records] == [True, True], "pruned, then added"
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    store.loses_events_with = None
    history.report(died(2.0))
    await wait_all_tasks_blocked()
    assert [event.event.at for event in await past(store)] == [2.0]


async def test_old_events_go_while_nothing_happens(
    store: MemoryStore, history: History, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    await nursery.start(history.run)
    history.report(died(now))
    await jump(mock_clock, PRUNED_EVERY_S + 1)
    await wait_all_tasks_blocked()
    assert len(await past(store)) == 1
    now += LIFE_S + 1
    await jump(mock_clock, PRUNED_EVERY_S + 1)
    await wait_all_tasks_blocked()
    assert await past(store) == []


async def test_what_is_told_is_bounded(history: History, store: MemoryStore, nursery: trio.Nursery) -> None:
    """The end of a text stays; what JSON cannot hold becomes text; nothing that cannot be encoded comes through."""
    await nursery.start(history.run)
    long, wide = "a" * TEXT_BYTES + "end", "\u20ac" * TAIL_BYTES + "end"
    history.report(
        died(log_tail=wide, detail=long, deep={"x": {"y": long}, 1: 2}, odd=math.inf, path=Path("p"), n=None)
    )
    history.report(died(log_tail="\ud800 \n", detail="\ud800", flag=True, next_try_s=0.5))
    await wait_all_tasks_blocked()
    second, first = (event.event for event in await past(store))
    cut = long[-TEXT_BYTES:]
    assert first.detail == {"detail": cut, "deep": {"x": {"y": cut}, "1": 2}, "odd": "inf", "path": "p", "n": None}
    assert first.log_tail.endswith("\u20acend")
    assert TAIL_BYTES - 3 <= len(first.log_tail.encode()) <= TAIL_BYTES
    assert (second.log_tail, second.detail) == ("? \n", {"detail": "?", "flag": True, "next_try_s": 0.5})


# ---- out


async def test_pages(history: History, store: MemoryStore) -> None:
    await store.add_events([Event(float(number), "x", Key("m", str(number % 2))) for number in range(5)])

    async def page(limit: int, before: int | None = None, version: str | None = None) -> tuple[list[float], int | None]:
        found = await history.page("m", version, limit=limit, before=before)
        return [event.event.at for event in found.events], found.next_before

    assert await page(2) == ([4.0, 3.0], 4)
    assert await page(2, before=4) == ([2.0, 1.0], 2)
    assert await page(2, before=2) == ([0.0], None)
    assert await page(5) == ([4.0, 3.0, 2.0, 1.0, 0.0], None)
    assert await page(2, version="0") == ([4.0, 2.0], 3)
    assert await page(2, before=1) == ([], None)


async def test_a_page_ends_early_where_events_are_large(history: History, store: MemoryStore) -> None:
    """No event is left out, and none told twice, by those who follow the pages."""
    large = PAGE_BYTES // 3
    sizes = [10, large, large, 4 * large, 10, large, large, large, 10]
    await store.add_events(
        [
            Event(float(n), "x", KEY, log_tail="a" * (size // 2), detail={"detail": "b" * (size // 2)})
            for n, size in enumerate(sizes)
        ]
    )
    pages, before = [], None
    while not pages or before is not None:
        page = await history.page("m", None, limit=100, before=before)
        pages.append([int(past.event.at) for past in page.events])
        before = page.next_before
    assert pages == [[8, 7, 6], [5, 4], [3], [2, 1, 0]]


async def test_what_is_neither_registered_nor_told_of_is_not_found(services: Services) -> None:
    async def count(name: str, version: str | None = None) -> int:
        return len((await services.history.page(name, version, limit=9, before=None)).events)

    with pytest.raises(ModelNotFound):
        await count("noop")
    await services.register()
    assert (await count("noop"), await count("noop", "1.0")) == (1, 1)
    with pytest.raises(ModelVersionNotFound):
        await count("noop", "2.0")
    await services.unregister()
    assert await count("noop", "1.0") == 2, "the history of what is gone stays"
    with pytest.raises(ModelNotFound):
        await count("noop", "2.0")


async def test_a_registered_model_may_have_no_history(services: Services) -> None:
    await services.register()
    await services.store.prune_events(now=4e9)
    assert (await services.history.page("noop", "1.0", limit=9, before=None)).events == []


async def test_who_changed_what(services: Services) -> None:
    """Each call of the management API, with its address, its request and what was before and after."""
    services.mar("two.mar", version="2.0")
    await services.register()
    await services.register("two.mar")
    await services.scale(min_worker=1, synchronous=True)
    await services.scale(min_worker=1)
    await services.management.set_default("noop", "2.0", actor=Actor("10.0.0.9", "request-9"))
    await services.unregister(version="1.0")
    told = [
        (event.event.kind, event.event.key.version, event.event.actor, event.before, event.after)
        for event in (await past(services.store, "noop"))[::-1]
        if event.event.actor is not None
    ]
    document = {"url": "noop.mar", "min_workers": 0}
    assert [line[:3] for line in told] == [
        ("register", "1.0", TEST),
        ("register", "2.0", TEST),
        ("scale", "1.0", TEST),
        ("set_default", "2.0", Actor("10.0.0.9", "request-9")),
        ("unregister", "1.0", TEST),
    ]
    assert told[0][3] is None
    assert document.items() <= told[0][4].items()
    assert told[2][3:] == ({"min_workers": 0, "max_workers": 0}, {"min_workers": 1, "max_workers": 1})
    assert told[3][3:] == ({"default_version": "1.0"}, {"default_version": "2.0"})
    assert (told[4][3]["url"], told[4][4]) == ("noop.mar", None)


async def test_a_roll_back_is_told(services: Services) -> None:
    services.mar(handler="broken")
    with pytest.raises(InternalServer):
        await services.register(initial_workers=1, synchronous=True)
    gone, came = (event.event for event in await past(services.store, "noop") if event.event.actor is not None)
    assert (came.kind, came.actor) == ("register", TEST)
    assert (gone.kind, gone.actor) == ("unregister", Actor("test (roll-back)", TEST.request_id))


# ---- retry


async def retry(services: Services, version: str | None = None, *, synchronous: bool = True) -> Result:
    return await services.management.retry("noop", version, synchronous=synchronous, actor=TEST)


async def fail_to_start(services: Services) -> None:
    """One worker wanted, which gave up."""
    services.mar(handler="hopeless")
    await services.register(initial_workers=1)
    await until(lambda: phase(services) == "failed")


def phase(services: Services) -> str:
    return str(services.described()["workers"][0]["tserve"]["phase"])


async def test_retry_starts_what_gave_up(services: Services) -> None:
    await fail_to_start(services)
    services.launcher.play(Script())
    assert await retry(services) == Result(Progress.DONE, 'Workers of model "noop" are up')
    assert services.statuses() == ["READY"]
    assert await retry(services, "1.0") == Result(Progress.DONE, 'Workers of model "noop" version: 1.0 are up')
    assert len(services.launcher.alive) == 1, "what is up stays as it is"
    assert [kind for kind in await kinds(services) if not kind.startswith("worker_")] == ["register", "retry", "retry"]
    asked = next(event for event in await past(services.store, "noop") if event.event.kind == "retry")
    assert (asked.event.key, asked.event.actor, asked.before) == (Key("noop", "1.0"), TEST, None)
    await services.same_in_store()


async def test_retry_does_not_wait_for_the_next_try(services: Services) -> None:
    """The clock stands still."""
    services.mar(handler="broken")
    await services.register(initial_workers=1)
    await until(lambda: phase(services) == "backing off")
    services.launcher.play(Script())
    assert (await retry(services)).progress is Progress.DONE
    assert services.statuses() == ["READY"]


async def test_retry_answers_before_it_is_done(services: Services) -> None:
    await fail_to_start(services)
    services.launcher.play(HANDLERS["slow_load"])
    assert await retry(services, synchronous=False) == ACCEPTED
    await until(lambda: phase(services) == "loading")


async def test_a_retry_that_fails_says_why(services: Services) -> None:
    await fail_to_start(services)
    with pytest.raises(InternalServer, match="Failed to start workers for model noop version: null") as raised:
        await retry(services)
    assert (raised.value.cause["reason"], raised.value.cause["detail"]) == ("import_error", CANNOT_LOAD["detail"])
    assert services.keys() == ["noop:1.0"], "it stays registered"


async def test_a_retry_of_what_is_not_wanted(services: Services) -> None:
    await services.register()
    done = await retry(services, "1.0")
    assert done.progress is Progress.DONE
    assert done.text.startswith('No workers are wanted for model "noop" version: 1.0: nothing to start.')
    assert (await kinds(services), services.launcher.workers) == (["register"], [])


async def test_a_retry_of_what_is_not_there(services: Services) -> None:
    with pytest.raises(ModelNotFound):
        await retry(services)
    await services.register()
    with pytest.raises(ModelVersionNotFound):
        await retry(services, "2.0")
    assert "retry" not in await kinds(services)


async def test_a_retry_works_while_the_disk_is_full(services: Services) -> None:
    await fail_to_start(services)
    services.launcher.play(Script())
    services.store.fails_with = services.store.loses_events_with = InternalServer("no")
    assert (await retry(services)).progress is Progress.DONE


async def test_a_retry_waits_for_workers_that_load(services: Services, mock_clock: MockClock) -> None:
    services.mar(handler="slow_load")
    await services.register(initial_workers=1)
    results: list[Result] = []

    async def wait() -> None:
        results.append(await retry(services))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await jump(mock_clock, LOAD_S / 2)
        await wait_all_tasks_blocked()
        assert results == []
        await jump(mock_clock, LOAD_S)
    assert [result.progress for result in results] == [Progress.DONE]
