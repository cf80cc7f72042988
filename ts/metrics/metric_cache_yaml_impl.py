"""`context.metrics`: what a handler calls to emit metrics (spec/inference.md section 12)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, KeysView, Mapping
from pathlib import Path
from typing import Any

from ts.metrics.caching_metric import CachingMetric
from ts.metrics.dimension import Dimension
from ts.metrics.metric_cache_errors import MetricsCacheKeyError, MetricsCacheValueError
from ts.metrics.metric_type_enum import MetricTypes

logger = logging.getLogger(__name__)

TIME_UNITS = ("ms", "s")
SIZE_UNITS = ("MB", "kB", "GB", "B")
_SECTION = "model_metrics"
# What every server knows without a metrics file of its own.
_DEFAULT = {
    _SECTION: {
        "gauge": [
            {"name": name, "unit": "ms", "dimensions": ["ModelName", "Level"]}
            for name in ("HandlerTime", "PredictionTime")
        ]
    }
}


class MetricsCacheYamlImpl:
    """Each metric is described at its first use, or by the file, and kept in `cache` by type and name.

    The worker sets `model_name`, and `request_ids` for each batch.  A metric is emitted as it is added, so that `store`
    stays empty unless a handler fills it.  Dimensions that are not given are added to the caller's list: `ModelName`,
    and `Level`, which is `Error` where there is no request.
    """

    def __init__(self, config_file_path: str | Path | Mapping[str, Any] | None = None) -> None:
        """Take the metrics of a `metrics.yaml`, given by its path or parsed; without one, those of every server.

        Raises MetricsCacheValueError or MetricsCacheKeyError for a file that cannot be used.
        """
        self.config_file_path = config_file_path
        self.cache: dict[MetricTypes, dict[str, CachingMetric]] = {}
        self.store: list[Any] = []
        self.request_ids: str | None = None
        self.model_name: str | None = None
        self.initialize_cache()

    def initialize_cache(self) -> None:
        """Describe the metrics of the file, anew if they are there.  Raises as the constructor does."""
        for kind, metrics in _section(self.config_file_path).items():
            for metric in metrics or []:
                missing = {"name", "unit", "dimensions"} - set(metric)
                if missing:
                    raise MetricsCacheKeyError(f"{_SECTION}: {kind}: {metric} lacks {', '.join(sorted(missing))}")
                self.add_metric_to_cache(metric["name"], metric["unit"], metric["dimensions"] or [], _kind_of(kind))

    def set_request_ids(self, request_ids: str | Iterable[str] | None) -> None:
        """The ids of the requests in hand, in the order of the batch; as one text they are joined by commas."""
        if request_ids is not None and not isinstance(request_ids, str):
            request_ids = ",".join(request_ids)
        self.request_ids = request_ids

    def cache_keys(self) -> KeysView[MetricTypes]:
        """The types of which there are metrics."""
        return self.cache.keys()

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: list[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> CachingMetric:
        """Describe a metric without emitting it; one of that name and type is replaced."""
        kind = _kind_of(metric_type)
        metric = CachingMetric(metric_name, unit, dimension_names, kind)
        self.cache.setdefault(kind, {})[metric_name] = metric
        return metric

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> CachingMetric:
        """Raises MetricsCacheKeyError, a KeyError, if there is none of that name and type."""
        kind = _kind_of(metric_type)
        metric = self.cache.get(kind, {}).get(metric_name)
        if metric is None:
            raise MetricsCacheKeyError(f"There is no {kind.value} named {metric_name!r}.")
        return metric

    def add_metric(
        self,
        name: str,
        value: Any,
        unit: str,
        idx: int | str | None = None,
        dimensions: list[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Emit a value.  `idx` is the place of one request in the batch; None stands for all of them."""
        try:
            request_id = self._request_id(idx)
        except IndexError:
            logger.error("metric %s is not emitted: there is no request %s in %s", name, idx, self.request_ids)
            return
        self._emit(name, value, unit, request_id, dimensions, metric_type)

    def add_counter(
        self, name: str, value: Any, idx: int | str | None = None, dimensions: list[Dimension] | None = None
    ) -> None:
        """Count up by `value`; a negative one is a line in the log."""
        self.add_metric(name, value, "count", idx, dimensions, MetricTypes.COUNTER)

    def add_time(
        self,
        name: str,
        value: Any,
        idx: int | str | None = None,
        unit: str = "ms",
        dimensions: list[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Raises MetricsCacheValueError unless the unit is `ms` or `s`."""
        check_unit(unit, TIME_UNITS, name)
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: Any,
        idx: int | str | None = None,
        unit: str = "MB",
        dimensions: list[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Raises MetricsCacheValueError unless the unit is one of `MB`, `kB`, `GB` and `B`."""
        check_unit(unit, SIZE_UNITS, name)
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: Any,
        idx: int | str | None = None,
        dimensions: list[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        self.add_metric(name, value, "percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: Any, dimensions: list[Dimension] | None = None) -> None:
        """Count errors, without a request they belong to."""
        self._emit(name, value, "", "", dimensions, MetricTypes.COUNTER)

    def _emit(
        self,
        name: str,
        value: Any,
        unit: str,
        request_id: str,
        dimensions: list[Dimension] | None,
        metric_type: MetricTypes,
    ) -> None:
        if not isinstance(dimensions, list):
            dimensions = list(dimensions or ())
        there = {dimension.name for dimension in dimensions}
        if "ModelName" not in there:
            dimensions.append(Dimension("ModelName", self.model_name))
        if "Level" not in there:
            dimensions.append(Dimension("Level", "Model" if request_id else "Error"))
        try:
            metric = self.get_metric(name, metric_type)
        except MetricsCacheKeyError:
            names = [dimension.name for dimension in dimensions]
            metric = self.add_metric_to_cache(name, unit, names, metric_type)
        metric.update(value, request_id, dimensions)

    def _request_id(self, idx: int | str | None) -> str:
        """Raises IndexError for a place that the batch does not have.  A text is an id already."""
        if isinstance(idx, str):
            return idx
        ids = self.request_ids or ""
        # Of a batch of one its only request is meant, whatever the place: handlers written for that pass anything.
        return ids if idx is None or "," not in ids else ids.split(",")[idx]


def check_unit(unit: str, known: tuple[str, ...], name: str) -> None:
    """Raises MetricsCacheValueError."""
    if unit not in known:
        raise MetricsCacheValueError(f"The unit of {name!r} must be one of {', '.join(known)}, not {unit!r}.")


def _kind_of(kind: MetricTypes | str) -> MetricTypes:
    """Raises MetricsCacheValueError."""
    try:
        return MetricTypes(kind.lower() if isinstance(kind, str) else kind)
    except ValueError:
        known = ", ".join(each.value for each in MetricTypes)
        raise MetricsCacheValueError(f"A metric is one of {known}, not {kind!r}.") from None


def _section(source: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The models' part of a metrics file.  Raises MetricsCacheValueError, MetricsCacheKeyError."""
    content: Any = _read(Path(source)) if isinstance(source, (str, Path)) else source
    if source is None:
        content = _DEFAULT
    if not isinstance(content, Mapping) or _SECTION not in content:
        raise MetricsCacheKeyError(f"The metrics file has no section {_SECTION!r}.")
    section = content[_SECTION] or {}
    if not isinstance(section, Mapping) or not all(
        isinstance(metrics or [], list) and all(isinstance(metric, Mapping) for metric in metrics or [])
        for metrics in section.values()
    ):
        raise MetricsCacheValueError(f"{_SECTION!r} must hold lists of metrics by their type.")
    return section


def _read(file: Path) -> Any:
    import yaml  # only who has a metrics file pays for it

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MetricsCacheValueError(f"The metrics file {file} cannot be read: {error}") from error
