"""Which slots to start and stop, and when to try again (spec/management.md sections 4.1 and 5.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tserve.domain.phases import Phase
from tserve.domain.plan import (
    MOST_WORKERS,
    Action,
    Failure,
    FailureRun,
    GiveUp,
    Observed,
    PoolSpec,
    Retry,
    Start,
    Stop,
    WorkerSpec,
    after_failure,
    plan,
)
from tserve.domain.versions import Key


def spec(fewest: int, most: int) -> PoolSpec:
    return PoolSpec(Key("m", "1"), WorkerSpec("m", "dir", "h.py", 1), fewest, most)


def up(*numbers: int) -> list[Observed]:
    return [Observed(number, Phase.READY) for number in numbers]


def gone(*numbers: int) -> list[Observed]:
    return [Observed(number, Phase.DRAINING, stopping=True) for number in numbers]


def failed(*numbers: int) -> list[Observed]:
    return [Observed(number, Phase.FAILED) for number in numbers]


@pytest.mark.parametrize(
    ("desired", "slots", "actions"),
    [
        # fewer than min: the difference is started
        (spec(2, 2), [], [Start(), Start()]),
        (spec(3, 3), up(1), [Start(), Start()]),
        (spec(1, 5), [], [Start()]),
        # between: nothing
        (spec(1, 1), up(1), []),
        (spec(1, 3), up(1, 2), []),
        (spec(1, 3), up(1, 2, 3), []),
        # more than max: newest first
        (spec(1, 1), up(1, 2, 3), [Stop(3), Stop(2)]),
        (spec(1, 2), up(4, 7, 5), [Stop(5)]),
        # max below min counts as min
        (spec(2, 1), up(1), [Start()]),
        (spec(2, 1), up(1, 2, 3), [Stop(3)]),
        # min 0 means none, whatever max says
        (spec(0, 0), up(1), [Stop(1)]),
        (spec(0, 2), up(1, 2), [Stop(2), Stop(1)]),
        (spec(0, 2), [], []),
        # a negative min never starts, max still bounds
        (spec(-1, 2), [], []),
        (spec(-1, 2), up(1, 2, 3), [Stop(3)]),
        (spec(-1, 0), up(1), [Stop(1)]),
        (spec(-1, -1), up(1, 2), [Stop(2), Stop(1)]),
        (spec(2, -1), up(1, 2, 3), [Stop(3)]),
        # not registered any more
        (None, up(1, 2), [Stop(2), Stop(1)]),
        (None, [], []),
        # slots on their way out count as gone, and are not told twice
        (spec(1, 1), gone(1), [Start()]),
        (spec(1, 1), gone(1) + up(2), []),
        (spec(2, 2), up(1) + gone(2), [Start()]),
        (spec(0, 0), gone(1, 2), []),
        (None, gone(1) + up(2), [Stop(2)]),
        # any phase but stopping occupies its place
        (spec(2, 2), [Observed(1, Phase.BACKING_OFF), Observed(2, Phase.STARTING)], []),
        (spec(1, 1), failed(1), []),
    ],
)
def test_table(desired: PoolSpec | None, slots: list[Observed], actions: list[Action]) -> None:
    assert plan(desired, slots, asked=False) == actions


@pytest.mark.parametrize(
    ("desired", "slots", "actions"),
    [
        (spec(1, 1), failed(1), [Retry(1)]),
        (spec(3, 3), failed(1) + up(2), [Retry(1), Start()]),
        (spec(1, 3), up(1) + failed(2, 3), [Retry(2), Retry(3)]),
        # surplus is stopped, not retried
        (spec(1, 1), up(1) + failed(2), [Stop(2)]),
        (spec(0, 1), failed(1), [Stop(1)]),
        (None, failed(1), [Stop(1)]),
        (spec(1, 1), [Observed(1, Phase.FAILED, stopping=True)], [Start()]),
        (spec(1, 1), [Observed(1, Phase.BACKING_OFF)], []),
    ],
)
def test_only_a_wish_retries_what_gave_up(
    desired: PoolSpec | None, slots: list[Observed], actions: list[Action]
) -> None:
    assert plan(desired, slots, asked=True) == actions
    assert plan(desired, slots, asked=False) == [action for action in actions if not isinstance(action, Retry)]


slots_seen = st.lists(st.tuples(st.sampled_from(Phase), st.booleans()), max_size=8).map(
    lambda found: [Observed(number, phase, stopping) for number, (phase, stopping) in enumerate(found)]
)


@given(st.none() | st.builds(spec, st.integers(-3, 6), st.integers(-3, 6)), slots_seen, st.booleans())
def test_the_plan_leads_to_what_is_wanted(desired: PoolSpec | None, slots: list[Observed], asked: bool) -> None:
    after = carry_out(plan(desired, slots, asked=asked), slots)
    living = [slot for slot in after if not slot.stopping]
    assert len(living) in (desired.wanted if desired is not None else range(1))
    assert plan(desired, after, asked=False) == []
    assert not (asked and any(slot.phase is Phase.FAILED for slot in living))
    survivors = [slot.slot for slot in living if slot.slot < len(slots)]
    before = [slot.slot for slot in slots if not slot.stopping]
    assert survivors == before[: len(survivors)], "the oldest stay"


def carry_out(actions: list[Action], slots: list[Observed]) -> list[Observed]:
    """Refuses orders that make no sense: to stop or retry what is not there, or twice."""
    after = {slot.slot: slot for slot in slots}
    for action in actions:
        match action:
            case Start():
                after[len(after)] = Observed(len(after), Phase.STARTING)
            case Stop(slot=number):
                assert not after[number].stopping
                after[number] = Observed(number, after[number].phase, stopping=True)
            case Retry(slot=number):
                assert after[number].phase is Phase.FAILED
                assert not after[number].stopping
                after[number] = Observed(number, Phase.STARTING)
    return list(after.values())


# -- failures

DIED = Failure("crashed")


def delays(count: int, *, was_loaded: bool, every_s: float = 0.0, window_s: float = 1e9) -> list[float | GiveUp]:
    """What follows each of `count` failures in a row."""
    run, verdicts = FailureRun(), []
    for number in range(count):
        # Only the first one can say that a worker had been loaded well; the others fail in whatever way.
        run, verdict = after_failure(
            run,
            DIED,
            was_loaded=was_loaded if number == 0 else number % 2 == 0,
            now=number * every_s,
            window_s=window_s,
        )
        verdicts.append(verdict)
    return verdicts


def test_after_a_loaded_worker_the_first_restart_is_immediate() -> None:
    assert delays(8, was_loaded=True) == [0, 1, 1, 2, 3, 5, 8, 13]


def test_a_worker_that_never_loaded_waits_at_once() -> None:
    assert delays(8, was_loaded=False) == [1, 1, 2, 3, 5, 8, 13, 21]


def test_the_last_delay_repeats() -> None:
    assert delays(20, was_loaded=False)[14:] == [610, 987, 1597, 1597, 1597, 1597]
    assert delays(20, was_loaded=True)[-4:] == [987, 1597, 1597, 1597]


def test_the_window_counts_from_the_first_failure() -> None:
    verdicts = delays(5, was_loaded=False, every_s=4.0, window_s=12.0)
    assert verdicts[:3] == [1, 1, 2]
    assert verdicts[3] == GiveUp("still failing 12 s after the first failure (limit 12 s)")
    assert isinstance(verdicts[4], GiveUp)


def test_just_inside_the_window_is_tried_again() -> None:
    run = FailureRun(count=1, since=100.0)
    assert after_failure(run, DIED, was_loaded=False, now=111.9, window_s=12.0)[1] == 1
    assert isinstance(after_failure(run, DIED, was_loaded=False, now=112.0, window_s=12.0)[1], GiveUp)


def test_without_a_window_there_is_one_retry() -> None:
    first, second = delays(2, was_loaded=False, window_s=0.0)
    assert first == 1
    assert isinstance(second, GiveUp)


@pytest.mark.parametrize("was_loaded", [True, False])
def test_what_cannot_heal_is_given_up_at_once(was_loaded: bool) -> None:
    run, verdict = after_failure(
        FailureRun(), Failure("import_error", hopeless=True), was_loaded=was_loaded, now=5.0, window_s=300.0
    )
    assert verdict == GiveUp("trying again cannot help")
    assert run == FailureRun(1, 5.0, was_loaded)


def test_the_run_counts_and_keeps_its_beginning() -> None:
    run, _ = after_failure(FailureRun(), DIED, was_loaded=True, now=3.0, window_s=300.0)
    run, _ = after_failure(run, DIED, was_loaded=False, now=9.0, window_s=300.0)
    assert run == FailureRun(2, 3.0, was_loaded=True)


def test_a_cause_leaves_out_what_is_empty() -> None:
    assert Failure("crashed").cause() == {"reason": "crashed"}
    full = Failure("crashed", "d", 507, "exit code 3", "tail", hopeless=True)
    assert full.cause() == {"reason": "crashed", "detail": "d", "exit": "exit code 3", "log_tail": "tail"}


@pytest.mark.parametrize(("fewest", "most"), [(2**31 - 1, 2**31 - 1), (MOST_WORKERS + 1, 2**31 - 1), (-5, 2**31 - 1)])
def test_no_number_that_is_stored_can_ask_for_more_than_a_host_can_bear(fewest: int, most: int) -> None:
    wanted = spec(fewest, most).wanted
    assert len(plan(spec(fewest, most), [], asked=True)) == wanted[0] <= MOST_WORKERS == wanted[-1]
