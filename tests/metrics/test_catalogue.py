"""Which metrics there are: those of the contract, and those of a metrics file (spec/server.md 10.3 and 10.4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tserve.errors import BadConfiguration
from tserve.metrics.catalogue import DEFAULT, Definition, read_catalogue

# As the specification has it: name, type, unit, labels.
TABLE = """
Requests2XX counter Count Level,Hostname
Requests4XX counter Count Level,Hostname
Requests5XX counter Count Level,Hostname
ts_inference_requests_total counter Count model_name,model_version,hostname
ts_inference_latency_microseconds counter Microseconds model_name,model_version,hostname
ts_queue_latency_microseconds counter Microseconds model_name,model_version,hostname
QueueTime gauge Milliseconds Level,Hostname
WorkerThreadTime gauge Milliseconds Level,Hostname
WorkerLoadTime gauge Milliseconds WorkerName,Level,Hostname
CPUUtilization gauge Percent Level,Hostname
MemoryUtilization gauge Percent Level,Hostname
DiskUtilization gauge Percent Level,Hostname
MemoryUsed gauge Megabytes Level,Hostname
MemoryAvailable gauge Megabytes Level,Hostname
DiskUsage gauge Gigabytes Level,Hostname
DiskAvailable gauge Gigabytes Level,Hostname
GPUMemoryUtilization gauge Percent Level,DeviceId,Hostname
GPUUtilization gauge Percent Level,DeviceId,Hostname
GPUMemoryUsed gauge Megabytes Level,DeviceId,Hostname
"""
FILE = """
dimensions:
  - &model "ModelName"
  - &level "Level"
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Count, dimensions: [*level, "Hostname"]}
  histogram:
    - {name: QueueTime, unit: Milliseconds, dimensions: [Level]}
model_metrics:
  counter:
    - {name: Seen, unit: count, dimensions: [*model, *level]}
  gauge:
    - {name: Bare, unit: ms, dimensions: []}
  histogram:
"""


def test_the_contracts_metrics() -> None:
    table = [line.split() for line in TABLE.split("\n") if line]
    expected = {name: Definition(name, kind, unit, tuple(labels.split(","))) for name, kind, unit, labels in table}
    assert DEFAULT.server == expected
    assert DEFAULT.models == {
        name: Definition(name, "gauge", "ms", ("ModelName", "Level", "Hostname"))
        for name in ("HandlerTime", "PredictionTime")
    }
    assert read_catalogue(None) is DEFAULT


def test_a_file(tmp_path: Path) -> None:
    """It stands for the contract's metrics; a model's get the host's name behind their dimensions."""
    file = tmp_path / "metrics.yaml"
    file.write_text(FILE)
    catalogue = read_catalogue(file)
    assert catalogue.server == {
        "Requests2XX": Definition("Requests2XX", "counter", "Count", ("Level", "Hostname")),
        "QueueTime": Definition("QueueTime", "histogram", "Milliseconds", ("Level",)),
    }
    assert catalogue.models == {
        "Seen": Definition("Seen", "counter", "count", ("ModelName", "Level", "Hostname")),
        "Bare": Definition("Bare", "gauge", "ms", ("Hostname",)),
    }
    assert catalogue.models["Bare"].help == "Torchserve prometheus gauge metric with unit: ms"


def test_a_file_without_metrics(tmp_path: Path) -> None:
    file = tmp_path / "metrics.yaml"
    file.write_text("model_metrics:\n")
    assert read_catalogue(file).server == read_catalogue(file).models == {}


ONE = "model_metrics: {gauge: [{name: %s, unit: ms, dimensions: %s}]}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "cannot be read: while parsing"),
        ("!!python/object/apply:os.system [id]", "cannot be read: could not determine a constructor"),
        ("\x00", "cannot be read: unacceptable character"),
        ("[" * 5000, "cannot be read"),
        ("", "has no section model_metrics"),
        ("[]", "has no section model_metrics"),
        ("ts_metrics: {}", "has no section model_metrics"),
        ("model_metrics: {}\nmore: {}", "more: is no section; allowed are dimensions, ts_metrics, model_metrics"),
        ("model_metrics: []\nts_metrics: [1]", "ts_metrics: must hold lists of metrics by their type"),
        ("model_metrics: {summary: []}", "model_metrics.summary: must be one of counter, gauge, histogram"),
        ("model_metrics: {gauge: {}}\nts_metrics: {gauge: {a: 1}}", "ts_metrics.gauge: must be one of"),
        ("model_metrics: {gauge: [name]}", "model_metrics.gauge: each metric has name, unit and dimensions"),
        ("model_metrics: {gauge: [{name: a, unit: b}]}", "each metric has name, unit and dimensions, but there is"),
        (ONE % ("a-b", "[]"), "model_metrics.gauge: no name of a metric: 'a-b'"),
        (ONE % ("tserve_mine", "[]"), "no name of a metric: 'tserve_mine'"),
        (ONE % ("a", "Level"), "the dimensions of a must be a list of names, not 'Level'"),
        (ONE % ("a", "[1]"), "the dimensions of a must be a list of names, not [1]"),
        (ONE % ("a", "[b c]"), "a has no name of a dimension: 'b c'"),
        (ONE % ("a", "[__b]"), "a has no name of a dimension: '__b'"),
        (ONE % ("a", "[b, b]"), "a has a dimension twice"),
        ((ONE % ("a", "[le]")).replace("gauge", "histogram"), "a has no name of a dimension: 'le'"),
        (ONE % ("a", "[]}, {name: a, unit: s, dimensions: []"), "model_metrics.gauge: a is there twice"),
        (ONE % ("a", "[]") + "\nts_metrics: {gauge: [{name: a, unit: s, dimensions: []}]}", "a: is in ts_metrics, too"),
    ],
)
def test_refusals(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.yaml"
    file.write_text(content)
    with pytest.raises(BadConfiguration) as refused:
        read_catalogue(file)
    assert str(refused.value).startswith(f"metrics_config={file}: ")
    assert said in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"cannot be read: .*No such file"):
        read_catalogue(tmp_path / "none.yaml")
