"""`timed` and MicroBatching (spec/inference.md sections 9.3, 13 and 15)."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ts.context import Context, RequestProcessor
from ts.handler_utils.micro_batching import MicroBatching
from ts.handler_utils.timer import timed

WAIT_S = 10.0
PROFILE = {"handler": {"profile": True}}


class Sink:
    """What a handler emitted."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def add_time(self, name: str, value: float, idx: int | None = None, unit: str = "ms") -> None:
        assert unit == "ms"
        self.times[name] = value


def context_of(yaml: Any, headers: dict[str, Any] | None = None) -> Context:
    context = Context("m", "folder", None, 1, None, "0.12.0", metrics=Sink(), model_yaml_config=yaml)
    context.request_processor = [RequestProcessor(headers or {})]
    return context


class Steps:
    context: Any = None

    @timed
    def preprocess(self, data: Any, *, factor: int = 1) -> Any:
        """Doubles."""
        if data is None:
            raise LookupError("no data")
        return data * factor

    @timed
    async def fetch(self, data: Any) -> Any:
        await asyncio.sleep(0.02)
        return data


def test_profile_in_the_yaml_emits_the_time_of_each_step() -> None:
    steps = Steps()
    steps.context = context_of(PROFILE)
    assert steps.preprocess(3, factor=2) == 6
    assert asyncio.run(steps.fetch("x")) == "x"
    times = steps.context.metrics.times
    assert times.keys() == {"ts_handler_preprocess", "ts_handler_fetch"}
    assert 0 <= times["ts_handler_preprocess"] < 1000
    assert 19 <= times["ts_handler_fetch"] < 5000


@pytest.mark.parametrize(
    "yaml", [None, {}, {"handler": None}, {"handler": "x"}, {"handler": {"profile": False}}, {"profile": True}, [1]]
)
def test_without_profile_nothing_is_emitted(yaml: Any) -> None:
    steps = Steps()
    steps.context = context_of(yaml)
    assert steps.preprocess(3) == 3
    assert steps.context.metrics.times == {}


def test_timed_needs_neither_context_nor_metrics() -> None:
    steps = Steps()
    assert steps.preprocess(3) == 3
    steps.context = Context("m", "folder", None, 1, None, "0.12.0", model_yaml_config=PROFILE)
    assert steps.preprocess(3) == 3

    class Bare:
        step = timed(lambda self: "done")

    assert Bare().step() == "done"
    assert timed(lambda: "alone")() == "alone"


def test_timed_keeps_name_signature_and_errors() -> None:
    steps = Steps()
    steps.context = context_of(PROFILE)
    assert (Steps.preprocess.__name__, Steps.preprocess.__doc__) == ("preprocess", "Doubles.")
    assert list(inspect.signature(steps.preprocess).parameters) == ["data", "factor"]
    assert inspect.iscoroutinefunction(steps.fetch)
    with pytest.raises(LookupError, match="no data"):
        steps.preprocess(None)
    assert steps.context.metrics.times == {}


class Handler:
    """+1, then *10, then text; it notes which rows came to each step, where and in which thread."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[Any], int | None, str]] = []
        self.handle = MicroBatching(self)
        self.before: Callable[[str, list[Any]], None] = lambda step, rows: None

    def _note(self, step: str, rows: list[Any]) -> None:
        self.seen.append((step, list(rows), self.handle.get_micro_batch_idx(), threading.current_thread().name))
        self.before(step, rows)

    def preprocess(self, data: list[int]) -> list[int]:
        self._note("preprocess", data)
        return [row + 1 for row in data]

    def inference(self, data: list[int]) -> list[int]:
        self._note("inference", data)
        return [row * 10 for row in data]

    def postprocess(self, data: list[int]) -> list[str]:
        self._note("postprocess", data)
        return [str(row) for row in data]


def threads_of(step: str = "") -> int:
    return sum(thread.name.startswith(f"micro-{step}") for thread in threading.enumerate())


@pytest.fixture
def handler() -> Iterator[Handler]:
    made = Handler()
    yield made
    made.before = lambda step, rows: None
    made.handle.shutdown()
    assert threads_of() == 0


def expected(rows: range) -> list[str]:
    return [str((row + 1) * 10) for row in rows]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("parallelism", [None, {"preprocess": 3, "inference": 2, "postprocess": 3}])
def test_answers_come_in_the_order_of_the_rows(handler: Handler, size: int, parallelism: dict[str, int] | None) -> None:
    """Although a later micro batch is done before an earlier one."""
    handler.handle.micro_batch_size = size
    handler.handle.parallelism = parallelism  # type: ignore[assignment]
    handler.before = lambda step, rows: time.sleep(0.005) if rows[0] == 0 else None
    assert handler.handle.handle(list(range(8))) == expected(range(8))
    inputs = [rows for step, rows, _, _ in handler.seen if step == "preprocess"]
    assert sorted(inputs) == [list(range(start, min(start + size, 8))) for start in range(0, 8, size)]


def test_each_step_runs_in_its_own_threads_and_knows_its_micro_batch(handler: Handler) -> None:
    handler.handle.micro_batch_size = 2
    handler.handle(list(range(6)), None)
    indexes = {(step, index) for step, _, index, _ in handler.seen}
    assert indexes == {(step, n) for step in ("preprocess", "inference", "postprocess") for n in range(3)}
    assert all(thread == f"micro-{step}" for step, _, _, thread in handler.seen)
    assert handler.handle.get_micro_batch_idx() is None


def test_steps_overlap(handler: Handler) -> None:
    """The second micro batch is prepared while the first one is in inference."""
    prepared_second = threading.Event()

    def before(step: str, rows: list[int]) -> None:
        if step == "preprocess" and rows == [1]:
            prepared_second.set()
        if step == "inference" and rows == [1]:  # of the first row, which preprocess made of 0
            assert prepared_second.wait(WAIT_S)

    handler.before = before
    assert handler.handle.handle([0, 1]) == expected(range(2))


def test_parallelism_is_the_number_of_threads_of_a_step(handler: Handler) -> None:
    """Two inferences wait for each other: with one thread they never meet."""
    together = threading.Barrier(2)
    handler.before = lambda step, rows: together.wait(WAIT_S) and None if step == "inference" else None
    handler.handle.parallelism = {"inference": 2}
    assert handler.handle.parallelism == {"preprocess": 1, "inference": 2, "postprocess": 1}
    assert handler.handle.handle([0, 1]) == expected(range(2))


def test_parallelism_can_change_between_batches(handler: Handler) -> None:
    handler.handle.handle([0])
    assert [threads_of(step) for step in ("preprocess", "inference", "postprocess")] == [1, 1, 1]
    handler.handle.parallelism = {"preprocess": 4, "postprocess": 2}
    assert [threads_of(step) for step in ("preprocess", "inference", "postprocess")] == [4, 1, 2]
    handler.handle.parallelism = {"preprocess": 2}
    assert handler.handle.handle(list(range(20))) == expected(range(20))
    deadline = time.monotonic() + WAIT_S
    while threads_of("preprocess") + threads_of("postprocess") > 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [threads_of(step) for step in ("preprocess", "inference", "postprocess")] == [2, 1, 1]
    handler.handle.parallelism = {"preprocess": 3}
    assert threads_of("preprocess") == 3


@pytest.mark.parametrize("step", ["preprocess", "inference", "postprocess"])
@pytest.mark.parametrize("error", [LookupError("this row"), SystemExit(3)])
def test_an_error_of_a_step_is_the_callers_and_the_next_batch_is_well(
    handler: Handler, step: str, error: BaseException
) -> None:
    def fail(at: str, rows: list[int]) -> None:
        if at == step and len(handler.seen) > 4:
            raise error

    handler.before = fail
    with pytest.raises(type(error)) as caught:
        handler.handle.handle(list(range(20)))
    assert caught.value is error
    handler.before = lambda step, rows: None
    assert handler.handle.handle([5]) == expected(range(5, 6))


def test_a_failed_batch_leaves_nothing_at_work(handler: Handler) -> None:
    """Else its rows would meet the context of the next batch."""
    entered, go_on = threading.Event(), threading.Event()

    def before(step: str, rows: list[int]) -> None:
        if step == "inference" and rows == [1]:
            entered.set()
            assert go_on.wait(WAIT_S)
        if step == "preprocess" and rows == [2]:
            assert entered.wait(WAIT_S)
            threading.Timer(0.05, go_on.set).start()
            raise LookupError

    handler.before = before
    with pytest.raises(LookupError):
        handler.handle.handle([0, 1, 2, 3])
    assert go_on.is_set()
    assert ("preprocess", [3]) not in [(step, rows) for step, rows, _, _ in handler.seen]


def test_no_rows_no_answers(handler: Handler) -> None:
    assert handler.handle.handle([]) == []


def test_shutdown_ends_the_threads_and_refuses_more(handler: Handler) -> None:
    handler.handle.parallelism = {"preprocess": 3}
    handler.handle.handle([0, 1])
    assert threads_of() == 5
    handler.handle.shutdown()
    handler.handle.shutdown()
    assert threads_of() == 0
    with pytest.raises(RuntimeError, match="shut down"):
        handler.handle.handle([0])


def test_threads_start_with_the_first_batch() -> None:
    MicroBatching(object(), 4, {"inference": 5})
    assert threads_of() == 0


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", None])
def test_a_micro_batch_has_at_least_one_row(handler: Handler, size: Any) -> None:
    handler.handle.micro_batch_size = size
    with pytest.raises(ValueError, match="micro_batch_size must be a whole number from 1 on"):
        handler.handle.handle([1])


def test_parallelism_is_checked_and_other_keys_are_told(handler: Handler, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="parallelism of inference must be a whole number"):
        handler.handle.parallelism = {"inference": 0}
    handler.handle.parallelism = {"inference": 2, "describe": 3}
    assert handler.handle.parallelism == {"preprocess": 1, "inference": 2, "postprocess": 1}
    assert "parallelism of 'describe' has no effect" in caplog.text


def test_the_call_sets_the_context_and_emits_handler_time(handler: Handler) -> None:
    context = context_of(None)
    assert handler.handle([0, 1], context) == expected(range(2))
    assert handler.context is context  # type: ignore[attr-defined]
    assert 0 <= context.metrics.times["HandlerTime"] < 5000


def test_describe_and_explain_are_those_of_the_handler() -> None:
    from ts.torch_handler.base_handler import BaseHandler

    class Explains(BaseHandler):
        def __init__(self) -> None:
            super().__init__()
            self.handle = MicroBatching(self, micro_batch_size=2)  # type: ignore[method-assign]

        def describe_handle(self) -> Any:
            return {"knows": "all"}

        def preprocess(self, data: Any) -> Any:
            return len(data)

        def get_insights(self, prepared: Any, raw: Any, target: Any) -> Any:
            return [prepared, raw, target]

    explains = Explains()
    assert explains.handle([{}], context_of(None, {"describe": "True"})) == [{"knows": "all"}]
    rows = [{"data": "x", "target": 4}, {"data": "y"}]
    assert explains.handle(rows, context_of(None, {"explain": "True"})) == [2, "x", 4]
    assert threads_of() == 0
