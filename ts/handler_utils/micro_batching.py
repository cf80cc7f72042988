"""MicroBatching: one batch in smaller ones, whose steps overlap (spec/inference.md sections 9.3 and 15)."""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from ts.torch_handler._requests import UnreadableRows, answer_the_readable

logger = logging.getLogger(__name__)

_STEPS = ("preprocess", "inference", "postprocess")


class MicroBatching:
    """Takes the place of a handler's `handle`: `self.handle = MicroBatching(self)` in its `__init__`.

    Each step of the handler has threads of its own, `parallelism[step]` of them (1 unless said otherwise), started with
    the first batch.  `micro_batch_size` and `parallelism` may be set at any time.
    """

    def __init__(
        self, parent_handler: Any, micro_batch_size: int = 1, parallelism: Mapping[str, int] | None = None
    ) -> None:
        """Raises ValueError as setting `parallelism` does."""
        self.parent_handler = parent_handler
        self.micro_batch_size = micro_batch_size
        self._local = threading.local()
        self._lock = threading.Lock()
        self._is_shut_down = False
        self._stages = [_Stage(step) for step in _STEPS]
        self._parallelism = _checked(parallelism)

    @property
    def parallelism(self) -> dict[str, int]:
        """The number of threads of each step; a copy, to be set as a whole."""
        return dict(self._parallelism)

    @parallelism.setter
    def parallelism(self, parallelism: Mapping[str, int] | None) -> None:
        """Raises ValueError for less than one thread.  Steps left out have one; what is no step counts for nothing."""
        checked = _checked(parallelism)
        with self._lock:
            self._parallelism = checked
            if any(stage.threads for stage in self._stages):
                self._adjust()

    def __call__(self, data: Any, context: Any) -> Any:
        """Answer one batch as BaseHandler.handle does: describe, explain or predict, as its first request asks."""
        started = time.perf_counter()
        parent = self.parent_handler
        parent.context = context
        if _asks(parent, "_is_describe"):
            output: Any = [parent.describe_handle()]
        else:
            output = self._answers(data, context)
        metrics = getattr(context, "metrics", None)
        if metrics is not None:
            metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return output

    def _answers(self, data: Any, context: Any) -> Any:
        """Requests that a step finds nothing to read in are answered 400 and do not fail the others."""
        parent = self.parent_handler
        try:
            if _asks(parent, "_is_explain"):
                return parent.explain_handle(parent.preprocess(data), data)
            return self.handle(data)
        except UnreadableRows as error:
            return answer_the_readable(self._answers, data, context, error)

    def handle(self, data: Sequence[Any]) -> list[Any]:
        """The answers to the rows of a batch, in their order.

        Raises what the first failing step raises, once nothing of the batch is at work any more; rows that an
        UnreadableRows names are those of the batch.  ValueError for a micro batch size below 1, RuntimeError after
        `shutdown`.
        """
        size = _whole(self.micro_batch_size, "micro_batch_size")
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("This MicroBatching is shut down.")
            self._adjust()
        chunks = [data[start : start + size] for start in range(0, len(data), size)]
        batch = _Batch(len(chunks))
        for index, rows in enumerate(chunks):
            self._stages[0].waiting.put(_Chunk(batch, index, rows, index * size))
        return list(batch.results())

    def get_micro_batch_idx(self) -> int | None:
        """Which micro batch of its batch the calling step has in hand; None outside of a step."""
        return getattr(self._local, "index", None)

    def shutdown(self) -> None:
        """End the threads, after what waits for them; returns once they have ended."""
        with self._lock:
            self._is_shut_down = True
            for stage in self._stages:  # in the order of the steps: nothing follows what has passed the last thread
                for _ in stage.threads:
                    stage.waiting.put(None)
                for thread in stage.threads:
                    thread.join()
                stage.threads.clear()

    def _adjust(self) -> None:
        """As many threads as `parallelism` says; a thread too many ends at the next thing it takes."""
        for stage in self._stages:
            wanted = self._parallelism[stage.step]
            stage.threads = [thread for thread in stage.threads if thread.is_alive()]
            for _ in range(stage.size - wanted):
                stage.waiting.put(None)
            for _ in range(wanted - stage.size):
                thread = threading.Thread(target=self._run, args=(stage,), name=f"micro-{stage.step}", daemon=True)
                stage.threads.append(thread)
                thread.start()
            stage.size = wanted

    def _run(self, stage: _Stage) -> None:
        following = self._stages[self._stages.index(stage) + 1 :]
        while (chunk := stage.waiting.get()) is not None:
            batch = chunk.batch
            if not batch.failed:
                self._local.index = chunk.index
                try:
                    chunk.rows = getattr(self.parent_handler, stage.step)(chunk.rows)
                except UnreadableRows as error:
                    reasons = {chunk.start + row: reason for row, reason in error.reasons.items()}
                    batch.fail(UnreadableRows(reasons).with_traceback(error.__traceback__))
                except BaseException as error:  # SystemExit too: it is the caller who ends by it
                    batch.fail(error)
            if following and not batch.failed:
                following[0].waiting.put(chunk)
            else:
                batch.finish(chunk)
            del chunk, batch  # a large result must not outlive its batch here


class _Stage:
    """One step: what waits for it, and its threads; `size` is how many of them are to stay."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.waiting: SimpleQueue[_Chunk | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.size = 0


class _Chunk:
    """A micro batch on its way: its rows, from row `start` of the batch on, then what the steps made of them."""

    def __init__(self, batch: _Batch, index: int, rows: Any, start: int) -> None:
        self.batch = batch
        self.index = index
        self.rows = rows
        self.start = start


class _Batch:
    """What has come back of one batch."""

    def __init__(self, size: int) -> None:
        self._parts: list[Any] = [()] * size
        self._under_way = size
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        return self._error is not None

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error

    def finish(self, chunk: _Chunk) -> None:
        with self._changed:
            self._parts[chunk.index] = chunk.rows
            self._under_way -= 1
            self._changed.notify_all()

    def results(self) -> Iterator[Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0)
        if self._error is not None:
            raise self._error
        for part in self._parts:
            yield from part


def _asks(handler: Any, question: str) -> bool:
    """A handler that is no BaseHandler may not know of the question."""
    ask = getattr(handler, question, None)
    return bool(ask and ask())


def _checked(parallelism: Mapping[str, int] | None) -> dict[str, int]:
    given = dict(parallelism or {})
    for name in given.keys() - set(_STEPS):
        logger.warning("parallelism of %r has no effect: the steps are %s", name, ", ".join(_STEPS))
    return {step: _whole(given.get(step, 1), f"parallelism of {step}") for step in _STEPS}


def _whole(number: Any, name: str) -> int:
    """A number as somebody's yaml has it.  Raises ValueError."""
    try:
        whole = operator.index(number)
    except TypeError:
        whole = 0
    if whole < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, not {number!r}.")
    return whole
