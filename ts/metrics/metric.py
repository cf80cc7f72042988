"""The older form of a metric: a value that is kept, and printed by whoever holds it."""

from __future__ import annotations

from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.emission import line_of
from ts.metrics.metric_type_enum import MetricTypes
from ts.metrics.unit import word_of


class Metric:
    """As text it is the line that the server collects if `[METRICS]` stands before it, as of the moment.

    With the method `counter` an update adds to the value, otherwise it replaces it.
    """

    def __init__(
        self,
        name: str,
        value: Any,
        unit: str,
        dimensions: list[Dimension] | None,
        request_id: str | None = None,
        metric_method: str | None = None,
    ) -> None:
        self.name = name
        self.unit = word_of(unit)
        self.value = value
        self.dimensions = dimensions or []
        self.request_id = request_id
        self.metric_method = metric_method
        self.metric_type = MetricTypes.COUNTER

    def update(self, value: Any) -> None:
        self.value = self.value + value if self.metric_method == "counter" else value

    def __str__(self) -> str:
        labels = [(dimension.name, dimension.value) for dimension in self.dimensions]
        return line_of(self.name, self.unit, self.value, labels, self.metric_type, self.request_id or "")
