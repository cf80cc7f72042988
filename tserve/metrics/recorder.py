"""What happens, as metrics.  Called from the server's own loop only, on the way of requests: so each event costs a few
dictionary accesses, and text is made only for `log` mode.

The contract's metrics are those of the catalogue (spec/server.md section 10.3); tserve's own begin with `tserve_` and
are shown in every mode.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Literal, Protocol

from tserve.metrics.catalogue import DEFAULT, HOSTNAME, Catalogue, Definition, is_label_name, is_metric_name
from tserve.metrics.exposition import expose
from tserve.metrics.families import Family, Labels
from tserve.metrics.lines import Reading, parse
from tserve.metrics.own import LIVE, OwnFamilies, usage

Mode = Literal["log", "prometheus", "legacy"]
MOST_SERIES = 1_000  # of one metric that handlers emit
MOST_FAMILIES = 1_000  # that handlers can bring up with `model_metrics_auto_detect`
MOST_KNOWN = 10_000  # kinds of lines that are remembered as read
LEGACY = ("ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds")
_LEVEL = "Host"
_CLASSES = {2: "Requests2XX", 4: "Requests4XX"}
_log = logging.getLogger("tserve.metrics")

Where = tuple[str, ...]  # labels of a version: its name and itself
Live = Callable[[], Iterable[tuple[str, Labels, float]]]  # name of a gauge, its labels, its value


class LogFiles(Protocol):
    """Where the lines of `log` mode go; never waits."""

    def server(self, line: str) -> None: ...

    def models(self, line: str) -> None: ...


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
        files: LogFiles | None = None,
        version: str = "",
    ) -> None:
        self.live: Live = _nothing
        self._mode = mode
        self._auto_detect = auto_detect
        self._files = files
        self._hostname = socket.gethostname()
        self._server = {name: _family(definition) for name, definition in catalogue.server.items()}
        self._models = {name: _family(definition, MOST_SERIES) for name, definition in catalogue.models.items()}
        self._units = {d.name: d.unit for d in (*catalogue.server.values(), *catalogue.models.values())}
        self._known: dict[str, tuple[Family, Labels] | None] = {}
        self._warned: set[str] = set()
        self._own = OwnFamilies()
        self._own.info.set((version,), 1.0)
        self._own.started.set((), time.time())
        self._shown_server = {
            name: family
            for name, family in self._server.items()
            if mode == "prometheus" or (mode == "legacy" and name in LEGACY)
        }
        # The contract's label values by the family's own order of labels, made once.
        self._host = {name: self._labels_of(family, {}) for name, family in self._server.items()}

    # -- requests

    def http_answered(self, listener: str, method: str, route: str, status: int) -> None:
        """`route` is the pattern that the request matched, empty for none."""
        self._own.http.add((listener, method, route or "none", str(status)))
        self._count(_CLASSES.get(status // 100, "Requests5XX"))

    def grpc_answered(self, method: str, code: str, seconds: float) -> None:
        """`method` as `package.Service/Method`, `code` the name of the status."""
        self._own.grpc.add((method, code))
        self._own.grpc_seconds.observe((method,), seconds)

    def prediction_asked(self, model: str, asked_version: str | None) -> None:
        """A request for a model that is there, whatever becomes of it."""
        self._record_for("ts_inference_requests_total", model, asked_version, 1.0)

    def prediction_answered(
        self, where: Where, asked_version: str | None, *, seconds: float, waited_s: float, ok: bool
    ) -> None:
        """The end of an answer, or of the wait for one; `waited_s` of it in the queue."""
        self._own.request_seconds.observe(where, seconds)
        if ok:
            model = where[0]
            self._record_for("ts_inference_latency_microseconds", model, asked_version, seconds * 1e6)
            self._record_for("ts_queue_latency_microseconds", model, asked_version, waited_s * 1e6)

    def request_refused(self, where: Where, reason: str) -> None:
        """No worker, a full queue and the like."""
        self._own.refused.add((*where, reason))

    # -- workers

    def batch_begun(self, where: Where, size: int, waits_s: Iterable[float]) -> None:
        """A worker has it; `waits_s` is what those of its jobs have waited in the queue that come from there."""
        self._own.batch_size.observe(where, size)
        for wait_s in waits_s:
            self._own.queue_wait.observe(where, wait_s)
            self._set_host("QueueTime", wait_s * 1e3)

    def batch_answered(self, where: Where, *, seconds: float, worker_s: float, request_ids: Callable[[], str]) -> None:
        """`seconds` in the server's eyes, `worker_s` around the handler's entry point."""
        self._own.handler_seconds.observe(where, worker_s)
        self._set_host("WorkerThreadTime", max(0.0, seconds - worker_s) * 1e3)
        family = self._models.get("PredictionTime")
        if family is not None:
            given = {"ModelName": where[0], "Level": "Model"}
            labels = tuple(given.get(label, self._hostname) for label in family.labels)
            self._record_model(family, "ms", labels, round(worker_s * 1e3, 2), request_ids)

    def worker_loaded(self, where: Where, worker: str, seconds: float) -> None:
        """`worker` as `W-9000-model_1.0`; `seconds` from the start of its process to the loaded model."""
        self._own.start_seconds.observe(where, seconds)
        family = self._server.get("WorkerLoadTime")
        if family is not None:
            self._record_server(family, self._labels_of(family, {"WorkerName": worker}), seconds * 1e3)

    def worker_restarts(self, where: Where, reason: str) -> None:
        """A worker has died, or could not be loaded, and another one takes its place."""
        self._own.restarts.add((*where, reason))

    def worker_gone(self, worker: str) -> None:
        """Its slot is gone, too."""
        family = self._server.get("WorkerLoadTime")
        if family is not None:
            family.forget(lambda labels: worker in labels)

    def keep_only(self, versions: Collection[Where]) -> None:
        """Forget what was counted of versions, and of models, that are registered no more."""
        models = {version[0] for version in versions}
        for family in self._own.of_versions:
            family.forget(lambda labels: labels[:2] not in versions)
        for family in (*self._server.values(), *self._models.values()):
            for label in ("model_name", "ModelName"):
                if label in family.labels:
                    place = family.labels.index(label)
                    family.forget(lambda labels, place=place: labels[place] not in models)  # type: ignore[misc]

    # -- what handlers emit

    def model_lines(self, lines: Iterable[object]) -> None:
        """What a worker has sent; whatever it is, it does no harm."""
        for line in lines:
            reading = parse(line) if isinstance(line, str) else None
            if reading is None:
                self._drop("malformed", f"a worker sent what is no metric: {line!r:.200}")
                continue
            found = self._resolve(reading)
            if found is None:
                continue
            family, labels = found
            if family.kind == "counter" and reading.value < 0:
                self._drop("malformed", f"counter {reading.name} cannot be changed by {reading.value}")
                continue
            ids = reading.request_ids
            self._record_model(family, reading.unit, labels, reading.value, lambda ids=ids: ids)  # type: ignore[misc]

    def _resolve(self, reading: Reading) -> tuple[Family, Labels] | None:
        known = f"{reading.name}\0{reading.labels}"
        if known in self._known:
            found = self._known[known]
            if found is None:
                self._own.dropped.add(("unlisted",))
            return found
        family = self._models.get(reading.name)
        if family is None and self._auto_detect:
            family = self._detect(reading)
        found = None
        if family is None:
            self._drop("unlisted", f"metric {reading.name} is not listed in the metrics file and so not taken")
        else:
            given = {**dict(reading.labels), HOSTNAME: self._hostname}
            if given.keys() != set(family.labels):
                self._drop("labels", f"metric {reading.name} came with {sorted(given)}, not {sorted(family.labels)}")
                return None
            found = family, tuple(given[label] for label in family.labels)
        if len(self._known) < MOST_KNOWN:
            self._known[known] = found
        return found

    def _detect(self, reading: Reading) -> Family | None:
        labels = (*(name for name, _ in reading.labels if name != HOSTNAME), HOSTNAME)
        names = [name for name, _ in reading.labels]
        if (
            len(self._models) >= MOST_FAMILIES
            or reading.name in self._server
            or reading.name.startswith("tserve_")
            or not is_metric_name(reading.name)
            or len(set(names)) != len(names)
            or not all(map(is_label_name, names))
            or reading.kind not in ("counter", "gauge", "histogram")
        ):
            return None
        definition = Definition(reading.name, reading.kind, reading.unit, labels)
        family = self._models[reading.name] = _family(definition, MOST_SERIES)
        self._units[reading.name] = reading.unit
        return family

    # -- the host

    def host(self, readings: Mapping[str, float], devices: Iterable[tuple[str, Mapping[str, float]]] = ()) -> None:
        """Readings of the machine by the names of the metrics, and those of each device by its id."""
        for name, value in readings.items():
            self._set_host(name, value)
        for device, values in devices:
            for name, value in values.items():
                family = self._server.get(name)
                if family is not None:
                    self._record_server(family, self._labels_of(family, {"DeviceId": device}), value)

    # -- out

    def text(self, names: Collection[str] = ()) -> bytes:
        """The page for Prometheus; `names` leaves the others out."""
        shown = [*self._shown_server.values()]
        if self._mode == "prometheus":
            shown += self._models.values()
        return expose([*shown, *self._own.families(), *self._live_families()], names)

    def _live_families(self) -> Iterator[Family]:
        families = {name: Family.make(name, "gauge", text, labels) for name, (text, labels) in LIVE.items()}
        for name, labels, value in self.live():
            families[name].set(labels, value)
        for name, value in usage().items():
            families[name].set((), value)
        yield from families.values()

    # -- within

    def _labels_of(self, family: Family, given: Mapping[str, str]) -> Labels:
        own = {"Level": _LEVEL, HOSTNAME: self._hostname, "hostname": self._hostname, **given}
        return tuple(own.get(label, "") for label in family.labels)

    def _count(self, name: str) -> None:
        family = self._server.get(name)
        if family is not None:
            self._record_server(family, self._host[name], 1.0)

    def _set_host(self, name: str, value: float) -> None:
        family = self._server.get(name)
        if family is not None:
            self._record_server(family, self._host[name], value)

    def _record_for(self, name: str, model: str, asked_version: str | None, value: float) -> None:
        family = self._server.get(name)
        if family is not None:
            given = {"model_name": model, "model_version": asked_version or "default"}
            self._record_server(family, self._labels_of(family, given), value)

    def _record_server(self, family: Family, labels: Labels, value: float) -> None:
        if family.name in self._shown_server:
            family.record(labels, value)
        elif self._files is not None:
            self._files.server(self._log_line(family, self._units[family.name], labels, value, ""))

    def _record_model(
        self, family: Family, unit: str, labels: Labels, value: float, request_ids: Callable[[], str]
    ) -> None:
        if self._mode != "prometheus":
            if self._files is not None:
                self._files.models(self._log_line(family, unit, labels, value, request_ids()))
        elif not family.record(labels, value):
            self._drop("series", f"metric {family.name} has {MOST_SERIES} series already: no more are taken")

    def _log_line(self, family: Family, unit: str, labels: Labels, value: float, request_ids: str) -> str:
        """As section 10.5 has it."""
        shown = ",".join(
            f"{name}:{of}" for name, of in zip(family.labels, labels, strict=True) if name.lower() != "hostname"
        )
        ids = f"requestID:{request_ids}," if request_ids else ""
        line = f"{family.name}.{unit}:{value}|#{shown}|#hostname:{self._hostname},{ids}timestamp:{int(time.time())}"
        return line if line.isprintable() else line.encode("unicode_escape").decode()

    def _drop(self, reason: str, why: str) -> None:
        """Count it, and say once why."""
        self._own.dropped.add((reason,))
        if why not in self._warned and len(self._warned) < 100:
            self._warned.add(why)
            _log.warning("%s", why)


def _family(definition: Definition, most: int = 100_000) -> Family:
    return Family.make(definition.name, definition.kind, definition.help, definition.labels, most=most)
