"""An asynchronous worker: the handler is a coroutine, many requests run at once (spec/inference.md section 9.3).

One thread reads the socket, the event loop runs the handlers; each frame holds one batch of its own.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - the handlers' loop, in the worker process
import copy
import inspect
import threading
import time
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
        self._ended = False
        self._runner = asyncio.Runner()
        self._runner.get_loop()  # handlers find it while they are loaded

    def load(self) -> Model:
        """Raises LoadFailed."""
        return load(self._spec, settle=self._settle)

    def _settle(self, result: Any) -> None:
        if inspect.isawaitable(result):
            self._runner.run(_wait_for(result))

    def serve(self, model: Model, frames: Iterator[Frame], restore: Callable[[], None]) -> None:
        """Answer until the frames end; `restore` is called whenever nothing is in hand."""
        with self._runner:
            self._runner.run(self._serve(model, frames, restore))

    async def _serve(self, model: Model, frames: Iterator[Frame], restore: Callable[[], None]) -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        running: dict[int, asyncio.Task[None]] = {}

        def take_in(frame: Frame) -> None:
            if frame.kind is Kind.BATCH:
                task = running[frame.id] = loop.create_task(self._answer(model, frame))
                task.add_done_callback(lambda _: done(frame.id))
            elif frame.id in running:  # nobody waits for it any more
                running[frame.id].cancel()

        def done(number: int) -> None:
            del running[number]
            if not running:
                restore()

        def read() -> None:
            for frame in frames:
                loop.call_soon_threadsafe(take_in, frame)
            loop.call_soon_threadsafe(over.set)

        threading.Thread(target=read, name="frames", daemon=True).start()
        await over.wait()
        self._ended = True

    async def _answer(self, model: Model, frame: Frame) -> None:
        """One batch with a context of its own: what the model hangs on it is shared, what is of the request is not."""

        def send_pieces(pieces: Answers) -> None:
            self._send(encode_reply(frame.id, pieces, kind=Kind.PIECE))

        context = copy.copy(model.context)
        if hasattr(context, "metrics"):
            context.metrics = copy.copy(context.metrics)
        batch = Batch(context, self._spec, decode_batch(frame), send_pieces)
        began = time.perf_counter()
        outcome = await self._outcome(model, batch, context)
        self._send(encode_reply(frame.id, outcome, took_s=time.perf_counter() - began))

    async def _outcome(self, model: Model, batch: Batch, context: Any) -> Answers | HandlerFailed:
        """As `batches.answer`; a handler that is cancelled, by itself, has failed as well."""
        try:
            outputs = model.entry(batch.rows, context)
            return batch.answers(await outputs if inspect.isawaitable(outputs) else outputs)
        except SystemExit:
            self._ended = True
            raise
        except BaseException as e:
            if self._ended:  # the loop is being cleared: nobody waits for it, or the worker's end is what to tell
                raise
            return batch.failure(e)


async def _wait_for(result: Any) -> None:
    await result
