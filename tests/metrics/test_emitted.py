"""What handlers emit: which of it is taken, how much of it is kept, and what is said of the rest."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from tests.metrics.lines import line, samples_of, shown
from tserve.metrics import emitted
from tserve.metrics.catalogue import Catalogue, Definition
from tserve.metrics.exposition import text_of
from tserve.metrics.files import MetricsFiles
from tserve.metrics.recorder import Metrics

HOST = socket.gethostname()
MODEL = ("ModelName", "Level", "Hostname")
LISTED = Catalogue(
    server={},
    models={
        definition.name: definition
        for definition in (
            Definition("seen", "counter", "count", MODEL),
            Definition("size", "gauge", "MB", MODEL),
            Definition("took", "histogram", "ms", MODEL),
        )
    },
)


def custom(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    return {name: samples for name, samples in shown(metrics).items() if not name.startswith("tserve_")}


def dropped(metrics: Metrics) -> dict[str, float]:
    found = shown(metrics, "tserve_metrics_dropped_total").get("tserve_metrics_dropped_total", {})
    return {reason: count for (reason,), count in found.items()}


def test_listed_ones_are_of_the_listed_type() -> None:
    """Whatever the line says."""
    metrics = Metrics(LISTED)
    lines = [line(name, value, kind="GAUGE") for name in LISTED.models for value in (2, 3)]
    metrics.take_emitted(lines)
    metrics.take_emitted(lines)
    found, labels = custom(metrics), ("m", "Model", HOST)
    assert (found["seen"], found["size"]) == ({labels: 10}, {labels: 3})
    assert (found["took_count"], found["took_sum"]) == ({labels: 4}, {labels: 10})


def test_dimensions_go_by_name() -> None:
    metrics = Metrics(LISTED)
    metrics.take_emitted([line("size", 1, labels="Level:Model,Hostname:else,ModelName:m")])
    assert custom(metrics) == {"size": {("m", "Model", HOST): 1}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (line("else", 1), "unlisted"),
        (line("size", 1, labels="ModelName:m"), "labels"),
        (line("size", 1, labels="ModelName:m,Level:Model,more:x"), "labels"),
        (line("seen", -1), "malformed"),
        ("hello", "malformed"),
        ("hello:1|#x|#hostname:vm,1", "malformed"),
        (None, "malformed"),
        ({"a": 1}, "malformed"),
    ],
)
def test_what_is_not_taken_is_counted_and_said_once(
    text: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(LISTED)
    for _ in range(3):
        metrics.take_emitted([text])
    metrics.take_emitted([line("size", 1)])
    assert dropped(metrics) == {reason: 3}
    assert custom(metrics) == {"size": {("m", "Model", HOST): 1}}
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].getMessage().isprintable()


def test_what_was_lost_on_the_way_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(LISTED)
    metrics.take_emitted([], lost=5)
    metrics.take_emitted([line("size", 1)], lost=2)
    metrics.take_emitted([], lost=-1)
    assert dropped(metrics) == {"rate": 7}
    assert [record.getMessage() for record in caplog.records] == ["a worker emits more metrics than are taken"]


def test_warnings_are_bounded(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitted, "MOST_WARNINGS", 3)
    metrics = Metrics(LISTED)
    metrics.take_emitted([line(f"else{number}\n", 1) for number in range(10)])
    assert dropped(metrics) == {"unlisted": 10}
    assert len(caplog.records) == 3
    assert all(record.getMessage().isprintable() for record in caplog.records)


# -- auto-detection


def test_detected_ones_are_as_their_first_line_has_them() -> None:
    metrics = Metrics(LISTED, auto_detect=True)
    for kind in ("COUNTER", "GAUGE", "HISTOGRAM"):
        metrics.take_emitted([line(kind, value, kind=kind, unit="s", labels="b:1,a:2") for value in (4, 5)])
    page = text_of(metrics.page()).decode()
    assert "# HELP COUNTER Torchserve prometheus counter metric with unit: s\n# TYPE COUNTER counter\n" in page
    assert f'GAUGE{{Hostname="{HOST}",a="2",b="1"}} 5.0\n' in page
    found = custom(metrics)
    assert found["COUNTER"] == {("1", "2", HOST): 9}
    assert found["HISTOGRAM_sum"] == {("1", "2", HOST): 9}


@pytest.mark.parametrize(
    "text",
    [
        line("no name", 1),
        line("tserve_info", 1),
        line("QueueTime", 1),
        line("a", 1, kind="SUMMARY"),
        line("a", 1, kind="HISTOGRAM", labels="le:1"),
        line("a", 1, labels="b c:1"),
        line("a", 1, labels=":1"),
        line("a", 1, labels="b:1,b:2"),
    ],
)
def test_what_cannot_be_detected(text: str) -> None:
    metrics = Metrics(LISTED, auto_detect=True)
    metrics.take_emitted([text])
    assert custom(metrics) == {}
    assert dropped(metrics) == {"malformed": 1}


def test_other_dimensions_than_the_first_line_had() -> None:
    metrics = Metrics(LISTED, auto_detect=True)
    metrics.take_emitted([line("a", 1, labels="b:1"), line("a", 2, labels="c:1")])
    assert custom(metrics) == {"a": {("1", HOST): 1}}
    assert dropped(metrics) == {"labels": 1}


# -- limits


def test_series_of_a_metric_are_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Those that are there go on."""
    monkeypatch.setattr(emitted, "MOST_SERIES", 3)
    metrics = Metrics(LISTED)
    flood = [line("seen", 1, labels=f"ModelName:{number},Level:Model") for number in range(5)]
    metrics.take_emitted([*flood, *flood, line("size", 1)])
    assert custom(metrics)["seen"] == {(str(number), "Model", HOST): 2 for number in range(3)}
    assert custom(metrics)["size"] == {("m", "Model", HOST): 1}
    assert dropped(metrics) == {"series": 4}
    assert [record.getMessage() for record in caplog.records] == ["metric seen has 3 series: no more are taken"]


def test_the_page_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A histogram takes up a line for each bound."""
    monkeypatch.setattr(emitted, "MOST_LINES", 40)
    metrics = Metrics(LISTED)
    metrics.take_emitted([line("took", 1, labels=f"ModelName:{number},Level:Model") for number in range(5)])
    metrics.take_emitted([line("size", 1, labels=f"ModelName:{number},Level:Model") for number in range(10)])
    assert [len(custom(metrics)[name]) for name in ("took_count", "size")] == [2, 6]
    assert dropped(metrics) == {"series": 7}


def test_detected_metrics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitted, "MOST_DETECTED", 2)
    metrics = Metrics(LISTED, auto_detect=True)
    metrics.take_emitted([line(name, 1) for name in ("a", "b", "c", "size")])
    assert set(custom(metrics)) == {"a", "b", "size"}
    assert dropped(metrics) == {"metrics": 1}


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgetting it changes nothing."""
    monkeypatch.setattr(emitted, "MOST_KNOWN", 2)
    metrics = Metrics(LISTED)
    lines = [line("seen", 1, labels=f"ModelName:{number % 5},Level:Model") for number in range(50)]
    metrics.take_emitted([*lines, *([line("else", 1)] * 3)])
    assert custom(metrics)["seen"] == {(str(number), "Model", HOST): 10 for number in range(5)}
    assert dropped(metrics) == {"unlisted": 3}


# -- models that go


def test_models_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what a last batch has said after that; names that were never a model's stay, and so do other dimensions."""
    monkeypatch.setattr(emitted, "MOST_LINES", 3)
    metrics = Metrics(LISTED, auto_detect=True)
    metrics.keep_only({("m", "1"), ("n", "1")})
    last = line("size", 1)
    metrics.take_emitted([last, line("size", 1, labels="ModelName:part,Level:Model"), line("free", 1, labels="a:b")])
    metrics.keep_only({("n", "1")})
    metrics.take_emitted([last])
    metrics.keep_only({("n", "1")})
    assert custom(metrics) == {"size": {("part", "Model", HOST): 1}, "free": {("b", HOST): 1}}
    metrics.take_emitted([line("size", 1, labels="ModelName:n,Level:Model")])  # in the room that it has left
    assert len(custom(metrics)["size"]) == 2
    assert dropped(metrics) == {}


def test_detected_metrics_of_models_that_are_gone_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitted, "MOST_DETECTED", 1)
    metrics = Metrics(LISTED, auto_detect=True)
    metrics.keep_only({("m", "1")})
    metrics.take_emitted([line("a", 1)])
    metrics.keep_only(set())
    metrics.take_emitted([line("b", 1)])
    assert set(custom(metrics)) == {"b"}
    assert "# TYPE a " not in text_of(metrics.page()).decode()


# -- into a file


def test_a_file_takes_every_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to fill but the disk, which rotation bounds."""
    monkeypatch.setattr(emitted, "MOST_SERIES", 1)
    files = MetricsFiles(tmp_path)
    metrics = Metrics(LISTED, mode="log", files=files)
    metrics.take_emitted([line("seen", 1, labels=f"ModelName:{number},Level:Model", ids="") for number in range(3)])
    metrics.keep_only(set())
    files.flush()
    written = [text.partition(" - ")[2] for text in (tmp_path / "model_metrics.log").read_text().splitlines()]
    assert [text.partition("timestamp")[0] for text in written] == [
        f"seen.count:1.0|#ModelName:{number},Level:Model|#hostname:{HOST}," for number in range(3)
    ]
    assert custom(metrics) == {}
    assert dropped(metrics) == {}


@pytest.mark.parametrize("first", ["x", "x_count"])
def test_no_line_of_the_page_is_of_two_metrics(first: str) -> None:
    """A histogram has lines of its own under names that another metric might have."""
    metrics = Metrics(LISTED, auto_detect=True)
    lines = {"x": line("x", 1, kind="HISTOGRAM"), "x_count": line("x_count", 1)}
    metrics.take_emitted([lines.pop(first), *lines.values()])
    names = [sample.name for sample in samples_of(text_of(metrics.page()).decode())]
    assert names.count("x_count") == 1
    assert shown(metrics)["tserve_metrics_dropped_total"] == {("malformed",): 1}


def test_texts_that_look_the_same_are_one_series() -> None:
    metrics = Metrics(LISTED, auto_detect=True)
    metrics.take_emitted([line("x", 1, labels="ModelName:\ud800"), line("x", 2, labels="ModelName:\ud801")])
    assert list(shown(metrics)["x"].values()) == [2]
