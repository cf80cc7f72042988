"""The older metrics API: metrics are kept in a list, and emitted together by `ts.service.emit_metrics`."""

from __future__ import annotations

from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric import Metric
from ts.metrics.metric_cache_yaml_impl import SIZE_UNITS, TIME_UNITS, check_unit
from ts.metrics.metric_type_enum import MetricTypes

_Key = tuple[str, str, str, tuple[str, ...]]


class MetricsStore:
    """`store` has each metric once by name, unit, request and dimensions.

    `request_ids` are a dict by place in the batch; anything else, such as a UUID, is the id of all its requests.
    """

    def __init__(self, request_ids: Any, model_name: str | None) -> None:
        self.store: list[Metric] = []
        self.request_ids = request_ids
        self.model_name = model_name
        self.cache: dict[_Key, Metric] = {}

    def add_metric(
        self, name: str, value: Any, unit: str, idx: int | None = None, dimensions: list[Dimension] | None = None
    ) -> None:
        """Keep a value; `idx` is the place of one request in the batch, None stands for all of them."""
        self._keep(name, value, unit, self._request_id(idx), dimensions)

    def add_counter(
        self, name: str, value: Any, idx: int | None = None, dimensions: list[Dimension] | None = None
    ) -> None:
        """Add to what is kept under this name; a negative value takes away."""
        self._keep(name, value, "count", self._request_id(idx), dimensions, method="counter")

    def add_time(
        self,
        name: str,
        value: Any,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: list[Dimension] | None = None,
    ) -> None:
        """Raises ValueError unless the unit is `ms` or `s`."""
        check_unit(unit, TIME_UNITS, name)
        self._keep(name, value, unit, self._request_id(idx), dimensions, kind=MetricTypes.GAUGE)

    def add_size(
        self,
        name: str,
        value: Any,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: list[Dimension] | None = None,
    ) -> None:
        """Raises ValueError unless the unit is one of `MB`, `kB`, `GB` and `B`."""
        check_unit(unit, SIZE_UNITS, name)
        self._keep(name, value, unit, self._request_id(idx), dimensions, kind=MetricTypes.GAUGE)

    def add_percent(
        self, name: str, value: Any, idx: int | None = None, dimensions: list[Dimension] | None = None
    ) -> None:
        self._keep(name, value, "percent", self._request_id(idx), dimensions, kind=MetricTypes.GAUGE)

    def add_error(self, name: str, value: Any, dimensions: list[Dimension] | None = None) -> None:
        """Keep an error, such as its message; it belongs to no request."""
        self._keep(name, value, "", None, dimensions)

    def _keep(
        self,
        name: str,
        value: Any,
        unit: str,
        request_id: str | None,
        dimensions: list[Dimension] | None,
        *,
        kind: MetricTypes = MetricTypes.COUNTER,
        method: str | None = None,
    ) -> None:
        labels = [*(dimensions or []), Dimension("ModelName", self.model_name)]
        labels.append(Dimension("Level", "Error" if request_id is None else "Model"))
        key = name, unit, request_id or "", tuple(str(label) for label in labels)
        metric = self.cache.get(key)
        if metric is not None:
            metric.update(value)
            return
        metric = Metric(name, value, unit, labels, request_id, method)
        metric.metric_type = kind
        self.cache[key] = metric
        self.store.append(metric)

    def _request_id(self, idx: int | None) -> str | None:
        """Raises KeyError for a place that the batch does not have."""
        ids = self.request_ids
        if not ids:
            return None
        if not isinstance(ids, dict):
            return str(ids)
        return ",".join(map(str, ids.values())) if idx is None else str(ids[idx])
