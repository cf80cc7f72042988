"""What a worker died of: waits for its end, so that its last words are there, and reads its exit and its output."""

from __future__ import annotations

from dataclasses import replace

import trio

from tserve.domain.plan import Failure
from tserve.domain.stack import innermost
from tserve.runtime.launcher import Exit, Worker

EXIT_GRACE_S = 1.0  # a worker that hung up, or could not load, is given this to end with the exit code it meant
ABORT_GRACE_S = 0.3  # a worker that does not answer is given this to print where it stands


async def of_death(
    worker: Worker,
    suspected: Failure,
    *,
    model_dir: str,
    verdict: Failure | None = None,
    grace_s: float = EXIT_GRACE_S,
) -> Failure:
    """What ended a worker that is as good as dead: `suspected`, unless its exit or the server's own `verdict` knows
    better.  `grace_s` is what it gets to end by itself."""
    by_itself, end = await last_words(worker, grace_s=grace_s)
    failure = verdict or suspected
    if by_itself and end.killed and verdict is None:
        # Who cannot know whether the kernel did it takes it for that, as the recorded server does.
        failure = (
            Failure("killed", "somebody sent it SIGKILL")
            if end.out_of_memory is False
            else Failure("out_of_memory_kill", "killed by the kernel when memory ran out", code=507)
        )
    words = str(end) if by_itself or verdict is not None else "did not end by itself"
    return replace(failure, exit=words, log_tail=worker.tail(), file=innermost(worker.tail(), model_dir))


async def of_silence(worker: Worker, reason: str, detail: str, *, model_dir: str) -> Failure:
    """End a worker that is late; what it prints on the way out says where it stands."""
    worker.abort()
    await last_words(worker, grace_s=ABORT_GRACE_S)
    return Failure(reason, detail, log_tail=worker.tail(), file=innermost(worker.tail(), model_dir))


async def last_words(worker: Worker, *, grace_s: float = EXIT_GRACE_S) -> tuple[bool, Exit]:
    """Wait for the end of a worker, so that all of its output is there: whether it came by itself, and how."""
    with trio.CancelScope(shield=True):
        with trio.move_on_after(grace_s):
            await worker.exited.wait()
        by_itself = worker.exited.is_set()
        worker.kill()
        end = await worker.wait()
    return by_itself, end
