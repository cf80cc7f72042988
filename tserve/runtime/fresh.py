"""Workers in fresh interpreters: slow to start, but able to have a Python, packages and an environment of their own.

They are spawned from the main thread: with a parent-death signal, a child of a pooled thread dies when that thread
does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path

from tserve.domain.plan import WorkerSpec
from tserve.runtime.family import Family
from tserve.runtime.worker import ProcessWorker, living, wires

ROOT = str(Path(__file__).resolve().parents[2])
# First for these two packages, which an environment's requirements may bring in another edition; last for all others:
# nothing else in their parent folder may hide what is installed.  -P keeps the working folder, a model's, out of the
# path until the worker puts it there itself.
_BOOT = (
    "import sys, pathlib; sys.path.insert(0, sys.argv.pop(1)); import tserve, ts; sys.path.append(sys.path.pop(0)); "
    "from tserve.child.{0} import main; main(sys.argv[1:])"
)


def environ_without(hidden: Collection[str]) -> dict[str, str]:
    """This process's environment less these variables."""
    return {name: value for name, value in os.environ.items() if name not in hidden}


def spawn(
    module: str,
    arguments: Sequence[str],
    *,
    output: int,
    given: Sequence[int] = (),
    interpreter: str | None,
    session: bool,
    environ: Mapping[str, str] | None = None,
) -> tuple[int, int]:
    """Run `main` of a module of tserve.child: its pid and pidfd, which is also how it is to be reaped.

    The process leads its own group, with `session` its own session too.  `given` are descriptors that it inherits;
    `environ` is this process's own unless given.  Raises OSError and leaves nothing.
    """
    process = subprocess.Popen(
        [interpreter or sys.executable, "-P", "-c", _BOOT.format(module), ROOT, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=given,
        env=environ,
        start_new_session=session,
        process_group=None if session else 0,
    )
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
    process.returncode = 0  # this object is not asked again: whoever has the pidfd reaps
    return process.pid, pidfd


class FreshLauncher:
    """Starts every worker in a fresh interpreter (tserve.runtime.launcher.Launcher)."""

    def __init__(self, family: Family) -> None:
        self._family = family

    @contextlib.asynccontextmanager
    async def launch(self, spec: WorkerSpec, *, label: str) -> AsyncIterator[ProcessWorker]:
        with wires() as ends:
            given = ends.theirs.fileno()
            pid, pidfd = spawn(
                "main",
                [str(given), str(os.getpid())],
                output=ends.write_end,
                given=[given],
                interpreter=spec.interpreter,
                session=True,
                environ=environ_without(spec.hidden_env),
            )
        self._family.add(pid)
        worker = ProcessWorker(pid, pidfd, ends, spec, label=label, family=self._family)
        async with living(worker, self._family.poller):
            yield worker
