"""No worker starts for what is not trusted, whoever asks for it and whenever."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from tserve.domain.plan import Failure, WorkerSpec
from tserve.runtime.launcher import Launcher, LaunchFailed, Worker


class VettedLauncher:
    """Asks `vet` before another launcher starts a worker (tserve.runtime.launcher); what it answers is why not."""

    def __init__(self, launcher: Launcher, vet: Callable[[WorkerSpec], Awaitable[Failure | None]]) -> None:
        self._launcher = launcher
        self._vet = vet

    @contextlib.asynccontextmanager
    async def launch(self, spec: WorkerSpec, *, label: str) -> AsyncIterator[Worker]:
        """Raises LaunchFailed, too."""
        failure = await self._vet(spec)
        if failure is not None:
            raise LaunchFailed(failure)
        async with self._launcher.launch(spec, label=label) as worker:
            yield worker
