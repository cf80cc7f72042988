"""`context.metrics`: what each call emits, refuses and raises (spec/inference.md section 12)."""

from __future__ import annotations

import copy
import io
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ts
from ts.metrics.caching_metric import CachingMetric
from ts.metrics.dimension import Dimension
from ts.metrics.metric_cache_errors import MetricsCacheKeyError, MetricsCacheValueError
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.metrics.metric_type_enum import MetricTypes
from ts.metrics.unit import Units

IDS = "id-0,id-1"
LINE = re.compile(
    r"\[METRICS\](?P<name>[^.]+)\.(?P<unit>\w+):(?P<value>[^|]+)\|#(?P<labels>[^|]*)\|#type:(?P<type>[A-Z]+)"
    rf"\|#hostname:{re.escape(socket.gethostname())},(?P<time>\d+)(?:,(?P<ids>.+))?"
)
Emitted = Callable[[], list[str]]


@pytest.fixture
def metrics() -> MetricsCacheYamlImpl:
    made = MetricsCacheYamlImpl()
    made.model_name = "m"
    made.set_request_ids(IDS)
    return made


@pytest.fixture
def emitted(capsys: pytest.CaptureFixture[str]) -> Emitted:
    """The lines since the last call: `name.unit:value labels type ids`, each checked against the whole format."""

    def read() -> list[str]:
        short = []
        for line in capsys.readouterr().out.splitlines():
            found = LINE.fullmatch(line)
            assert found, line
            assert found["time"] > "1700000000"
            short.append("{name}.{unit}:{value} {labels} {type} {ids}".format(**found.groupdict()))
        return short

    return read


DEFAULT = "ModelName:m,Level:Model"


@pytest.mark.parametrize(
    ("add", "line"),
    [
        (lambda m: m.add_metric("a", 7, "km"), f"a.km:7 {DEFAULT} COUNTER {IDS}"),
        (lambda m: m.add_metric("a", 7, ""), f"a.unit:7 {DEFAULT} COUNTER {IDS}"),
        (
            lambda m: m.add_metric("a", 0.5, "s", 1, [], MetricTypes.HISTOGRAM),
            f"a.Seconds:0.5 {DEFAULT} HISTOGRAM id-1",
        ),
        (lambda m: m.add_metric(name="a", value=7, unit="B", idx="id-x"), f"a.Bytes:7 {DEFAULT} COUNTER id-x"),
        (lambda m: m.add_counter("a", 1), f"a.Count:1 {DEFAULT} COUNTER {IDS}"),
        (lambda m: m.add_counter("a", 0, 0), f"a.Count:0 {DEFAULT} COUNTER id-0"),
        (lambda m: m.add_counter("a", True, None, []), f"a.Count:1 {DEFAULT} COUNTER {IDS}"),
        (lambda m: m.add_time("a", 12.5), f"a.Milliseconds:12.5 {DEFAULT} GAUGE {IDS}"),
        (lambda m: m.add_time("a", -1, 0, "s"), f"a.Seconds:-1 {DEFAULT} GAUGE id-0"),
        (lambda m: m.add_size("a", 3), f"a.Megabytes:3 {DEFAULT} GAUGE {IDS}"),
        (lambda m: m.add_size("a", 3, 1, "kB"), f"a.Kilobytes:3 {DEFAULT} GAUGE id-1"),
        (lambda m: m.add_size("a", 3, unit="GB"), f"a.Gigabytes:3 {DEFAULT} GAUGE {IDS}"),
        (lambda m: m.add_percent("a", 42), f"a.Percent:42 {DEFAULT} GAUGE {IDS}"),
        (
            lambda m: m.add_percent(name="a", value=5, idx=None, dimensions=[], metric_type=MetricTypes.COUNTER),
            f"a.Percent:5 {DEFAULT} COUNTER {IDS}",
        ),
        (lambda m: m.add_error("a", 1), "a.unit:1 ModelName:m,Level:Error COUNTER None"),
        (lambda m: m.add_time("a", torch.tensor([1.5])), f"a.Milliseconds:1.5 {DEFAULT} GAUGE {IDS}"),
        (lambda m: m.add_counter("a", torch.tensor(3)), f"a.Count:3 {DEFAULT} COUNTER {IDS}"),
        (
            lambda m: m.add_counter("a", 1, None, [Dimension("Level", "Host"), Dimension("Method", "pre")]),
            f"a.Count:1 Level:Host,Method:pre,ModelName:m COUNTER {IDS}",
        ),
        (lambda m: m.add_counter("a", 1, None, (Dimension("k", 2),)), f"a.Count:1 k:2,{DEFAULT} COUNTER {IDS}"),
    ],
)
def test_each_call_is_one_line(
    metrics: MetricsCacheYamlImpl, emitted: Emitted, add: Callable[[Any], None], line: str
) -> None:
    assert add(metrics) is None  # type: ignore[func-returns-value]
    assert emitted() == [line]


def test_a_line_break_in_a_value_does_not_make_two_lines(metrics: MetricsCacheYamlImpl, emitted: Emitted) -> None:
    metrics.add_counter("a", 1, 0, [Dimension("k", "one\r\ntwo")])
    assert emitted() == [f"a.Count:1 k:one  two,{DEFAULT} COUNTER id-0"]


def test_the_callers_list_gets_the_default_dimensions_once(metrics: MetricsCacheYamlImpl, emitted: Emitted) -> None:
    dimensions = [Dimension("k", "v")]
    metrics.add_counter("a", 1, None, dimensions)
    metrics.add_counter("a", 2, None, dimensions)
    assert [str(dimension) for dimension in dimensions] == ["k:v", "ModelName:m", "Level:Model"]
    assert emitted() == [f"a.Count:{n} k:v,{DEFAULT} COUNTER {IDS}" for n in (1, 2)]


def test_calls_without_dimensions_share_none(metrics: MetricsCacheYamlImpl, emitted: Emitted) -> None:
    metrics.add_error("first", 1)
    metrics.add_counter("second", 1)
    assert emitted()[1] == f"second.Count:1 {DEFAULT} COUNTER {IDS}"


def test_without_requests_the_level_is_error(emitted: Emitted) -> None:
    metrics = MetricsCacheYamlImpl()
    metrics.add_counter("a", 1)
    assert emitted() == ["a.Count:1 ModelName:None,Level:Error COUNTER None"]


def test_request_ids_are_taken_joined_or_as_a_list(metrics: MetricsCacheYamlImpl, emitted: Emitted) -> None:
    metrics.set_request_ids(["x", "y"])
    assert metrics.request_ids == "x,y"
    metrics.add_counter("a", 1, 1)
    metrics.set_request_ids("only")
    metrics.add_counter("a", 1, 5)
    assert [line.rpartition(" ")[2] for line in emitted()] == ["y", "only"]


def test_a_copy_has_requests_of_its_own(metrics: MetricsCacheYamlImpl, emitted: Emitted) -> None:
    """What an asynchronous worker relies on."""
    other = copy.copy(metrics)
    other.set_request_ids("theirs")
    metrics.add_counter("a", 1, 0)
    other.add_counter("a", 1)
    assert [line.rpartition(" ")[2] for line in emitted()] == ["id-0", "theirs"]


@pytest.mark.parametrize(
    ("add", "why"),
    [
        (lambda m: m.add_counter("a", -1), "a counter cannot be changed by -1"),
        (lambda m: m.add_metric("a", -0.5, "km"), "a counter cannot be changed by -0.5"),
        (lambda m: m.add_counter("a", "many"), "'many' is not a number"),
        (lambda m: m.add_time("a", None), "None is not a number"),
        (lambda m: m.add_time("a", torch.ones(2)), "is not a number"),
        (lambda m: m.add_counter("a", 1, 2), "no request 2 in id-0,id-1"),
        (lambda m: m.add_metric_to_cache("a", "s", ["k"]).add_or_update(1), "0 values for the dimensions ['k']"),
        (lambda m: m.add_metric_to_cache("a", "s").add_or_update(1, ["v"]), "1 values for the dimensions []"),
    ],
)
def test_what_cannot_be_emitted_is_an_error_in_the_log(
    metrics: MetricsCacheYamlImpl,
    emitted: Emitted,
    caplog: pytest.LogCaptureFixture,
    add: Callable[[Any], None],
    why: str,
) -> None:
    add(metrics)
    assert emitted() == []
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "metric a" in record.message
    assert why in record.message


@pytest.mark.parametrize(
    "add",
    [
        lambda m: m.add_time("a", 1, None, "us"),
        lambda m: m.add_size("a", 1, None, "KB"),
        lambda m: m.add_size("a", 1, unit="ms"),
        lambda m: m.add_metric("a", 1, "s", metric_type="meter"),
    ],
)
def test_a_wrong_unit_or_type_is_a_value_error(
    metrics: MetricsCacheYamlImpl, emitted: Emitted, add: Callable[[Any], None]
) -> None:
    with pytest.raises(ValueError, match=r"(must be|is) one of") as caught:
        add(metrics)
    assert type(caught.value) is MetricsCacheValueError
    assert emitted() == []


def test_registering_emits_nothing_and_replaces(metrics: MetricsCacheYamlImpl, emitted: Emitted) -> None:
    first = metrics.add_metric_to_cache("a", "km", ["k"])
    second = metrics.add_metric_to_cache(metric_name="a", unit="s", dimension_names=["k", "l"])
    gauge = metrics.add_metric_to_cache("a", "s", metric_type=MetricTypes.GAUGE)
    assert isinstance(second, CachingMetric)
    assert emitted() == []
    assert metrics.get_metric("a") is second is not first
    assert metrics.get_metric(metric_name="a", metric_type=MetricTypes.GAUGE) is gauge
    assert metrics.cache[MetricTypes.COUNTER]["a"] is second
    assert set(metrics.cache_keys()) == {MetricTypes.COUNTER, MetricTypes.GAUGE}
    assert metrics.store == []


def test_a_metric_that_nobody_registered_is_a_key_error(metrics: MetricsCacheYamlImpl) -> None:
    metrics.add_metric_to_cache("a", "s", metric_type=MetricTypes.GAUGE)
    with pytest.raises(KeyError) as caught:
        metrics.get_metric("a")
    assert type(caught.value) is MetricsCacheKeyError
    assert str(caught.value) == "There is no counter named 'a'."


def test_a_cached_metric_emits_by_values_or_by_dimensions(metrics: MetricsCacheYamlImpl, emitted: Emitted) -> None:
    metric = metrics.add_metric_to_cache("a", "km", ["x", "y"], MetricTypes.GAUGE)
    metric.add_or_update(value=1, dimension_values=["p", "q"], request_id="r")
    metric.add_or_update(2, ["p", 3])
    metric.update(value=3, request_id="r", dimensions=[Dimension("y", "q"), Dimension("x", "p")])
    metric.update(4, dimensions=[Dimension("other", "p"), Dimension("names", "q")])
    assert emitted() == [
        "a.km:1 x:p,y:q GAUGE r",
        "a.km:2 x:p,y:3 GAUGE None",
        "a.km:3 x:p,y:q GAUGE r",
        "a.km:4 x:p,y:q GAUGE None",
    ]


def test_a_registered_metric_keeps_its_dimensions_when_added(
    metrics: MetricsCacheYamlImpl, emitted: Emitted, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.add_metric_to_cache("a", "count", ["Level", "ModelName"])
    metrics.add_counter("a", 1)
    assert emitted() == [f"a.Count:1 Level:Model,ModelName:m COUNTER {IDS}"]
    metrics.add_counter("a", 1, None, [Dimension("k", "v")])
    assert emitted() == []
    assert "3 values for the dimensions ['Level', 'ModelName']" in caplog.text


FILE = """
dimensions:
  - &name "ModelName"
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Count, dimensions: []}
model_metrics:
  counter:
    - {name: Calls, unit: count, dimensions: [*name]}
  gauge:
    - {name: Calls, unit: ms, dimensions: [Level]}
  histogram:
"""


def test_a_metrics_file_fills_the_cache(tmp_path: Path, emitted: Emitted) -> None:
    file = tmp_path / "metrics.yaml"
    file.write_text(FILE)
    for source in (file, str(file)):
        metrics = MetricsCacheYamlImpl(source)
        assert {kind: set(named) for kind, named in metrics.cache.items()} == {
            MetricTypes.COUNTER: {"Calls"},
            MetricTypes.GAUGE: {"Calls"},
        }
        metrics.get_metric("Calls").add_or_update(2, ["m"])
        metrics.get_metric("Calls", MetricTypes.GAUGE).add_or_update(2, ["Host"])
        assert emitted() == ["Calls.Count:2 ModelName:m COUNTER None", "Calls.Milliseconds:2 Level:Host GAUGE None"]


def test_a_parsed_file_is_taken_too() -> None:
    metric = {"name": "a", "unit": "s", "dimensions": ["k"]}
    metrics = MetricsCacheYamlImpl(config_file_path={"model_metrics": {"histogram": [metric]}})
    assert metrics.get_metric("a", MetricTypes.HISTOGRAM).dimension_names == ["k"]


def test_without_a_file_the_metrics_of_every_server_are_known() -> None:
    metrics = MetricsCacheYamlImpl()
    for name in ("HandlerTime", "PredictionTime"):
        assert metrics.get_metric(name, MetricTypes.GAUGE).dimension_names == ["ModelName", "Level"]


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        ("ts_metrics: {}", MetricsCacheKeyError, "no section 'model_metrics'"),
        ("", MetricsCacheKeyError, "no section"),
        ("model_metrics: [1]", MetricsCacheValueError, "must hold lists"),
        ("model_metrics: {counter: {a: 1}}", MetricsCacheValueError, "must hold lists"),
        ("model_metrics: {counter: [a]}", MetricsCacheValueError, "must hold lists"),
        ("model_metrics: {counter: [{name: a, unit: s}]}", MetricsCacheKeyError, "lacks dimensions"),
        ("model_metrics: {meter: [{name: a, unit: s, dimensions: []}]}", MetricsCacheValueError, "not 'meter'"),
        ("model_metrics: {", MetricsCacheValueError, "cannot be read"),
        (None, MetricsCacheValueError, "cannot be read"),
    ],
)
def test_a_bad_metrics_file_says_why(tmp_path: Path, text: str | None, error: type[Exception], why: str) -> None:
    file = tmp_path / "metrics.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=why):
        MetricsCacheYamlImpl(str(file))


def test_units_have_words() -> None:
    units = Units().units
    assert units["kB"] == "Kilobytes"
    assert units[""] == units[None] == "unit"


class _Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("out", [None, _Closed()])
def test_without_an_output_a_metric_is_no_error(
    metrics: MetricsCacheYamlImpl, monkeypatch: pytest.MonkeyPatch, out: Any
) -> None:
    monkeypatch.setattr(sys, "stdout", out)
    metrics.add_counter("a", 1)


THREADS = """
import sys, threading
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

sys.stdout.reconfigure(line_buffering=True, write_through=False)
metrics = MetricsCacheYamlImpl()
metrics.set_request_ids("id")

def emit():
    for number in range(300):
        metrics.add_counter("a" * 200, number)

def talk():
    for number in range(300):
        print("a handler", "says", number)

threads = [threading.Thread(target=work) for work in (emit, talk, emit)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_lines_of_threads_do_not_mix() -> None:
    """Nor with what another thread prints in pieces."""
    environment = os.environ | {"PYTHONPATH": str(Path(ts.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "[METRICS]" in line]
    assert len(lines) == 600
    assert all(LINE.fullmatch(line) for line in lines)


def test_a_metric_first_used_by_many_threads_is_described_once(metrics: MetricsCacheYamlImpl, emitted: Emitted) -> None:
    threads = [threading.Thread(target=metrics.add_counter, args=("a", number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(emitted()) == [f"a.Count:{number} {DEFAULT} COUNTER {IDS}" for number in range(8)]
