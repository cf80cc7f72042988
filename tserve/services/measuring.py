"""What the metrics need done from time to time: read the host, and write the files of `log` mode."""

from __future__ import annotations

import logging

import trio

from tserve.domain.devices import Devices
from tserve.metrics.files import MetricsFiles
from tserve.metrics.host import Host
from tserve.metrics.recorder import Metrics
from tserve.services.gauges import Gauges

FLUSH_S = 1.0
TIDY_S = 60.0
_log = logging.getLogger("tserve.services")


class Measuring:
    """`host_interval_s` None leaves the host alone, `files` None is a mode without files."""

    def __init__(
        self,
        metrics: Metrics,
        gauges: Gauges,
        devices: Devices,
        files: MetricsFiles | None,
        host_interval_s: float | None,
    ) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._devices = devices
        self._files = files
        self._host_interval_s = host_interval_s
        self._host = Host()
        self._writing = trio.CapacityLimiter(1)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled, and write then what has gathered."""
        async with trio.open_nursery() as nursery:
            if self._host_interval_s is not None:
                nursery.start_soon(self._read_host, self._host_interval_s)
            if self._files is not None:
                nursery.start_soon(self._write, self._files)
            task_status.started()
            while True:  # nobody may ever scrape
                await trio.sleep(TIDY_S)
                self._gauges.tidy()

    async def _read_host(self, interval_s: float) -> None:
        while True:
            try:
                readings = await trio.to_thread.run_sync(self._host.read, limiter=self._writing)
                self._metrics.host(readings, self._devices.readings())
            except (OSError, ValueError, LookupError) as e:
                _log.warning("the host cannot be measured: %r", e)
            await trio.sleep(interval_s)

    async def _write(self, files: MetricsFiles) -> None:
        try:
            while True:
                await trio.to_thread.run_sync(files.flush, limiter=self._writing)
                await trio.sleep(FLUSH_S)
        finally:
            with trio.CancelScope(shield=True):  # bounded by what one write to a file takes
                await trio.to_thread.run_sync(files.flush, limiter=self._writing)
