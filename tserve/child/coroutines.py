"""An asynchronous worker: the handler is a coroutine, many requests run at once (spec/inference.md section 9.3).

One thread reads the socket, the event loop runs the handlers; each frame holds one batch of its own.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - the handlers' loop, in the worker process
import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tserve.child.batches import Batch
from tserve.child.loader import Model, load
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import Answers, Frame, HandlerFailed, Kind, decode_batch, encode_reply

SendFrame = Callable[[Frame], None]


class Coroutines:
    """The event loop of a worker, which its handler is loaded and runs in."""

    def __init__(self, spec: WorkerSpec, send: SendFrame) -> None:
        self._spec, self._send = spec, send
        self._runner = asyncio.Runner()
        self._runner.get_loop()  # handlers find it while they are loaded

    def load(self) -> Model:
        """Raises LoadFailed."""
        return load(self._spec, settle=self._settle)

    def _settle(self, result: Any) -> None:
        if inspect.isawaitable(result):
            self._runner.run(_wait_for(result))

    def serve(self, model: Model, frames: Iterator[Frame]) -> None:
        """Answer until the frames end."""
        with self._runner:
            self._runner.run(self._serve(model, frames))

    async def _serve(self, model: Model, frames: Iterator[Frame]) -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        running: set[asyncio.Task[None]] = set()

        def begin(frame: Frame) -> None:
            task = loop.create_task(_answer(model, self._spec, frame, self._send))
            running.add(task)
            task.add_done_callback(running.discard)

        def read() -> None:
            for frame in frames:
                loop.call_soon_threadsafe(begin, frame)
            loop.call_soon_threadsafe(over.set)

        threading.Thread(target=read, name="frames", daemon=True).start()
        await over.wait()


async def _wait_for(result: Any) -> None:
    await result


async def _answer(model: Model, spec: WorkerSpec, frame: Frame, send: SendFrame) -> None:
    """One batch with a context of its own: what the model hangs on it is shared, what is of the request is not."""
    context = copy.copy(model.context)
    if hasattr(context, "metrics"):
        context.metrics = copy.copy(context.metrics)
    batch = Batch(
        context, spec, decode_batch(frame), lambda pieces: send(encode_reply(frame.id, pieces, kind=Kind.PIECE))
    )
    send(encode_reply(frame.id, await _outcome(model, batch, context)))


async def _outcome(model: Model, batch: Batch, context: Any) -> Answers | HandlerFailed:
    try:
        outputs = model.entry(batch.rows, context)
        if inspect.isawaitable(outputs):
            outputs = await outputs
    except Exception as e:
        return batch.failure(e)
    return batch.answers(outputs)
