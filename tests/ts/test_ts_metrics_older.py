"""The older metrics API: metrics that are kept and emitted together, and what goes with them."""

from __future__ import annotations

import io
import logging
import os
import re
from typing import Any
from uuid import UUID

import pytest

from ts.metrics.dimension import Dimension
from ts.metrics.metric import Metric
from ts.metrics.metric_type_enum import MetricTypes
from ts.metrics.metrics_store import MetricsStore
from ts.metrics.process_memory_metric import check_process_mem_usage
from ts.service import emit_metrics

TAIL = r"\|#hostname:[^,]+,\d+"


def test_a_metric_prints_what_the_server_collects() -> None:
    metric = Metric("a", 1.5, "ms", [Dimension("Level", "Host"), Dimension("k", 2)], "id")
    assert re.fullmatch(rf"a\.Milliseconds:1\.5\|#Level:Host,k:2\|#type:COUNTER{TAIL},id", str(metric))
    metric.metric_type = MetricTypes.GAUGE
    assert "#type:GAUGE" in str(metric)
    assert re.fullmatch(rf"b\.km:1\|#\|#type:COUNTER{TAIL}", str(Metric("b", 1, "km", [])))


def test_a_counter_adds_and_others_replace() -> None:
    counter, other = Metric("a", 1, "count", [], None, "counter"), Metric("a", 1, "count", [])
    for metric in (counter, other):
        metric.update(5)
    assert (counter.value, other.value) == (6, 5)


@pytest.fixture
def store() -> MetricsStore:
    return MetricsStore({0: "x", 1: "y"}, "m")


def test_the_store_keeps_each_metric_once(store: MetricsStore) -> None:
    store.add_counter("loops", 1, None, [Dimension("k", "v")])
    store.add_counter("loops", 2, None, [Dimension("k", "v")])
    store.add_counter("loops", -1, None, [Dimension("k", "v")])
    store.add_counter("loops", 7, 1)
    store.add_percent("share", 10)
    store.add_percent("share", 20)
    assert [(metric.name, metric.value, metric.request_id) for metric in store.store] == [
        ("loops", 2, "x,y"),
        ("loops", 7, "y"),
        ("share", 20, "x,y"),
    ]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (("add_metric", "a", 1, "km", 0), r"a\.km:1\|#ModelName:m,Level:Model\|#type:COUNTER.*,x"),
        (("add_time", "a", 1, 1, "s"), r"a\.Seconds:1\|#ModelName:m,Level:Model\|#type:GAUGE.*,y"),
        (("add_size", "a", 1), r"a\.Megabytes:1\|#ModelName:m,Level:Model\|#type:GAUGE.*,x,y"),
        (("add_percent", "a", 1, 0), r"a\.Percent:1\|#ModelName:m,Level:Model\|#type:GAUGE.*,x"),
        (("add_error", "a", "no file"), rf"a\.unit:no file\|#ModelName:m,Level:Error\|#type:COUNTER{TAIL}"),
    ],
)
def test_arguments_mean_what_their_names_say(store: MetricsStore, call: tuple[object, ...], line: str) -> None:
    """Upstream swaps some of them when they are given by position."""
    name, *arguments = call
    getattr(store, str(name))(*arguments)
    assert re.fullmatch(line, str(store.store[0]))


@pytest.mark.parametrize("ids", ["x", UUID(int=7), {0: UUID(int=7)}])
@pytest.mark.parametrize("idx", [None, 0])
def test_request_ids_may_be_anything(ids: Any, idx: int | None) -> None:
    store = MetricsStore(ids, "m")
    store.add_counter("a", 1, idx)
    assert str(store.store[0]).endswith(f",{ids[0] if isinstance(ids, dict) else ids}")


def test_a_wrong_unit_is_a_value_error(store: MetricsStore) -> None:
    with pytest.raises(ValueError, match="must be one of ms, s"):
        store.add_time("a", 1, None, "minutes")
    with pytest.raises(ValueError, match="must be one of MB"):
        store.add_size("a", 1, None, "TB")
    assert store.store == []


def test_what_was_kept_is_emitted_in_order(store: MetricsStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.add_counter("first", 1)
    store.add_counter("second", 1)
    emit_metrics(store.store)
    emit_metrics(None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(".")[0] for line in lines] == ["[METRICS]first", "[METRICS]second"]


def test_memory_of_processes_is_logged_by_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    own = os.getpid()
    check_process_mem_usage(io.StringIO(f"{own}, 4194305,,nonsense\n{own}\n"))
    told = dict(message.split(":") for message in caplog.messages if re.fullmatch(r"\w+:\d+", message))
    assert told.keys() == {str(own), "4194305", "nonsense"}
    assert told["4194305"] == told["nonsense"] == "0"
    assert 5 << 20 < int(told[str(own)]) < 1 << 40
    assert [record.levelname for record in caplog.records].count("ERROR") == 2
