"""What handlers emit: which of it is taken, and how much of it is kept.  Whatever comes, it does no harm."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

from tserve.metrics.catalogue import HOSTNAME, Definition
from tserve.metrics.exposition import SUFFIXES, clean
from tserve.metrics.families import Family, Labels
from tserve.metrics.files import LogFile
from tserve.metrics.lines import Series, Subject, read, split

MOST_SERIES = 1_000  # of one metric
MOST_LINES = 20_000  # that all of them take up on the page for Prometheus
MOST_DETECTED = 1_000  # metrics that are in no file
MOST_KNOWN = 10_000  # subjects of lines that are remembered
MOST_WARNINGS = 100
_MODEL = "ModelName"
_log = logging.getLogger("tserve.metrics")


class Emitted:
    """Metrics of handlers by name.  They go to `file` if there is one, else they are kept for Prometheus.

    `reserved` are names that handlers cannot bring up by themselves, `dropped` counts by reason what is not taken.
    """

    def __init__(
        self,
        listed: Mapping[str, Definition],
        *,
        hostname: str,
        auto_detect: bool,
        reserved: Collection[str],
        file: LogFile | None,
        dropped: Family,
    ) -> None:
        self._families = {name: definition.family() for name, definition in listed.items()}
        self._listed = frozenset(listed)
        self._hostname = hostname
        self._auto_detect = auto_detect
        self._reserved = reserved
        self._file = file
        self._dropped = dropped
        self._known: dict[Subject, tuple[Family, Labels] | str] = {}
        self._lines = 0
        self._models: set[str] = set()
        self._gone: set[str] = set()
        self._warned: set[str] = set()

    def families(self) -> list[Family]:
        return [] if self._file is not None else list(self._families.values())

    def take(self, lines: Iterable[object], *, lost: int = 0) -> None:
        """What a worker has sent, and how many more lines it had that were lost on the way."""
        if lost > 0:
            self._drop("rate", "a worker emits more metrics than are taken", lost)
        for line in lines:
            # What is no text of UTF-8 would be two series here that look the same on the page.
            parts = split(clean(line)) if isinstance(line, str) else None
            if parts is None:
                self._drop("malformed", f"a worker sent what is no metric: {line!r:.200}")
                continue
            subject, value, request_ids = parts
            found = self._known.get(subject)
            if found is None:
                found = self._resolve(subject)
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[subject] = found
            if isinstance(found, str):
                self._dropped.add((found,))
                continue
            family, labels = found
            if family.kind == "counter" and value < 0:
                self._drop("malformed", f"counter {family.name} cannot be changed by {value}")
                continue
            self._record(family, labels, value, (request_ids,))

    def prediction_took(self, model: str, ms: float, request_ids: Iterable[str]) -> None:
        """`PredictionTime`, which every worker emits (spec/inference.md section 12)."""
        family = self._families.get("PredictionTime")
        if family is not None:
            given = {_MODEL: model, "Level": "Model", HOSTNAME: self._hostname}
            self._record(family, tuple(given.get(label, "") for label in family.labels), ms, request_ids)

    def keep_only(self, models: Collection[str]) -> None:
        """Forget what was emitted for models that were there and are no more, and metrics that nobody emits now.

        A handler may name its parts as models; those were never there, and stay.
        """
        left = self._models.difference(models)
        gone = left | self._gone  # twice: a last batch may have been in hand
        self._models, self._gone = set(models), left
        if gone:
            for family in self._families.values():
                if _MODEL in family.labels:
                    place = family.labels.index(_MODEL)
                    family.forget(lambda labels, place=place: labels[place] in gone)  # type: ignore[misc]
        idle = [f.name for f in self._families.values() if f.name not in self._listed and not f.held]
        if idle:
            for name in idle:
                del self._families[name]
            self._known.clear()
        self._lines = sum(len(family.held) * family.height for family in self._families.values())

    def _record(self, family: Family, labels: Labels, value: float, request_ids: Iterable[str]) -> None:
        if self._file is not None:
            self._file.add(family, labels, value, request_ids)
            return
        held = family.held
        if labels not in held:
            if len(held) >= MOST_SERIES:
                self._drop("series", f"metric {family.name} has {MOST_SERIES} series: no more are taken")
                return
            if self._lines + family.height > MOST_LINES:
                self._drop("series", f"handlers' metrics take up {MOST_LINES} lines: no more series are taken")
                return
            self._lines += family.height
        family.record(labels, value)

    def _resolve(self, subject: Subject) -> tuple[Family, Labels] | str:
        """Where lines with this subject belong, or the reason why they are not taken."""
        series = read(subject)
        if series is None:
            return self._warn("malformed", f"a worker sent what is no metric: {subject!r:.200}")
        family = self._families.get(series.name)
        if family is None:
            if not self._auto_detect:
                return self._warn("unlisted", f"metric {series.name!r:.200} is not in the metrics file, so not taken")
            if len(self._families) - len(self._listed) >= MOST_DETECTED:
                return self._warn("metrics", f"handlers have brought up {MOST_DETECTED} metrics: no more are taken")
            definition = _detected(series)
            if fault := definition.fault() or self._clash(definition):
                return self._warn("malformed", f"a metric of a handler is not taken: {fault}")
            family = self._families[series.name] = definition.family()
        given = {**dict(series.labels), HOSTNAME: self._hostname}
        if given.keys() != set(family.labels):
            names = f"{sorted(given)}, not {sorted(family.labels)}"
            return self._warn("labels", f"metric {family.name} came with the dimensions {names:.500}")
        return family, tuple(given[label] for label in family.labels)

    def _clash(self, new: Definition) -> str:
        """What is wrong with the name of a metric beside those that there are: no line may be of two of them."""
        if new.name in self._reserved:
            return f"{new.name} is the server's"
        base = next((new.name[: -len(suffix)] for suffix in SUFFIXES if new.name.endswith(suffix)), "")
        histogram = self._families.get(base)
        if histogram is not None and histogram.kind == "histogram":
            return f"{new.name} is a line of the histogram {base}"
        if new.kind == "histogram":
            taken = [new.name + suffix for suffix in SUFFIXES if new.name + suffix in self._families]
            return f"{taken[0]} is a metric already, so {new.name} cannot be a histogram" if taken else ""
        return ""

    def _drop(self, reason: str, why: str, count: int = 1) -> None:
        self._dropped.add((reason,), count)
        self._warn(reason, why)

    def _warn(self, reason: str, why: str) -> str:
        """Say once, in a log that many handlers share, why something is not taken; the reason."""
        if why not in self._warned and len(self._warned) < MOST_WARNINGS:
            self._warned.add(why)
            _log.warning("%s", why)
        return reason


def _detected(series: Series) -> Definition:
    """A metric as its first line has it."""
    labels = (*(name for name, _ in series.labels if name != HOSTNAME), HOSTNAME)
    return Definition(series.name, series.kind, series.unit, labels)
