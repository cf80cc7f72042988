"""What the metrics API raises (spec/inference.md section 12)."""

from __future__ import annotations


class MetricsCacheValueError(ValueError):
    """A unit that does not fit the call, or a metrics file that cannot be used."""


class MetricsCacheKeyError(KeyError):
    """A metric that is not in the cache, or a key that a metrics file lacks."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""
