"""Whether what is registered may run by the configuration of today: a restart may have brought another one."""

from __future__ import annotations

from pathlib import Path

import trio

from tserve.archive.integrity import Integrity
from tserve.domain.plan import Failure, WorkerSpec
from tserve.domain.registry import Registry
from tserve.domain.versions import Version
from tserve.errors import IntegrityFailed
from tserve.services.desired import check_pin
from tserve.settings import Settings


class Vetting:
    """Digests that `models` names are compared, signatures checked with the keys that are trusted now."""

    def __init__(self, registry: Registry, settings: Settings, integrity: Integrity) -> None:
        self._registry = registry
        self._settings = settings
        self._integrity = integrity
        self._limiter = trio.CapacityLimiter(1)

    async def vet(self, spec: WorkerSpec) -> Failure | None:
        """Why no worker of this may start; None when it may."""
        version = self._version(spec)
        if version is None:
            return None  # unregistered meanwhile: its pool ends
        try:
            check_pin(version, self._settings)
            if self._integrity.signature_required:
                archive = self._registry.archive(version.digest)
                await trio.to_thread.run_sync(
                    self._integrity.check_signature, version.url, archive, limiter=self._limiter
                )
        except IntegrityFailed as error:
            detail = f"{error.message}: {error.cause['detail']}"
            return Failure(str(error.cause["reason"]), detail, hopeless=True)
        return None

    def _version(self, spec: WorkerSpec) -> Version | None:
        """The version is the archive's own word, so that a name and a digest stand for one."""
        digest = Path(spec.model_dir).name
        found = (each for each in self._registry if (each.key.name, each.digest) == (spec.model_name, digest))
        return next(found, None)
