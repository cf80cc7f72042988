"""The GPUs of this machine through NVML, the driver's library, by way of the package `pynvml` where it is installed.

NVML may block for as long as the driver likes, so that it is only ever called in one thread of its own.  What others
read is what was found there last.  Any module may be in the package's place: whatever it raises, there is no GPU, or no
figure of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import trio

from tserve.domain.devices import USAGE_UNKNOWN

REFRESH_S = 0.8  # with the reading itself, what is shown is at most a second old
STALE_S = 5.0  # figures of a driver that stopped answering are shown no longer than this
_log = logging.getLogger("tserve.runtime")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one GPU: percent of its time, of that spent on its memory, and MiB of its memory."""

    busy: int
    memory: int
    used_mib: int
    total_mib: int


class NvmlDevices:
    """`most` bounds their number, None does not; `visible` is CUDA_VISIBLE_DEVICES, None when it is not set."""

    def __init__(self, *, most: int | None = None, visible: str | None = None) -> None:
        self._most = most
        self._visible = visible
        self._nvml: ModuleType | None = None
        self._handles: list[Any] = []
        self._usages: list[Usage | None] = []
        self._read_at = -math.inf
        self._warned = False
        self._looked = trio.Event()
        self._looking = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)

    async def detect(self) -> None:
        """Look which GPUs there are, the first time; nothing is imported on a machine that cannot have any."""
        async with self._looking:
            if self._looked.is_set():
                return
            if self._most != 0 and self._visible != "" and _is_installed():
                self._handles = await trio.to_thread.run_sync(self._find, limiter=self._limiter)
                _log.info("GPUs to use: %d", len(self._handles))
            self._looked.set()

    def count(self) -> int:
        return len(self._handles)

    def usage(self, gpu_id: int) -> str:
        """As describe shows it (spec/management.md section 6)."""
        usage = self._fresh().get(gpu_id)
        if usage is None:
            return USAGE_UNKNOWN
        return (
            f"gpuId::{gpu_id} utilization.gpu::{usage.busy} % utilization.memory::{usage.memory} % "
            f"memory.used::{usage.used_mib} MiB"
        )

    def readings(self) -> list[tuple[str, dict[str, float]]]:
        """As the metrics show them (spec/server.md section 10.3)."""
        return [
            (
                str(number),
                {
                    "GPUUtilization": usage.busy,
                    "GPUMemoryUtilization": round(100 * usage.used_mib / max(1, usage.total_mib), 1),
                    "GPUMemoryUsed": usage.used_mib,
                },
            )
            for number, usage in self._fresh().items()
        ]

    def _fresh(self) -> dict[int, Usage]:
        """What is known of each GPU, if it is not too old."""
        if trio.current_time() - self._read_at > STALE_S:
            return {}
        return {number: usage for number, usage in enumerate(self._usages) if usage is not None}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the figures fresh until cancelled; without a GPU there is nothing to do."""
        task_status.started()
        await self._looked.wait()
        while self._handles:
            self._usages = await trio.to_thread.run_sync(self._read, limiter=self._limiter)
            self._read_at = trio.current_time()
            await trio.sleep(REFRESH_S)

    # -- in the thread

    def _find(self) -> list[Any]:
        try:
            self._nvml = nvml = importlib.import_module("pynvml")
        except Exception as e:
            _log.warning("pynvml cannot be imported, no GPU is used: %r", e)
            return []
        try:
            nvml.nvmlInit()
            handles = _visible_handles(nvml, self._visible)
        except Exception as e:
            _log.warning("NVML does not answer, no GPU is used: %r", e)
            return []
        return handles[: self._most]

    def _read(self) -> list[Usage | None]:
        return [self._usage(number, handle) for number, handle in enumerate(self._handles)]

    def _usage(self, number: int, handle: Any) -> Usage | None:
        assert self._nvml is not None
        try:
            rates = self._nvml.nvmlDeviceGetUtilizationRates(handle)
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            return Usage(rates.gpu, rates.memory, memory.used >> 20, memory.total >> 20)
        except Exception as e:
            if not self._warned:  # it is read again and again
                self._warned = True
                _log.warning("the usage of GPU %d cannot be read, now and perhaps again: %r", number, e)
            return None


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("pynvml") is not None
    except Exception as e:  # of a module that is there without a spec, for one
        _log.warning("pynvml cannot be looked for, no GPU is used: %r", e)
        return False


def _visible_handles(nvml: ModuleType, visible: str | None) -> list[Any]:
    """Handles in the order in which workers see the devices.

    CUDA reads the list up to the first entry that names no device; entries are numbers, or UUIDs that may be cut short.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    if visible is None:
        return handles
    found = []
    for entry in (part.strip() for part in visible.split(",")):
        handle = _named(nvml, handles, entry)
        if handle is None:
            break
        found.append(handle)
    return found


def _named(nvml: ModuleType, handles: list[Any], entry: str) -> Any:
    if entry.isdecimal():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if entry.startswith("MIG-"):
        try:
            return nvml.nvmlDeviceGetHandleByUUID(entry)
        except Exception:  # the driver knows none of that name
            return None
    if not entry.startswith("GPU-"):
        return None
    return next((handle for handle in handles if _uuid(nvml, handle).startswith(entry)), None)


def _uuid(nvml: ModuleType, handle: Any) -> str:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    return uuid.decode() if isinstance(uuid, bytes) else str(uuid)  # older releases give bytes
