"""What happens, as metrics.  Called from the server's own loop only, on the way of requests: so each event costs a few
dictionary accesses, and text is made only for `log` mode.

The contract's metrics are those of the catalogue (spec/server.md section 10.3); tserve's own begin with `tserve_` and
are shown in every mode.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

from tserve.metrics.catalogue import DEFAULT, HOSTNAME, Catalogue
from tserve.metrics.emitted import Emitted
from tserve.metrics.exposition import is_asked_for
from tserve.metrics.families import Family, Labels
from tserve.metrics.files import MetricsFiles
from tserve.metrics.own import OwnFamilies, live_families, usage

Mode = Literal["log", "prometheus", "legacy"]
LEGACY = ("ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds")
_CLASSES = {2: "Requests2XX", 4: "Requests4XX"}
_DEFAULT_VERSION = "default"  # label of requests that name none

Where = tuple[str, str]  # a model's name and version, which are labels, too
Live = Callable[[], Iterable[tuple[str, Labels, float]]]  # name of a gauge, its labels, its value


def _nothing() -> Iterable[tuple[str, Labels, float]]:
    return ()


class Metrics:
    """`live` gives the gauges that are true only at the moment of a scrape; `files` is where `log` mode writes."""

    def __init__(
        self,
        catalogue: Catalogue = DEFAULT,
        *,
        mode: Mode = "prometheus",
        auto_detect: bool = False,
        files: MetricsFiles | None = None,
        version: str = "",
    ) -> None:
        self.live: Live = _nothing
        self._file = files.server if files is not None else None
        self._hostname = socket.gethostname()
        self._server = {name: definition.family() for name, definition in catalogue.server.items()}
        shown = {"prometheus": tuple(self._server), "legacy": LEGACY, "log": ()}[mode]
        self._shown = {name: family for name, family in self._server.items() if name in shown}
        self._labels: dict[tuple[str, ...], Labels] = {}
        self._own = OwnFamilies()
        self._own.info.set((version,), 1.0)
        self._own.started.set((), time.time())
        self._emitted = Emitted(
            catalogue.models,
            hostname=self._hostname,
            auto_detect=auto_detect,
            reserved=frozenset({*DEFAULT.server, *self._server}),
            file=files.models if files is not None and mode != "prometheus" else None,
            dropped=self._own.dropped,
        )
        self.take_emitted = self._emitted.take

    # -- requests

    def http_answered(self, listener: str, method: str, route: str, status: int) -> None:
        """`route` is the pattern that the request matched, empty for none."""
        self._own.http.add((listener, method, route or "none", str(status)))
        self._record(_CLASSES.get(status // 100, "Requests5XX"), 1.0)

    def grpc_answered(self, method: str, code: str, seconds: float) -> None:
        """`method` as `package.Service/Method`, `code` the name of the status."""
        self._own.grpc.add((method, code))
        self._own.grpc_seconds.observe((method,), seconds)

    def prediction_asked(self, model: str, asked_version: str | None) -> None:
        """A request for a model that is there, whatever becomes of it."""
        self._record("ts_inference_requests_total", 1.0, model, asked_version or _DEFAULT_VERSION)

    def prediction_answered(
        self, where: Where, asked_version: str | None, *, seconds: float, waited_s: float, ok: bool
    ) -> None:
        """The end of an answer, or of the wait for one; `waited_s` of it in the queue."""
        self._own.request_seconds.observe(where, seconds)
        if ok:
            model, version = where[0], asked_version or _DEFAULT_VERSION
            self._record("ts_inference_latency_microseconds", seconds * 1e6, model, version)
            self._record("ts_queue_latency_microseconds", waited_s * 1e6, model, version)

    def request_refused(self, where: Where, reason: str) -> None:
        """No worker, a full queue and the like."""
        self._own.refused.add((*where, reason))

    # -- workers

    def batch_begun(self, where: Where, size: int, waits_s: Iterable[float]) -> None:
        """A worker has it; `waits_s` is what those of its jobs have waited in the queue that come from there."""
        self._own.batch_size.observe(where, size)
        for wait_s in waits_s:
            self._own.queue_wait.observe(where, wait_s)
            self._record("QueueTime", wait_s * 1e3)

    def batch_answered(self, where: Where, *, seconds: float, worker_s: float, request_ids: Iterable[str]) -> None:
        """`seconds` in the server's eyes, `worker_s` around the handler's entry point."""
        self._own.handler_seconds.observe(where, worker_s)
        self._record("WorkerThreadTime", max(0.0, seconds - worker_s) * 1e3)
        self._emitted.prediction_took(where[0], round(worker_s * 1e3, 2), request_ids)

    def worker_loaded(self, where: Where, worker: str, seconds: float) -> None:
        """`worker` as `W-9000-model_1.0`; `seconds` from the start of its process to the loaded model."""
        self._own.start_seconds.observe(where, seconds)
        family = self._server.get("WorkerLoadTime")
        if family is not None:
            self._write(family, self._labels_of(family, {"WorkerName": worker}), seconds * 1e3)

    def worker_restarts(self, where: Where, reason: str) -> None:
        """A worker has died, or could not be loaded, and another one takes its place."""
        self._own.restarts.add((*where, reason))

    def worker_gone(self, worker: str) -> None:
        """Its slot is gone, too."""
        family = self._server.get("WorkerLoadTime")
        if family is not None:
            family.forget(lambda labels: worker in labels)

    def host(self, readings: Mapping[str, float], devices: Iterable[tuple[str, Mapping[str, float]]] = ()) -> None:
        """Readings of the machine by the names of the metrics, and those of each device by its id."""
        for name, value in readings.items():
            self._record(name, value)
        for device, values in devices:
            for name, value in values.items():
                family = self._server.get(name)
                if family is not None:
                    self._write(family, self._labels_of(family, {"DeviceId": device}), value)

    # -- versions that go

    def keep_only(self, versions: Collection[Where]) -> None:
        """Forget what was counted of versions, and of models, that are registered no more."""
        models = {version[0] for version in versions}
        for family in self._own.of_versions:
            family.forget(lambda labels: labels[:2] not in versions)
        known = {*versions, *((model, _DEFAULT_VERSION) for model in models)}
        for family in self._server.values():
            if {"model_name", "model_version"} <= set(family.labels):
                name, version = family.labels.index("model_name"), family.labels.index("model_version")
                family.forget(lambda labels, n=name, v=version: (labels[n], labels[v]) not in known)  # type: ignore[misc]
        self._labels.clear()
        self._emitted.keep_only(models)

    # -- the page for Prometheus

    def page(self, names: Collection[str] = ()) -> list[Family]:
        """What is to be shown, as it is now; `names` leaves the others out."""
        live = live_families()
        for name, labels, value in self.live():
            live[name].set(labels, value)
        for name, value in usage().items():
            live[name].set((), value)
        counted = (*self._shown.values(), *self._emitted.families(), *self._own.families())
        return [
            *(f.copy() for f in counted if is_asked_for(f, names)),
            *(f for f in live.values() if is_asked_for(f, names)),
        ]

    # -- within

    def _record(self, name: str, value: float, model: str = "", version: str = "") -> None:
        """One of the contract's metrics, which a metrics file may have left out."""
        family = self._server.get(name)
        if family is None:
            return
        key = (name, model, version)
        labels = self._labels.get(key)
        if labels is None:
            labels = self._labels[key] = self._labels_of(family, {"model_name": model, "model_version": version})
        self._write(family, labels, value)

    def _labels_of(self, family: Family, given: Mapping[str, str]) -> Labels:
        """The values of its labels, in the order of the metrics file; empty for what it has beyond the contract's."""
        known = {"Level": "Host", HOSTNAME: self._hostname, "hostname": self._hostname, **given}
        return tuple(known.get(label, "") for label in family.labels)

    def _write(self, family: Family, labels: Labels, value: float) -> None:
        if family.name in self._shown:
            family.record(labels, value)
        elif self._file is not None:
            self._file.add(family, labels, value)
