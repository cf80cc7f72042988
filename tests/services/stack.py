"""The services over a store in memory, fake workers and a real keep: everything but sockets, SQL and processes."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fakes import FakeLauncher, MemoryStore, Script
from tserve.archive.keep import Keep
from tserve.domain.actor import Actor
from tserve.domain.devices import USAGE_UNKNOWN, Devices, Placement
from tserve.domain.plan import PoolSpec
from tserve.domain.registry import Contents, Registry
from tserve.domain.versions import Key
from tserve.domain.wire import Input, JobReply, JobRequest
from tserve.net.timers import Timers
from tserve.runtime.launcher import Launcher
from tserve.runtime.reconcile import Reconciler
from tserve.services.describe import Describe
from tserve.services.desired import RegisterRequest, pool_spec
from tserve.services.health import Health
from tserve.services.history import History
from tserve.services.inference import Inference
from tserve.services.management import Management, Result, ScaleRequest
from tserve.services.pages import Pages
from tserve.services.ports import Store
from tserve.settings import Settings

TEST = Actor("test", "request-1")
PATIENCE_S = 20.0
LOAD_S = 5.0
BATCH_S = 5.0
CANNOT_LOAD: Mapping[str, object] = {"ok": False, "reason": "load_error", "detail": "no weights", "code": 500}
HANDLERS = {
    "ok": Script(),
    "slow_load": Script(load_s=LOAD_S),
    "slow": Script(batch_s=BATCH_S),
    "broken": Script(load_report=CANNOT_LOAD),
    "hopeless": Script(load_report={**CANNOT_LOAD, "reason": "import_error", "hopeless": True}),
    "out_of_memory": Script(load_report={**CANNOT_LOAD, "reason": "out_of_memory", "code": 507}),
    "slow_broken": Script(load_s=LOAD_S, load_report=CANNOT_LOAD),
    "dies": Script(dies_on_batch=1, exit=3),
}


def write_mar(
    store: Path,
    file: str = "noop.mar",
    *,
    name: str | None = "noop",
    version: str | None = "1.0",
    handler: str | None = "ok",
    config: str | None = None,
    runtime: str | None = "python",
    files: Mapping[str, str] | None = None,
) -> str:
    """Write an archive into the model store; its file name.

    None leaves a part of the manifest out; `files` are further entries, or take the place of these.
    """
    model = {"modelName": name, "modelVersion": version, "handler": handler}
    if config is not None:
        model["configFile"] = "model-config.yaml"
    manifest: dict[str, object] = {"model": {key: value for key, value in model.items() if value is not None}}
    if runtime is not None:
        manifest["runtime"] = runtime
    entries = {"MAR-INF/MANIFEST.json": json.dumps(manifest)}
    if config is not None:
        entries["model-config.yaml"] = config
    with zipfile.ZipFile(store / file, "w") as archive:
        for path, content in (entries | dict(files or {})).items():
            archive.writestr(path, content)
    return file


class NoGpus:
    """A machine with processors only."""

    async def detect(self) -> None:
        pass

    def count(self) -> int:
        return 0

    def usage(self, gpu_id: int) -> str:
        return USAGE_UNKNOWN

    def readings(self) -> list[tuple[str, dict[str, float]]]:
        return []


class GatedStore(MemoryStore):
    """A store whose changes wait while the gate is shut.  `reached` is set by the first that does."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = trio.Event()
        self._gate = trio.Event()
        self._gate.set()

    def shut(self) -> None:
        self.reached, self._gate = trio.Event(), trio.Event()

    def open(self) -> None:
        self._gate.set()

    async def _may_change(self) -> None:
        if not self._gate.is_set():
            self.reached.set()
            await self._gate.wait()
        await super()._may_change()


@dataclass
class Services:
    """`store` and `launcher` are the fakes unless a test brought its own."""

    settings: Settings
    store: Any
    launcher: Any
    registry: Registry
    keep: Keep
    devices: Devices = field(default_factory=NoGpus)
    reconciler: Reconciler = field(init=False)
    history: History = field(init=False)
    management: Management = field(init=False)
    describe: Describe = field(init=False)
    health: Health = field(init=False)
    pages: Pages = field(init=False)
    inference: Inference = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.store, self.registry)
        self.reconciler = Reconciler(
            self._desired,
            self.launcher,
            first_slot_number=9000,
            report=self.history.report,
            place=Placement().place,
        )
        self.management = Management(
            self.store, self.registry, self.keep, self.reconciler, self.settings, self.history, self.devices
        )
        self.timers = Timers()
        self.inference = Inference(self.registry, self.reconciler, self.timers)
        self.describe = Describe(
            self.registry, self.reconciler, self.management, self.settings, self.devices, self.inference
        )
        self.health = Health(self.registry, self.reconciler)
        offsets_only = self.settings.list_page_tokens == "offset"
        self.pages = Pages(self.store, self.registry, offsets_only=offsets_only)

    def _desired(self, key: Key) -> PoolSpec | None:
        version = self.registry.get(key)
        if version is None:
            return None
        archive = self.registry.archive(version.digest)
        model_dir = self.keep.model_dir(version.digest)
        return pool_spec(version, archive, model_dir, self.settings, gpus=self.devices.count())

    # -- calls

    def mar(self, file: str = "noop.mar", **what: Any) -> str:
        return write_mar(self.settings.model_store, file, **what)

    async def register(self, url: str = "noop.mar", **ask: Any) -> Result:
        return await self.management.register(RegisterRequest(url=url, **ask), actor=TEST)

    async def scale(self, name: str = "noop", version: str | None = None, **ask: Any) -> Result:
        return await self.management.scale(ScaleRequest(name, version, **ask), actor=TEST)

    async def unregister(self, name: str = "noop", version: str | None = None) -> Result:
        return await self.management.unregister(name, version, actor=TEST)

    async def predict(self, name: str = "noop", version: str | None = None, body: bytes = b"x") -> JobReply:
        request = JobRequest("id", {}, (Input("body", "", body),))
        return (await self.inference.predict(name, version, request)).first

    # -- what is there

    def described(self, name: str = "noop", version: str | None = None) -> Any:
        (described,) = self.describe.one(name, version)
        return described

    def statuses(self, name: str = "noop", version: str | None = None) -> list[str]:
        return [worker["status"] for worker in self.described(name, version)["workers"]]

    def keys(self) -> list[str]:
        return [str(version.key) for version in self.registry]

    def kept(self) -> list[str]:
        """Digests of the archives on the disk."""
        return sorted(path.name for path in (self.settings.state_dir / "archives").iterdir())

    def in_progress(self) -> list[str]:
        return sorted(path.name for path in (self.settings.state_dir / "incoming").iterdir())

    async def same_in_store(self) -> None:
        """Memory shows exactly what was committed, and the disk holds exactly what that stands on."""
        contents: Contents = await self.store.load()
        assert set(contents.versions) == set(self.registry)
        assert set(contents.defaults) == {version.key for version in self.registry.defaults()}
        digests = {version.digest for version in self.registry}
        assert {archive.digest for archive in contents.archives} == digests
        assert set(self.kept()) == digests
        assert self.in_progress() == []


@asynccontextmanager
async def running(
    folder: Path,
    *,
    store: Store | None = None,
    launcher: Launcher | None = None,
    devices: Devices | None = None,
    **settings: Any,
) -> AsyncIterator[Services]:
    """The services with everything that must run beside them, in a state and a store folder under `folder`."""
    model_store, state_dir = folder / "store", folder / "state"
    model_store.mkdir(exist_ok=True)
    store = store or GatedStore()
    keep = Keep(state_dir, model_store, allowed_urls=["file://.*", "http(s)?://.*"])
    registry = Registry(await store.load())
    await keep.prepare({version.digest for version in registry})
    made = Services(
        Settings(model_store=model_store, state_dir=state_dir, **settings),
        store,
        launcher or FakeLauncher(named=HANDLERS),
        registry,
        keep,
        devices or NoGpus(),
    )
    await made.pages.load()
    async with trio.open_nursery() as nursery:
        await nursery.start(made.history.run)
        await nursery.start(made.reconciler.run)
        nursery.start_soon(made.timers.run)
        await nursery.start(made.management.run)
        for version in list(registry):
            await made.reconciler.wake(version.key, drain_s=0)
        yield made
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], object]) -> None:
    """Wait for a condition that other tasks bring about; in real time, the test's clock may stand still."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "the condition does not come true"
        await trio.lowlevel.checkpoint()


async def jump(clock: MockClock, seconds: float) -> None:
    """Let time pass, once everyone waits for it."""
    await wait_all_tasks_blocked()
    clock.jump(seconds)
