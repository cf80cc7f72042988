"""Families as text: under the names that are recorded, and as a Prometheus client reads it back."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tserve.metrics.catalogue import DEFAULT
from tserve.metrics.exposition import is_asked_for, text_of
from tserve.metrics.families import SIZES, USUAL, Family

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_as_recorded() -> None:
    family = DEFAULT.server["Requests2XX"].family()
    family.add(("Host", "vm"))
    assert text_of([family]).decode() == (
        "# HELP Requests2XX Torchserve prometheus counter metric with unit: Count\n"
        "# TYPE Requests2XX counter\n"
        'Requests2XX{Hostname="vm",Level="Host"} 1.0\n'
    )


def test_without_samples() -> None:
    assert text_of([DEFAULT.server["GPUUtilization"].family()]).decode() == (
        "# HELP GPUUtilization Torchserve prometheus gauge metric with unit: Percent\n# TYPE GPUUtilization gauge\n"
    )


def test_without_labels() -> None:
    family = Family("up", "gauge", "Up.", ())
    family.set((), 2)
    assert text_of([family]).decode().endswith("\nup 2.0\n")


def test_counters_add_gauges_do_not() -> None:
    counter, gauge = Family("c", "counter", "", ("a",)), Family("g", "gauge", "", ("a",))
    for value in (2.0, 1.5):
        counter.record(("x",), value)
        gauge.record(("x",), value)
    assert counter.samples == {("x",): 3.5}
    assert gauge.samples == {("x",): 1.5}


def test_a_histogram() -> None:
    """A value on a bound counts for it."""
    family = Family("h", "histogram", "H.", ("a",), SIZES)
    for value in (1, 1, 2, 3, 256, 257):
        family.record(("x",), value)
    found = samples_of(text_of([family]).decode())
    buckets = {dict(labels)["le"]: value for (name, labels), value in found.items() if name == "h_bucket"}
    assert list(buckets) == ["1.0", "2.0", "4.0", "8.0", "16.0", "32.0", "64.0", "128.0", "256.0", "+Inf"]
    assert list(buckets.values()) == [2, 3, 4, 4, 4, 4, 4, 4, 5, 6]
    assert found["h_count", (("a", "x"),)] == 6
    assert found["h_sum", (("a", "x"),)] == 520


def test_the_usual_bounds() -> None:
    family = DEFAULT.models["HandlerTime"].family()
    assert family.bounds == USUAL
    assert family.height == 1
    assert Family("h", "histogram", "", ()).height == len(USUAL) + 3


def test_forgetting() -> None:
    family, times = Family("g", "gauge", "", ("a",)), Family("h", "histogram", "", ("a",))
    for each in (family, times):
        each.record(("x",), 1)
        each.record(("y",), 1)
        each.forget(lambda labels: labels == ("x",))
        assert list(each.held) == [("y",)]


def test_asking_for_some() -> None:
    family = Family("h", "histogram", "", ())
    assert is_asked_for(family, ())
    assert is_asked_for(family, ["x", "h"])
    assert is_asked_for(family, ["h_bucket"])
    assert not is_asked_for(family, ["x"])


values = st.floats() | st.integers().map(float)


@given(st.text(), st.dictionaries(st.tuples(st.text(), st.text()), values, max_size=5))
def test_whatever_a_label_says_is_read_back(text: str, held: dict[tuple[str, str], float]) -> None:
    """A help of any text, too; what is no text of UTF-8 becomes a question mark."""
    family = Family("g", "gauge", text, ("a", "b"))
    for labels, value in held.items():
        family.set(labels, value)
    found = samples_of(text_of([family]).decode())
    expected = {("g", (("a", a), ("b", b))): value for (a, b), value in held.items()}
    assert {key: repr(value) for key, value in found.items()} == {key: repr(value) for key, value in expected.items()}


def test_what_is_no_text_is_shown_all_the_same() -> None:
    family = Family("g", "gauge", "\ud800", ("a",))
    family.set(("\udcff",), math.inf)
    family.set(("x",), -math.inf)
    assert b'g{a="?"} +Inf\ng{a="x"} -Inf\n' in text_of([family])
