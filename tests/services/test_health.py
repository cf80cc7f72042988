"""Health: the rule of /ping (spec/management.md section 5.5) and the state of each version."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.services.stack import HANDLERS, LOAD_S, TEST, Services, jump, until
from tserve.domain.phases import Phase
from tserve.domain.plan import Failure
from tserve.domain.versions import Key, Version
from tserve.errors import ModelNotFound, ModelVersionNotFound
from tserve.runtime.pool import PoolView
from tserve.runtime.slot import SlotView
from tserve.services.health import State, judge

READY, BUSY, STARTING, LOADING = Phase.READY, Phase.BUSY, Phase.STARTING, Phase.LOADING
BACKING_OFF, STOPPING, FAILED = Phase.BACKING_OFF, Phase.STOPPING, Phase.FAILED


def slot(number: int, phase: Phase, failure: Failure | None = None) -> SlotView:
    return SlotView(
        id=number,
        created_at=0.0,
        phase=phase,
        since_s=0.0,
        pid=-1,
        memory=0,
        restarts=number,
        failure=failure,
        next_try_in_s=None,
        gpu_id=None,
    )


@pytest.mark.parametrize(
    ("wanted", "phases", "state", "ready"),
    [
        (0, [], State.STOPPED, 0),
        (-3, [], State.STOPPED, 0),
        (0, [READY], State.STOPPED, 1),
        (1, [], State.STARTING, 0),
        (1, [STARTING], State.STARTING, 0),
        (1, [LOADING], State.STARTING, 0),
        (1, [BACKING_OFF], State.STARTING, 0),
        (1, [STOPPING], State.STARTING, 0),
        (1, [READY], State.READY, 1),
        (1, [BUSY], State.READY, 1),
        (1, [READY, FAILED], State.READY, 1),
        (1, [READY, READY], State.READY, 2),
        (2, [READY, LOADING], State.DEGRADED, 1),
        (2, [BUSY, FAILED], State.DEGRADED, 1),
        (2, [READY, BACKING_OFF], State.DEGRADED, 1),
        (2, [FAILED, FAILED], State.FAILED, 0),
        (2, [FAILED, LOADING], State.FAILED, 0),
    ],
)
def test_states(wanted: int, phases: list[Phase], state: State, ready: int) -> None:
    view = PoolView(tuple(slot(number, phase) for number, phase in enumerate(phases)))
    found = judge(Version(Key("m", "1"), "u", "d", "h", min_workers=wanted), view, is_default=True)
    assert (found.state, found.ready, found.wanted) == (state, ready, max(0, wanted))
    assert found.restarts == sum(range(len(phases)))
    assert found.lacks_nothing == (state in (State.STOPPED, State.READY))


def test_the_latest_failure_counts() -> None:
    failures = [Failure("load_error", at=2.0), Failure("crashed", at=3.0), None, Failure("died_idle", at=1.0)]
    view = PoolView(tuple(slot(number, READY, failure) for number, failure in enumerate(failures)))
    found = judge(Version(Key("m", "1"), "u", "d", "h", min_workers=1), view, is_default=True)
    assert found.failure is failures[1]


async def test_a_version_is_found_as_a_request_finds_it(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    services.mar("two.mar", version="2.0")
    await services.register("two.mar")
    found = [(each.key.version, each.is_default, each.state) for each in services.health.all()]
    assert found == [("1.0", True, State.READY), ("2.0", False, State.STOPPED)]
    assert services.health.one("noop", None) == services.health.one("noop", "1.0")
    assert services.health.one("noop", "2.0").state is State.STOPPED
    with pytest.raises(ModelNotFound):
        services.health.one("fake", None)
    with pytest.raises(ModelVersionNotFound):
        services.health.one("noop", "9")


# ---- /ping


async def test_health(services: Services, mock_clock: MockClock) -> None:
    assert services.health.healthy(), "no model at all"
    await services.register(model_name="idle")
    assert services.health.healthy(), "without workers"
    services.mar(handler="slow_load")
    await services.register(initial_workers=2)
    assert services.health.healthy(), "while it loads"
    await jump(mock_clock, LOAD_S)
    await until(lambda: services.statuses() == ["READY", "READY"])
    assert services.health.healthy()
    await services.scale(min_worker=0)
    assert services.health.healthy(), "none wanted"


async def test_health_while_a_worker_is_tried_again_and_when_it_gives_up(
    services: Services, mock_clock: MockClock
) -> None:
    services.mar(handler="broken", config="maxRetryTimeoutInSec: 3\n")
    await services.register(initial_workers=1)
    await until(lambda: "lastFailure" in services.described()["workers"][0]["tserve"])
    assert services.health.healthy()
    for _ in range(3):
        await jump(mock_clock, 2)
    await until(lambda: services.described()["workers"][0]["tserve"]["phase"] == "failed")
    assert not services.health.healthy()


async def test_only_default_versions_count(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    services.mar("two.mar", version="2.0", handler="hopeless")
    await services.register("two.mar", initial_workers=1)
    await until(lambda: services.described(version="2.0")["workers"][0]["tserve"]["phase"] == "failed")
    assert services.health.healthy()
    await services.management.set_default("noop", "2.0", actor=TEST)
    assert not services.health.healthy()
    await services.scale(min_worker=0, synchronous=True)
    assert services.health.healthy()


async def test_one_worker_fewer_than_wanted_is_unhealthy(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    services.launcher.play(HANDLERS["hopeless"])
    await services.scale(min_worker=2)
    await until(lambda: "lastFailure" in services.described()["workers"][1]["tserve"])
    assert services.statuses() == ["READY", "UNLOADING"]
    assert not services.health.healthy()
    await services.scale(min_worker=1, max_worker=2, synchronous=False)
    assert services.health.healthy(), "one is enough again"


async def test_a_version_that_fails_for_good_is_unhealthy_at_once(services: Services, mock_clock: MockClock) -> None:
    """No time passes here: the clock stands still."""
    services.mar(handler="hopeless")
    started = trio.current_time()
    await services.register(initial_workers=1)
    await until(lambda: not services.health.healthy())
    assert services.health.one("noop", None).state is State.FAILED
    assert trio.current_time() == started


async def test_workers_that_are_about_to_be_made_are_no_illness(services: Services) -> None:
    """At no moment of a registration or of a scale call is a version that loads called unhealthy."""
    unhealthy = []

    async def watch() -> None:
        while True:
            unhealthy.append(not services.health.healthy())
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await services.register(initial_workers=1)
        await services.scale(min_worker=3)
        await services.scale(min_worker=3, synchronous=True)
        nursery.cancel_scope.cancel()
    assert not any(unhealthy)
