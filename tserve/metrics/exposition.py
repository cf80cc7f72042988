"""Families as the text that Prometheus reads, written by its client library.

The library is imported when it is first needed: its import takes a good part of the time in which the server is up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from tserve.metrics.families import Family

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SUFFIXES = ("_bucket", "_sum", "_count")  # of the lines of a histogram


class _ExactName(str):
    """The name of a counter that takes no `_total`: the contract's have none, and dashboards ask for them."""

    __slots__ = ()

    def __add__(self, suffix: str) -> str:
        return self if suffix == "_total" else str(self) + suffix


class _Collector:
    """What the library asks for metrics."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import Metric

        for family in self._families:
            metric = Metric(family.name, clean(family.help), family.kind)
            metric.name = _ExactName(family.name)
            for suffix, labels, value in family.lines():
                metric.add_sample(family.name + suffix, {name: clean(of) for name, of in labels.items()}, value)
            yield metric


def text_of(families: Iterable[Family]) -> bytes:
    """The page.  Takes a tenth of a second for some hundred versions: not for the loop."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(families))
    return generate_latest(registry)


def is_asked_for(family: Family, names: Collection[str]) -> bool:
    """Whether the family is one of `names`, or its lines are; no names stand for all."""
    return not names or any(family.name + suffix in names for suffix in ("", *SUFFIXES))


def clean(text: str) -> str:
    """What is no text of UTF-8 becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
