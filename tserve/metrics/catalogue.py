"""Which metrics there are: the contract's, or those of a metrics file (spec/server.md sections 10.3 and 10.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tserve.errors import BadConfiguration
from tserve.metrics.families import Family

HOSTNAME = "Hostname"
KINDS = ("counter", "gauge", "histogram")
_SECTIONS = ("dimensions", "ts_metrics", "model_metrics")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric: `labels` in the order of the file, for models' metrics with `Hostname` behind them."""

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]

    @property
    def help(self) -> str:
        return f"Torchserve prometheus {self.kind} metric with unit: {self.unit}"

    def family(self) -> Family:
        return Family(self.name, self.kind, self.help, self.labels, unit=self.unit)

    def fault(self) -> str:
        """What Prometheus would not take, or takes for a metric of tserve's own; empty if all is well."""
        if not _NAME.fullmatch(self.name) or self.name.startswith("tserve_"):
            return f"no name of a metric: {self.name!r:.200}"
        if self.kind not in KINDS:
            return f"{self.name} is none of {', '.join(KINDS)}: {self.kind!r:.200}"
        for label in self.labels:
            if not _LABEL.fullmatch(label) or (label == "le" and self.kind == "histogram"):
                return f"{self.name} has no name of a dimension: {label!r:.200}"
        if len(set(self.labels)) < len(self.labels):
            return f"{self.name} has a dimension twice"
        return ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """`server` are the front end's own, `models` those that handlers may emit; both by name, in the file's order."""

    server: Mapping[str, Definition]
    models: Mapping[str, Definition]


_HOST = ("Level", HOSTNAME)
_DEVICE = ("Level", "DeviceId", HOSTNAME)
_MODEL = ("model_name", "model_version", "hostname")


def _by_name(*definitions: Definition) -> dict[str, Definition]:
    return {each.name: each for each in definitions}


DEFAULT = Catalogue(
    server=_by_name(
        *(Definition(name, "counter", "Count", _HOST) for name in ("Requests2XX", "Requests4XX", "Requests5XX")),
        Definition("ts_inference_requests_total", "counter", "Count", _MODEL),
        Definition("ts_inference_latency_microseconds", "counter", "Microseconds", _MODEL),
        Definition("ts_queue_latency_microseconds", "counter", "Microseconds", _MODEL),
        Definition("QueueTime", "gauge", "Milliseconds", _HOST),
        Definition("WorkerThreadTime", "gauge", "Milliseconds", _HOST),
        Definition("WorkerLoadTime", "gauge", "Milliseconds", ("WorkerName", *_HOST)),
        *(
            Definition(name, "gauge", "Percent", _HOST)
            for name in ("CPUUtilization", "MemoryUtilization", "DiskUtilization")
        ),
        *(Definition(name, "gauge", "Megabytes", _HOST) for name in ("MemoryUsed", "MemoryAvailable")),
        *(Definition(name, "gauge", "Gigabytes", _HOST) for name in ("DiskUsage", "DiskAvailable")),
        *(Definition(name, "gauge", "Percent", _DEVICE) for name in ("GPUMemoryUtilization", "GPUUtilization")),
        Definition("GPUMemoryUsed", "gauge", "Megabytes", _DEVICE),
    ),
    models=_by_name(
        *(
            Definition(name, "gauge", "ms", ("ModelName", "Level", HOSTNAME))
            for name in ("HandlerTime", "PredictionTime")
        )
    ),
)


def read_catalogue(file: Path | None) -> Catalogue:
    """The contract's metrics, or those of a `metrics.yaml`.

    Raises BadConfiguration with file, place and what is allowed: with a file that cannot be read the recorded server
    runs without any metrics, and its workers do not start.
    """
    if file is None:
        return DEFAULT
    import yaml  # only who has a metrics file pays for it here

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _bad(file, "", f"cannot be read: {error}") from error
    if not isinstance(content, Mapping) or "model_metrics" not in content:
        raise _bad(file, "", "has no section model_metrics")
    if unknown := sorted(str(name) for name in content if name not in _SECTIONS):
        raise _bad(file, unknown[0], f"is no section; allowed are {', '.join(_SECTIONS)}")
    server = _section(file, content, "ts_metrics", added=())
    models = _section(file, content, "model_metrics", added=(HOSTNAME,))
    if twice := sorted(server.keys() & models.keys()):
        raise _bad(file, f"model_metrics.{twice[0]}", "is in ts_metrics, too")
    return Catalogue(server, models)


def _section(file: Path, content: Mapping[Any, Any], name: str, *, added: tuple[str, ...]) -> Mapping[str, Definition]:
    section = content.get(name) or {}
    if not isinstance(section, Mapping):
        raise _bad(file, name, "must hold lists of metrics by their type")
    found: dict[str, Definition] = {}
    for kind, metrics in section.items():
        if kind not in KINDS or not isinstance(metrics or [], list):
            raise _bad(file, f"{name}.{kind}", f"must be one of {', '.join(KINDS)}, with a list of metrics")
        for metric in metrics or []:
            definition = _definition(file, f"{name}.{kind}", kind, metric, added)
            if definition.name in found:
                raise _bad(file, f"{name}.{kind}", f"{definition.name} is there twice")
            found[definition.name] = definition
    return found


def _definition(file: Path, where: str, kind: str, metric: Any, added: tuple[str, ...]) -> Definition:
    if not isinstance(metric, Mapping) or not {"name", "unit", "dimensions"} <= metric.keys():
        raise _bad(file, where, f"each metric has name, unit and dimensions, but there is {metric!r:.200}")
    name, labels = metric["name"], metric["dimensions"] or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise _bad(file, where, f"the dimensions of {name} must be a list of names, not {labels!r:.200}")
    names = (*(label for label in labels if label not in added), *added)
    definition = Definition(str(name), kind, str(metric["unit"] or ""), names)
    if fault := definition.fault():
        raise _bad(file, where, fault)
    return definition


def _bad(file: Path, where: str, what: str) -> BadConfiguration:
    return BadConfiguration(f"metrics_config={file}: {where + ': ' if where else ''}{what}")
