"""Workers whose model brings requirements start in an environment that has them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from tserve.domain.plan import WorkerSpec
from tserve.runtime.environments import Environments
from tserve.runtime.launcher import Launcher, Worker
from tserve.runtime.requirements import Requirements


class PreparedLauncher:
    """Has another launcher start the workers, with the interpreter of their environment (tserve.runtime.launcher).

    The environment is there since the version was registered; where it is not, it is made again first.
    """

    def __init__(self, launcher: Launcher, environments: Environments) -> None:
        self._launcher = launcher
        self._environments = environments

    @contextlib.asynccontextmanager
    async def launch(self, spec: WorkerSpec, *, label: str) -> AsyncIterator[Worker]:
        """Raises LaunchFailed, too."""
        async with contextlib.AsyncExitStack() as stack:
            if spec.requirements:
                wanted = Requirements(spec.model_dir, spec.requirements)
                python = await stack.enter_async_context(self._environments.held(wanted))
                spec = replace(spec, interpreter=python)
            yield await stack.enter_async_context(self._launcher.launch(spec, label=label))
