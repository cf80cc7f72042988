"""The seam to worker processes: start one for a version, exchange frames with it, end it.

Kept narrow, so that a zygote, another interpreter or another machine can stand behind it (DESIGN.md section 12).
tests/process/launcher_contract.py holds every launcher, the fake one too, to these promises.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from tserve.domain.plan import Failure, WorkerSpec
from tserve.domain.wire import Frame


class WorkerGone(Exception):
    """The worker hung up or died."""


class LaunchFailed(Exception):
    """No worker can be started, for a reason that is known."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.summary)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: `code` as a shell shows it, 128 + n for signal n.

    `out_of_memory` says of a SIGKILL whether it was the kernel's, None where it does not tell; `unkillable` that the
    process is still there, since the kernel does not let it end.
    """

    code: int
    out_of_memory: bool | None = field(default=None, compare=False)
    unkillable: bool = field(default=False, compare=False)

    @property
    def killed(self) -> bool:
        """By SIGKILL, as the kernel does when memory runs out, or as good as."""
        return self.code == 128 + signal.SIGKILL

    def __str__(self) -> str:
        if self.code > 128:
            try:
                return f"signal {signal.Signals(self.code - 128).name}"
            except ValueError:
                pass
        return f"exit code {self.code}"


class Worker(Protocol):
    """A running worker.  One task sends and receives; the rest may be called from any.

    `exited` is set when the process has ended, `ailing` when it will answer no more: it ended, hung up, or sent what
    is no frame or what nobody asked for.  `on_frame` is called with each frame before `receive` gives it, as soon as
    it comes if that can be; a WireError that it raises comes out of `receive`.
    """

    pid: int
    on_frame: Callable[[Frame], None] | None
    exited: trio.Event
    ailing: trio.Event

    async def send(self, frame: Frame) -> None:
        """Raises WorkerGone."""
        ...

    async def receive(self) -> Frame:
        """The next frame; what the worker sent before it died still comes.  Raises WorkerGone, WireError."""
        ...

    def hang_up(self) -> None:
        """Ask the worker to leave."""
        ...

    def kill(self) -> None:
        """End the worker and all of its process group now."""
        ...

    def abort(self) -> None:
        """End the worker in a way that has it print where it stands."""
        ...

    async def wait(self) -> Exit:
        """Wait for the end of the process."""
        ...

    def tail(self) -> str:
        """The last output, at most 64 KiB."""
        ...

    def memory(self) -> int:
        """Resident bytes; 0 when unknown."""
        ...

    async def processes(self, *, most: int) -> int:
        """The worker and what it started, counted no further than just past `most`."""
        ...


class Launcher(Protocol):
    def launch(self, spec: WorkerSpec, *, label: str) -> AbstractAsyncContextManager[Worker]:
        """A new worker, not yet loaded; leaving the block ends its whole process group, whatever happens.

        `label` names it in the log.  Raises OSError when no process can be started, and LaunchFailed.
        """
        ...
