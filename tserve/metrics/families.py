"""Metrics in memory: families of samples, written with plain dictionaries because requests wait for it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf

Labels = tuple[str, ...]
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
# Those of the client library that the recorded server uses.
USUAL = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class Histogram:
    """Counts of the values up to each bound; the last one is of those above all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Histogram:
        made = Histogram(self.bounds)
        made.counts, made.sum = list(self.counts), self.sum
        return made


@dataclass(slots=True)
class Family:
    """Samples of one name by the values of their labels: numbers, or histograms with these bounds."""

    name: str
    kind: str
    help: str
    labels: Labels
    bounds: tuple[float, ...] = USUAL
    unit: str = ""
    samples: dict[Labels, float] = field(default_factory=dict)
    histograms: dict[Labels, Histogram] = field(default_factory=dict)

    @property
    def held(self) -> Mapping[Labels, object]:
        """The samples of its kind."""
        return self.histograms if self.kind == "histogram" else self.samples

    @property
    def height(self) -> int:
        """Lines that a sample takes up on the page."""
        return len(self.bounds) + 3 if self.kind == "histogram" else 1

    def lines(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Of the page: what stands behind the name, the labels, and the value."""
        for values, value in self.samples.items():
            yield "", dict(zip(self.labels, values, strict=True)), value
        for values, histogram in self.histograms.items():
            labels, sofar = dict(zip(self.labels, values, strict=True)), 0
            for bound, count in zip((*self.bounds, inf), histogram.counts, strict=True):
                sofar += count
                yield "_bucket", {**labels, "le": "+Inf" if bound == inf else repr(bound)}, sofar
            yield "_count", labels, sofar
            yield "_sum", labels, histogram.sum

    def copy(self) -> Family:
        """As it is now, for another thread."""
        histograms = {labels: histogram.copy() for labels, histogram in self.histograms.items()}
        return replace(self, samples=dict(self.samples), histograms=histograms)

    def add(self, labels: Labels, value: float = 1.0) -> None:
        samples = self.samples
        samples[labels] = samples.get(labels, 0.0) + value

    def set(self, labels: Labels, value: float) -> None:
        self.samples[labels] = value

    def observe(self, labels: Labels, value: float) -> None:
        histogram = self.histograms.get(labels)
        if histogram is None:
            histogram = self.histograms[labels] = Histogram(self.bounds)
        histogram.observe(value)

    def record(self, labels: Labels, value: float) -> None:
        """As the kind has it."""
        if self.kind == "counter":
            self.add(labels, value)
        elif self.kind == "gauge":
            self.set(labels, value)
        else:
            self.observe(labels, value)

    def forget(self, mine: Callable[[Labels], bool]) -> None:
        """Drop the samples whose labels are `mine`."""
        for labels in [labels for labels in self.samples if mine(labels)]:
            del self.samples[labels]
        for labels in [labels for labels in self.histograms if mine(labels)]:
            del self.histograms[labels]
