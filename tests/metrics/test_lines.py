"""The line that a metric is: read as `ts` writes it, and whatever else comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.metrics.lines import line
from ts.metrics.emission import line_of
from ts.metrics.metric_type_enum import MetricTypes
from tserve.metrics.exposition import text_of
from tserve.metrics.lines import MOST_CHARACTERS, Series, read, split
from tserve.metrics.recorder import Metrics


def series_of(text: str) -> Series | None:
    parts = split(text)
    return read(parts[0]) if parts is not None else None


@pytest.mark.parametrize("kind", MetricTypes)
@pytest.mark.parametrize("ids", ["", "one", "one,two"])
def test_what_handlers_emit(kind: MetricTypes, ids: str) -> None:
    text = line_of("Seen", "ms", 1.5, [("ModelName", "m"), ("Level", "Model")], kind, ids)
    parts = split(text)
    assert parts is not None
    assert parts[1:] == (1.5, ids)
    assert read(parts[0]) == Series("Seen", "Milliseconds", (("ModelName", "m"), ("Level", "Model")), kind.value)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a.ms:1|#|#type:GAUGE|#hostname:h,1", ()),
        ("a.ms:1|#a:b:c|#type:GAUGE|#hostname:h,1", (("a", "b:c"),)),
        ("a.ms:1|#a:b,c,d:e|#type:GAUGE|#hostname:h,1", (("a", "b,c"), ("d", "e"))),
        ("a.ms:1|#a:|#x|#type:GAUGE|#hostname:h,1", (("a", "|#x"),)),
        ("a.ms:1|#a:|#hostname:|#type:GAUGE|#hostname:h,1", (("a", "|#hostname:"),)),
    ],
)
def test_labels(text: str, labels: tuple[tuple[str, str], ...]) -> None:
    assert series_of(text) == Series("a", "ms", labels, "gauge")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a.ms:1",
        "a.ms:1|#a:b",
        "a.ms:1|#a:b|#type:GAUGE",
        "a.ms:1|#a:b|#hostname:h,1",
        "a.ms:one|#a:b|#type:GAUGE|#hostname:h,1",
        "a.ms:nan|#a:b|#type:GAUGE|#hostname:h,1",
        "a.ms:1e999|#a:b|#type:GAUGE|#hostname:h,1",
        "a:1|#a:b|#type:GAUGE|#hostname:h,1",
        ".ms:1|#a:b|#type:GAUGE|#hostname:h,1",
        "a.ms:1|#a|#type:GAUGE|#hostname:h,1",
        f"a.ms:1|#a:{'x' * MOST_CHARACTERS}|#type:GAUGE|#hostname:h,1",
    ],
)
def test_what_is_no_metric(text: str) -> None:
    assert series_of(text) is None


def test_many_ids_are_no_fault() -> None:
    """A batch may be large, and each of its requests has an id."""
    assert split(line("a", 1, ids=",".join(["x" * 36] * 1000))) is not None


parts = st.sampled_from(["|#", ":", ",", ".", "type:", "hostname:", "COUNTER", "HISTOGRAM", "1", "-1", "\n", '"', "\\"])
soups = st.lists(parts | st.text(max_size=5)).map("".join)
near = st.builds(
    "{}.{}:{}|#{}:{},{}:{}|#type:{}|#hostname:h,1,{}".format,
    *[st.text(max_size=8) | st.sampled_from(["a", "le", "Hostname", "ModelName", "QueueTime"]) for _ in range(2)],
    st.floats() | st.integers() | st.text(max_size=4),
    *[st.text(max_size=8) | st.sampled_from(["a", "le", "Hostname", "ModelName"]) for _ in range(4)],
    st.sampled_from(["COUNTER", "GAUGE", "HISTOGRAM", "SUMMARY", ""]),
    st.text(max_size=8),
)
anything = st.none() | st.integers() | st.lists(st.text(), max_size=2) | st.text() | soups | near


@given(st.lists(anything, max_size=20), st.booleans())
def test_no_line_does_harm(lines: list[object], auto_detect: bool) -> None:
    """Whatever a worker sends, the page can be read, and lists each metric once."""
    metrics = Metrics(auto_detect=auto_detect)
    metrics.take_emitted(lines, lost=0)
    metrics.keep_only({("m", "1")})
    families = list(text_string_to_metric_families(text_of(metrics.page()).decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    kept = [family for family in families if not family.name.startswith("tserve_") and family.samples]
    dropped = sum(
        sample.value for family in families if family.name == "tserve_metrics_dropped" for sample in family.samples
    )
    assert len(kept) + dropped <= len(lines)
    assert not lines or len(kept) + dropped > 0
