"""What archives want installed: there before a version is registered, gone after the last one that wants it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from tserve.archive.keep import Keep
from tserve.domain.registry import Registry
from tserve.domain.versions import Archive, Version
from tserve.errors import DependenciesFailed
from tserve.runtime.environments import NO_PLACE, Environments
from tserve.runtime.launcher import LaunchFailed
from tserve.runtime.requirements import Requirements
from tserve.services.desired import requirements_of
from tserve.settings import Settings


class Dependencies:
    """The environments that the registered versions need (spec/management.md section 3.5)."""

    def __init__(self, environments: Environments, registry: Registry, keep: Keep, settings: Settings) -> None:
        self._environments = environments
        self._registry = registry
        self._keep = keep
        self._settings = settings

    @contextlib.asynccontextmanager
    async def admit(self, version: Version, archive: Archive) -> AsyncIterator[None]:
        """Have installed what a version wants that is registered in the block; a refusal leaves nothing.

        Raises Conflict before it installs anything, and DependenciesFailed.
        """
        requirements = requirements_of(archive, self._settings)
        if not requirements:
            yield
            return
        self._registry.check_free(version.key)
        wanted = Requirements(str(self._keep.model_dir(version.digest)), requirements)
        try:
            async with self._environments.held(wanted):
                yield
        except LaunchFailed as e:
            cause = e.failure.cause()
            raise DependenciesFailed(version.key.name, environment=e.failure.reason != NO_PLACE, cause=cause) from e
        finally:
            await self.release()

    async def release(self) -> None:
        """Let the environments go that no version needs any more."""
        await self._environments.release(self._needed)

    def _needed(self) -> list[Requirements]:
        """As of now: whoever goes through it waits in between, and versions come and go."""
        return [
            Requirements(str(self._keep.model_dir(version.digest)), requirements)
            for version in self._registry
            if (requirements := requirements_of(self._registry.archive(version.digest), self._settings))
        ]
