"""Use cases of the management API: register, scale, retry, unregister, set-default.

Each one writes desired state, has the reconciler look at it, and only then answers.  Commit and apply are one
shielded step; what follows a commit belongs to this service, so that a client that hangs up cancels its wait and
nothing else (DESIGN.md section 4).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from enum import Enum

import trio

from tserve.archive.fetch.rules import without_query
from tserve.archive.integrity import no_digest
from tserve.archive.keep import Keep
from tserve.domain.actor import Actor
from tserve.domain.devices import Devices
from tserve.domain.registry import Registry
from tserve.domain.versions import Archive, Key, Version
from tserve.errors import BadRequest, InternalServer, ModelVersionNotFound, TserveError
from tserve.runtime.pool import Pool, Settled
from tserve.runtime.reconcile import Reconciler
from tserve.services.dependencies import Dependencies
from tserve.services.desired import (
    RegisterRequest,
    check_pin,
    check_runtime,
    check_workers,
    claim_of,
    cut_to_devices,
    version_of,
)
from tserve.services.history import History
from tserve.services.ports import Store
from tserve.services.registering import Registrations
from tserve.settings import Settings

_log = logging.getLogger("tserve.services")


class Progress(Enum):
    DONE = "done"
    ACCEPTED = "accepted"  # goes on without the client
    PARTLY = "partly"  # not everything asked for is there yet


@dataclass(frozen=True, slots=True)
class Result:
    """How far a command came, and the sentence that says so."""

    progress: Progress
    text: str


ACCEPTED = Result(Progress.ACCEPTED, "Processing worker updates...")
PARTLY = Result(Progress.PARTLY, "Workers scaling in progress...")


@dataclass(frozen=True, slots=True)
class ScaleRequest:
    """`timeout` in seconds: what surplus workers get for the work they have in hand, negative for no limit."""

    name: str
    version: str | None = None
    min_worker: int = 1
    max_worker: int | None = None
    synchronous: bool = False
    timeout: int = -1


class _Work:
    """Something that this service finishes whether or not its client waits."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        self.act = act
        self.done = trio.Event()
        self.error: Exception | None = None


class Management:
    """`run` must be running; the commands may then be called from any task."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        keep: Keep,
        reconciler: Reconciler,
        settings: Settings,
        history: History,
        devices: Devices,
        dependencies: Dependencies | None = None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._keep = keep
        self._reconciler = reconciler
        self._settings = settings
        self._history = history
        self._devices = devices
        self._dependencies = dependencies
        self.registrations = Registrations(keep.downloads)
        self._changing = trio.Lock()
        self._send_work, self._work = trio.open_memory_channel[_Work](math.inf)
        self.startup_names: set[str] = set()  # models that this start loaded by name

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the work that outlives its clients."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            async for work in self._work:
                nursery.start_soon(self._do, work)

    async def _do(self, work: _Work) -> None:
        try:
            await work.act()
        except Exception as e:  # handed to the client that waits, if it still does
            work.error = e
            if not isinstance(e, TserveError):
                _log.exception("a management call failed by an internal error")
        work.done.set()

    async def _see_through(self, act: Callable[[], Awaitable[None]]) -> None:
        """Have `act` done to its end and wait for it.  Cancelling the wait leaves it running."""
        work = _Work(act)
        self._send_work.send_nowait(work)
        await work.done.wait()
        if work.error is not None:
            raise work.error

    # -- commands

    async def register(self, ask: RegisterRequest, *, actor: Actor, at_startup: bool = False) -> Result:
        """Register an archive as a version (spec/management.md sections 1.4 and 3).

        Raises BadRequest, IntegrityFailed, ModelNotFound, InvalidModel, DownloadFailed, Conflict, DependenciesFailed,
        and InternalServer when the archive cannot be kept or a worker of a synchronous call cannot be started: nothing
        is left of it then.
        """
        if ask.url is None:
            raise BadRequest("Parameter url is required.", cause={"field": "url"})
        check_runtime(ask.runtime)
        with self.registrations.under_way(ask.url, ask.model_name):
            version = await self._take_in(ask, ask.url, actor, at_startup=at_startup)
        key = version.key
        if at_startup:
            self.startup_names.add(key.name)
        if version.min_workers <= 0:
            return Result(
                Progress.DONE,
                f'Model "{key.name}" Version: {key.version} registered with 0 initial workers. '
                "Use scale workers API to add workers for the model.",
            )
        pool = await self._reconciler.wake(key)
        synchronous = self._settings.default_register_synchronous if ask.synchronous is None else ask.synchronous
        if not synchronous or at_startup or pool is None:
            return ACCEPTED
        await self._see_through(lambda: self._all_up_or_roll_back(version, pool, actor))
        count = version.min_workers
        text = f'Model "{key.name}" Version: {key.version} registered with {count} initial workers'
        return Result(Progress.DONE, text)

    async def _take_in(self, ask: RegisterRequest, url: str, actor: Actor, *, at_startup: bool) -> Version:
        """The archive at `url` as a version of the registry, without its workers."""
        claim = claim_of(ask)
        await self._devices.detect()
        async with self._keep.admit(
            url,
            signed=ask.s3_sse_kms,
            claim=claim,
            referenced=self._registry.references,
            digests=self._registry.digests_from,
        ) as archive:
            gpus = self._devices.count()
            version = version_of(ask, archive, self._settings, at_startup=at_startup, gpus=gpus)
            if not check_pin(version, self._settings) and claim.sha256 is None and self._settings.digest_required:
                raise no_digest(url)
            held = self._registry.get(version.key)
            if at_startup and held is not None:
                _log_differences(held, version)
            async with self._dependencies.admit(version, archive) if self._dependencies else nullcontext():
                await self._add(version, archive, actor)
        return version

    def registered_from(self, url: str, name: str | None) -> Key | None:
        """A version that was registered from this URL, under this name if one is given."""
        found = (each.key for each in self._registry if each.url == url and name in (None, each.key.name))
        return next(found, None)

    async def _add(self, version: Version, archive: Archive, actor: Actor) -> None:
        async with self._changing:
            self._registry.check_free(version.key)
            archive = self._registry.with_signature(archive)
            with trio.CancelScope(shield=True):
                await self._store.add_version(version, archive, actor=actor)
                self._registry.add(version, archive)
        _log.info("%s registered from %s by %s", version.key, without_query(version.url), actor)

    async def _all_up_or_roll_back(self, version: Version, pool: Pool, actor: Actor) -> None:
        settled = await pool.settled(patience_s=float(max(0, version.startup_timeout)))
        if settled.ready:
            return
        key = version.key
        if not settled.gone:  # else it was unregistered, or the server stops, which is no fault of the version
            await self._roll_back(version, actor=actor.rolling_back())
        raise self._workers_failed(key.name, key.version, settled)

    @staticmethod
    def _workers_failed(name: str, version: str | None, settled: Settled) -> InternalServer:
        if settled.gone:
            cause: dict[str, object] = {"reason": "unregistered", "detail": "the version was unregistered meanwhile"}
            return InternalServer.workers_failed(name, version, cause=cause)
        if settled.failure is None:
            cause = {"reason": "not_all_up", "detail": "some workers were not up within startup_timeout"}
            return InternalServer.workers_failed(name, version, cause=cause)
        failure = settled.failure
        return InternalServer.workers_failed(name, version, code=failure.code, cause=failure.cause())

    async def scale(self, ask: ScaleRequest, *, actor: Actor) -> Result:
        """Want between `min_worker` and `max_worker` workers (spec/management.md sections 1.5 and 4.1).

        Raises BadRequest, ModelNotFound, ModelVersionNotFound, and InternalServer when a synchronous call's new
        worker cannot be started; the wanted numbers stay.
        """
        most = ask.min_worker if ask.max_worker is None else ask.max_worker
        if most < ask.min_worker:
            raise BadRequest(
                "max_worker cannot be less than min_worker.",
                cause={"field": "max_worker", "value": most, "allowed": f"{ask.min_worker} or more"},
            )
        if most < 0:
            raise BadRequest(
                f"min_worker cannot be negative: {ask.min_worker}",
                cause={"field": "min_worker", "value": ask.min_worker, "allowed": "0 or more"},
            )
        check_workers("min_worker", ask.min_worker)
        key = await self._want_workers(ask, most, actor)
        pool = await self._reconciler.wake(key, drain_s=math.inf if ask.timeout < 0 else float(ask.timeout))
        if not ask.synchronous:
            return ACCEPTED
        if not await self._all_up(key, pool, ask.name, ask.version):
            return PARTLY
        text = f"Workers scaled to {ask.min_worker} for model: {ask.name}"
        return Result(Progress.DONE, text if ask.version is None else f"{text}, version: {ask.version}")

    async def _want_workers(self, ask: ScaleRequest, most: int, actor: Actor) -> Key:
        async with self._changing:
            version = self._registry.find(ask.name, ask.version)
            archive, gpus = self._registry.archive(version.digest), self._devices.count()
            fewest, most = cut_to_devices(version.key.name, archive, (ask.min_worker, most), gpus)
            wanted = replace(version, min_workers=fewest, max_workers=most)
            if wanted != version:
                with trio.CancelScope(shield=True):
                    await self._store.replace_version(wanted, actor=actor)
                    self._registry.replace(wanted)
        return version.key

    async def _all_up(self, key: Key, pool: Pool | None, name: str, asked_version: str | None) -> bool:
        """Wait until what is wanted is there; False when some of it is not.  Raises InternalServer when none can be."""
        version = self._registry.get(key)
        if pool is None:  # no worker is wanted, unless somebody unregistered the version meanwhile
            settled = Settled(ready=version is not None, gone=version is None)
        else:
            patience_s = float(max(0, version.startup_timeout)) if version is not None else 0.0
            settled = await pool.settled(patience_s=patience_s)
        if settled.failure is not None or settled.gone:
            raise self._workers_failed(name, asked_version, settled)
        return settled.ready

    async def retry(self, name: str, version: str | None, *, synchronous: bool, actor: Actor) -> Result:
        """Start the workers of a version that gave up or that wait for their next try again, now.

        Desired state stays as it is.  Raises ModelNotFound, ModelVersionNotFound, and InternalServer when a worker of
        a synchronous call cannot be started.
        """
        found = self._registry.find(name, version)
        shown = f'model "{name}"' if version is None else f'model "{name}" version: {version}'
        if found.min_workers <= 0:
            text = f"No workers are wanted for {shown}: nothing to start. Use scale workers API to add workers."
            return Result(Progress.DONE, text)
        self._history.note(found.key, "retry", actor)
        _log.info("%s: workers started again by %s", found.key, actor)
        pool = await self._reconciler.wake(found.key, impatient=True)
        if not synchronous:
            return ACCEPTED
        if not await self._all_up(found.key, pool, name, version):
            return PARTLY
        return Result(Progress.DONE, f"Workers of {shown} are up")

    async def unregister(self, name: str, version: str | None, *, actor: Actor) -> Result:
        """Remove a version; its workers drain for up to `unregister_model_timeout` (DESIGN.md section 11).

        Raises ModelNotFound, ModelVersionNotFound, DefaultVersionInUse.
        """
        drain_s = float(max(0, self._settings.unregister_model_timeout))
        await self._see_through(lambda: self._remove(name, version, actor=actor, drain_s=drain_s))
        return Result(Progress.DONE, f'Model "{name}" unregistered')

    async def _remove(self, name: str, version: str | None, *, actor: Actor, drain_s: float) -> None:
        async with self._changing:
            found = self._registry.find(name, version)
            self._registry.check_removable(found.key)
            await self._forget(found, actor)
        await self._end(found, drain_s)

    async def _roll_back(self, version: Version, *, actor: Actor) -> None:
        """Take a registration back, unless it is gone by now or someone else's wish: scaled, or registered anew."""
        async with self._changing:
            if self._registry.get(version.key) is not version:
                return
            await self._hand_on_default(version.key, actor)
            await self._forget(version, actor)
        await self._end(version, 0)

    async def _forget(self, version: Version, actor: Actor) -> None:
        with trio.CancelScope(shield=True):
            await self._store.remove_version(version.key, actor=actor)
            self._registry.remove(version.key)
        self.startup_names.discard(version.key.name)
        _log.info("%s unregistered by %s", version.key, actor)

    async def _end(self, version: Version, drain_s: float) -> None:
        """Wait for the end of the workers of a version that is registered no more, then let its archive go."""
        pool = await self._reconciler.wake(version.key, drain_s=drain_s)
        if pool is not None:
            await pool.gone.wait()
        await self._keep.release(version.digest, referenced=self._registry.references)
        await self._keep.forget(version.url, digests=self._registry.digests_from)
        if self._dependencies is not None:
            await self._dependencies.release()

    async def _hand_on_default(self, key: Key, actor: Actor) -> None:
        """Another version came while this one failed to start: it must not be kept from leaving as the default."""
        others = [version.key for version in self._registry.all_of(key.name) if version.key != key]
        if others and self._registry.is_default(key):
            with trio.CancelScope(shield=True):
                await self._store.set_default(others[0], actor=actor)
                self._registry.set_default(others[0])

    async def set_default(self, name: str, version: str, *, actor: Actor) -> Result:
        """Make a version the one used when a request names none.  Raises ModelNotFound, ModelVersionNotFound."""
        async with self._changing:
            try:
                key = self._registry.find(name, version).key
            except ModelVersionNotFound:
                raise ModelVersionNotFound.for_default(name, version) from None
            if not self._registry.is_default(key):
                with trio.CancelScope(shield=True):
                    await self._store.set_default(key, actor=actor)
                    self._registry.set_default(key)
        return Result(Progress.DONE, f'Default version successfully updated for model "{name}" to "{version}"')


def _log_differences(held: Version, named: Version) -> None:
    """A version that is started with other values than it was registered with keeps those: say which."""
    for field in fields(Version):
        before, now = getattr(held, field.name), getattr(named, field.name)
        if before != now:
            _log.warning("%s keeps %s %s; this start names %s", held.key, field.name, before, now)
