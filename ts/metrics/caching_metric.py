"""A metric that is described once and emitted many times."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.emission import emit, line_of, number_of
from ts.metrics.metric_type_enum import MetricTypes

logger = logging.getLogger(__name__)


class CachingMetric:
    """`add_or_update` emits a value.  What cannot be emitted is a line in the log, never an error of the handler's."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        self.metric_name = metric_name
        self.unit = unit
        self.dimension_names = list(dimension_names or [])
        self.metric_type = metric_type

    def __repr__(self) -> str:
        return f"CachingMetric({self.metric_name!r}, {self.unit!r}, {self.dimension_names}, {self.metric_type})"

    def add_or_update(self, value: Any, dimension_values: Sequence[Any] | None = None, request_id: str = "") -> None:
        """Emit a value, with the values of the dimensions in the order of their names.  A counter only counts up."""
        values = list(dimension_values or [])
        if len(values) != len(self.dimension_names):
            self._refuse(f"{len(values)} values for the dimensions {self.dimension_names}")
            return
        try:
            number = number_of(value)
        except (TypeError, ValueError, RuntimeError) as error:
            self._refuse(f"{value!r} is not a number: {error}")
            return
        if self.metric_type is MetricTypes.COUNTER and number < 0:
            self._refuse(f"a counter cannot be changed by {number}")
            return
        labels = zip(self.dimension_names, values, strict=True)
        emit(line_of(self.metric_name, self.unit, number, labels, self.metric_type, request_id or ""))

    def update(self, value: Any, request_id: str = "", dimensions: Sequence[Dimension] | None = None) -> None:
        """The older form: Dimension objects, which are told apart by their names if these are the metric's own."""
        given = list(dimensions or [])
        by_name = {dimension.name: dimension.value for dimension in given}
        if len(given) == len(by_name) and by_name.keys() == set(self.dimension_names):
            values = [by_name[name] for name in self.dimension_names]
        else:
            values = [dimension.value for dimension in given]
        self.add_or_update(value, values, request_id)

    def _refuse(self, why: str) -> None:
        logger.error("metric %s (%s) is not emitted: %s", self.metric_name, self.metric_type.value, why)
