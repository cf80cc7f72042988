"""What is: descriptions of versions, answered from memory.

Keys and their order are the contract's (spec/management.md section 6); what tserve knows beyond them stands in a
`tserve` member behind the others, per version and per worker (DESIGN.md section 9).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Final

from tserve.domain.devices import USAGE_OF_CPU, Devices, usable
from tserve.domain.model_config import ModelConfig
from tserve.domain.phases import LOADED
from tserve.domain.plan import FULL_TAIL
from tserve.domain.registry import Registry
from tserve.domain.times import shown_time
from tserve.domain.versions import Version, key_of
from tserve.domain.wire import JobReply, JobRequest
from tserve.errors import ModelNotFound
from tserve.runtime.pool import PoolView
from tserve.runtime.reconcile import Reconciler
from tserve.runtime.slot import SlotView
from tserve.services.desired import queue_size
from tserve.services.health import judge
from tserve.services.inference import Inference
from tserve.services.management import Management
from tserve.settings import Settings

EVERY_VERSION: Final = "all"  # asks for every version, so that one of this name cannot be described alone
TAILS: Final = 1 << 20  # characters of output that the slots of a version show together
LEAST_TAIL: Final = 4 << 10  # of one slot all the same
_NO_CONFIG = ModelConfig()


@dataclass(frozen=True, slots=True)
class Description:
    """Versions as the contract shows them; `reply` is what the handler answered, if it was asked."""

    versions: list[dict[str, object]]
    reply: JobReply | None = None


class Describe:
    def __init__(
        self,
        registry: Registry,
        reconciler: Reconciler,
        management: Management,
        settings: Settings,
        devices: Devices,
        inference: Inference,
    ) -> None:
        self._registry = registry
        self._reconciler = reconciler
        self._management = management
        self._settings = settings
        self._devices = devices
        self._inference = inference

    async def ask(self, name: str, version: str | None, *, customized: JobRequest | None = None) -> Description:
        """What a describe call shows; `customized` is what the handler of one version is asked besides.

        Raises ModelNotFound, ModelVersionNotFound, and what Inference.describe does.  The first says so when the model
        is being registered.
        """
        try:
            return await self._ask(name, version, customized)
        except ModelNotFound as error:
            if registering := self._management.registrations.shown(name):
                error.cause |= {"reason": "registering", "registering": registering}
            raise

    async def _ask(self, name: str, version: str | None, customized: JobRequest | None) -> Description:
        if version == EVERY_VERSION:
            return Description(self.all(name))
        if customized is None:
            return Description(self.one(name, version))
        reply = await self._inference.describe(name, version, customized)
        return Description(self.one(name, version, said=reply.body), reply)

    def one(self, name: str, version: str | None, *, said: bytes = b"") -> list[dict[str, object]]:
        """The version asked for, the default one when none is; `said` is what its handler says of itself, as JSON.

        Raises ModelNotFound, ModelVersionNotFound.
        """
        described = self._describe(self._registry.find(name, version))
        if said:
            beyond = described.pop("tserve")
            described |= {"customizedMetadata": _metadata(said), "tserve": beyond}
        return [described]

    def all(self, name: str) -> list[dict[str, object]]:
        """Every version, oldest registration first (the recorded order is a hash's).  Raises ModelNotFound."""
        return [self._describe(version) for version in self._registry.all_of(name)]

    def _describe(self, version: Version) -> dict[str, object]:
        archive = self._registry.archive(version.digest)
        config = archive.config or _NO_CONFIG
        pool = self._reconciler.pool(version.key)
        view = pool.view() if pool is not None else PoolView(capacity=queue_size(archive, self._settings))
        devices = usable(config, self._devices.count())
        sequences = config.sequence_max_idle_ms > 0
        tail = _tail(len(view.slots))
        described: dict[str, object] = {
            "modelName": version.key.name,
            "modelVersion": version.key.version,
            "modelUrl": version.url,
            "engine": "Torch",
            "runtime": version.runtime,
            "minWorkers": version.min_workers,
            "maxWorkers": version.max_workers,
            "batchSize": version.batch_size,
            "maxBatchDelay": version.max_batch_delay,
            "responseTimeout": version.response_timeout,
            "startupTimeout": version.startup_timeout,
            "maxRetryTimeoutInSec": config.max_retry_timeout_s,
            "clientTimeoutInMills": config.client_timeout_ms,
            "parallelType": config.parallel_type,
            "parallelLevel": config.parallel_level,
            "deviceType": devices.kind,
            **({} if devices.ids is None else {"deviceIds": list(devices.ids)}),
            "continuousBatching": config.continuous_batching,
            "useJobTicket": config.use_job_ticket,
            "useVenv": config.use_venv and version.runtime == "python",
            "stateful": config.sequence_batching,
            "sequenceMaxIdleMSec": config.sequence_max_idle_ms if sequences else 0,
            "sequenceTimeoutMSec": config.sequence_timeout_ms if sequences else 0,
            "maxNumSequence": config.max_num_sequence if sequences else 0,
            "maxSequenceJobQueueSize": config.max_sequence_job_queue_size if sequences else 0,
            "loadedAtStartup": version.key.name in self._management.startup_names,
            "workers": [self._worker(slot, tail) for slot in view.slots],
            "jobQueueStatus": {
                "remainingCapacity": max(0, view.capacity - view.pending),
                "pendingRequests": view.pending,
            },
            "tserve": self._beyond(version, view),
        }
        return described

    def _beyond(self, version: Version, view: PoolView) -> dict[str, object]:
        signature = self._registry.archive(version.digest).signature
        health = judge(version, view, is_default=self._registry.is_default(version.key))
        registering = self._management.registrations.shown(version.key.name)
        return {
            "digest": f"sha256:{version.digest}",
            **({} if signature is None else {"signedBy": key_of(signature)}),
            "handler": version.handler,
            "default": health.is_default,
            "state": health.state.value,
            "ready": health.ready,
            "wanted": health.wanted,
            "restarts": health.restarts,
            **({"registering": registering} if registering else {}),
        }

    def _worker(self, slot: SlotView, tail: int) -> dict[str, object]:
        usage = USAGE_OF_CPU if slot.gpu_id is None else self._devices.usage(slot.gpu_id)
        return {
            "id": str(slot.id),
            "startTime": shown_time(slot.created_at),
            "status": "READY" if slot.phase in LOADED else "UNLOADING",
            "memoryUsage": slot.memory,
            "pid": slot.pid,
            "gpu": slot.gpu_id is not None,
            "gpuUsage": usage,
            "tserve": _worker_detail(slot, tail),
        }


def _metadata(said: bytes) -> object:
    """The JSON object that a handler answered; empty for anything else (section 6.1)."""
    try:
        metadata = json.loads(said)
    except (ValueError, RecursionError):
        return {}
    return _without_nulls(metadata) if isinstance(metadata, dict) else {}


def _without_nulls(value: object) -> object:
    """Members that are null are left out, at any depth, as recorded."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _tail(slots: int) -> int:
    """Characters of output that each of so many slots shows: all of it, unless they are many."""
    return min(FULL_TAIL, max(LEAST_TAIL, TAILS // max(1, slots)))


def _worker_detail(slot: SlotView, tail: int) -> dict[str, object]:
    detail: dict[str, object] = {
        "phase": slot.phase.value,
        "phaseSeconds": round(slot.since_s, 3),
        "since": shown_time(time.time() - slot.since_s),
        "restarts": slot.restarts,
    }
    if slot.gpu_id is not None:
        detail["gpuId"] = slot.gpu_id
    if slot.next_try_in_s is not None:
        detail["nextTrySeconds"] = round(max(0.0, slot.next_try_in_s), 3)
    if slot.failure is not None:
        detail["lastFailure"] = {**slot.failure.cause(tail=tail), "at": shown_time(slot.failure.at)}
    return detail
