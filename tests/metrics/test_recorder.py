"""What happens, as metrics: the contract's with their labels (spec/server.md 10.3), tserve's own, in each mode."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.metrics.lines import line, shown
from tserve.metrics.catalogue import DEFAULT, Catalogue, read_catalogue
from tserve.metrics.exposition import text_of
from tserve.metrics.files import MetricsFiles
from tserve.metrics.own import LIVE, OwnFamilies
from tserve.metrics.recorder import LEGACY, Metrics, Mode

HOST = socket.gethostname()
M1 = ("m", "1.0")


def one_of_each(metrics: Metrics) -> None:
    """Everything that can be recorded, once; a batch of two in 30 ms, of which the handler took 20."""
    for status in (200, 404, 503):
        metrics.http_answered("inference", "POST", "/predictions/{name}", status)
    metrics.grpc_answered("p.S/M", "OK", 0.1)
    metrics.prediction_asked("m", None)
    metrics.prediction_asked("m", "1.0")
    metrics.batch_begun(M1, 2, [0.001, 0.004])
    metrics.batch_answered(M1, seconds=0.03, worker_s=0.02, request_ids=["a", "b"])
    metrics.prediction_answered(M1, None, seconds=0.5, waited_s=0.001, ok=True)
    metrics.prediction_answered(M1, "1.0", seconds=0.25, waited_s=0.004, ok=False)
    metrics.request_refused(M1, "queue_full")
    metrics.worker_loaded(M1, "W-9000-m_1.0", 1.5)
    metrics.worker_restarts(M1, "crashed")
    metrics.host({"CPUUtilization": 12.5, "NotListed": 1.0}, [("0", {"GPUUtilization": 40, "GPUMemoryUsed": 7})])
    metrics.take_emitted([line("HandlerTime", 20)])


def test_the_contracts_metrics() -> None:
    metrics = Metrics()
    one_of_each(metrics)
    found = shown(metrics)
    assert {name: samples for name, samples in found.items() if not name.startswith("tserve_")} == {
        "Requests2XX": {("Host", HOST): 1},
        "Requests4XX": {("Host", HOST): 1},
        "Requests5XX": {("Host", HOST): 1},
        "ts_inference_requests_total": {("m", "default", HOST): 1, ("m", "1.0", HOST): 1},
        "ts_inference_latency_microseconds": {("m", "default", HOST): 500_000},
        "ts_queue_latency_microseconds": {("m", "default", HOST): 1000},
        "QueueTime": {("Host", HOST): 4},
        "WorkerThreadTime": {("Host", HOST): pytest.approx(10)},
        "WorkerLoadTime": {("W-9000-m_1.0", "Host", HOST): 1500},
        "CPUUtilization": {("Host", HOST): 12.5},
        "GPUUtilization": {("Host", "0", HOST): 40},
        "GPUMemoryUsed": {("Host", "0", HOST): 7},
        "PredictionTime": {("m", "Model", HOST): 20},
        "HandlerTime": {("m", "Model", HOST): 20},
    }


def test_tserves_own() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.live = lambda: [("tserve_queue_depth", M1, 3.0)]
    one_of_each(metrics)
    found = shown(metrics)
    assert found["tserve_info"] == {("1.2.3",): 1}
    assert found["tserve_http_requests_total"] == {
        ("inference", "POST", "/predictions/{name}", str(status)): 1 for status in (200, 404, 503)
    }
    assert found["tserve_grpc_requests_total"] == {("p.S/M", "OK"): 1}
    assert found["tserve_grpc_request_seconds_count"] == {("p.S/M",): 1}
    assert found["tserve_request_seconds_sum"] == {M1: 0.75}
    assert found["tserve_requests_refused_total"] == {(*M1, "queue_full"): 1}
    assert found["tserve_queue_wait_seconds_count"] == {M1: 2}
    assert found["tserve_batch_size_sum"] == {M1: 2}
    assert found["tserve_handler_seconds_sum"] == {M1: 0.02}
    assert found["tserve_worker_start_seconds_sum"] == {M1: 1.5}
    assert found["tserve_worker_restarts_total"] == {(*M1, "crashed"): 1}
    assert found["tserve_queue_depth"] == {M1: 3}
    assert found["tserve_memory_bytes"][()] > 1 << 20
    assert found["tserve_cpu_seconds_total"][()] > 0
    assert found["tserve_open_files"][()] > 2


def test_every_family_is_on_the_page_once() -> None:
    page = text_of(Metrics().page()).decode()
    names = re.findall(r"# TYPE (\S+)", page)
    own = [family.name for family in OwnFamilies().families()]
    assert sorted(names) == sorted([*DEFAULT.server, *DEFAULT.models, *own, *LIVE])
    assert [name for name in (*own, *LIVE) if not name.startswith("tserve_")] == []


@pytest.mark.parametrize(
    ("status", "name"),
    [(101, "5"), (200, "2"), (299, "2"), (302, "5"), (400, "4"), (499, "4"), (500, "5"), (799, "5"), (999, "5")],
)
def test_classes_of_statuses(status: int, name: str) -> None:
    metrics = Metrics()
    metrics.http_answered("inference", "GET", "", status)
    assert shown(metrics)[f"Requests{name}XX"] == {("Host", HOST): 1}
    assert shown(metrics)["tserve_http_requests_total"] == {("inference", "GET", "none", str(status)): 1}


def test_the_handlers_time_is_not_below_zero_on_the_front_end() -> None:
    """Two clocks."""
    metrics = Metrics()
    metrics.batch_answered(M1, seconds=0.01, worker_s=0.02, request_ids=[])
    assert shown(metrics)["WorkerThreadTime"] == {("Host", HOST): 0}


def test_some_names_only() -> None:
    metrics = Metrics()
    one_of_each(metrics)
    assert set(shown(metrics, "QueueTime", "tserve_memory_bytes", "HandlerTime")) == {
        "QueueTime",
        "tserve_memory_bytes",
        "HandlerTime",
    }
    assert set(shown(metrics, "tserve_batch_size_sum")) > {"tserve_batch_size_sum"}
    assert shown(metrics, "none") == {}


# -- modes


@pytest.mark.parametrize(("mode", "upstream"), [("log", ()), ("legacy", LEGACY)])
def test_modes_with_files(mode: Mode, upstream: tuple[str, ...], tmp_path: Path) -> None:
    """What is not on the page is in the files, each value as a line (section 10.5)."""
    files = MetricsFiles(tmp_path)
    metrics = Metrics(mode=mode, files=files)
    one_of_each(metrics)
    files.flush()
    assert [name for name in shown(metrics) if not name.startswith("tserve_")] == list(upstream)
    stamped = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} - (.*),timestamp:\d{10}\n")

    def written(file: str) -> list[str]:
        return stamped.sub(r"\1\n", (tmp_path / file).read_text()).splitlines()

    host = f"|#Level:Host|#hostname:{HOST}"
    server = [
        f"Requests2XX.Count:1.0{host}",
        f"Requests4XX.Count:1.0{host}",
        f"Requests5XX.Count:1.0{host}",
        f"ts_inference_requests_total.Count:1.0|#model_name:m,model_version:default|#hostname:{HOST}",
        f"ts_inference_requests_total.Count:1.0|#model_name:m,model_version:1.0|#hostname:{HOST}",
        f"QueueTime.Milliseconds:1.0{host}",
        f"QueueTime.Milliseconds:4.0{host}",
        f"WorkerThreadTime.Milliseconds:{(0.03 - 0.02) * 1e3}{host}",
        f"ts_inference_latency_microseconds.Microseconds:500000.0|#model_name:m,model_version:default|#hostname:{HOST}",
        f"ts_queue_latency_microseconds.Microseconds:1000.0|#model_name:m,model_version:default|#hostname:{HOST}",
        f"WorkerLoadTime.Milliseconds:1500.0|#WorkerName:W-9000-m_1.0,Level:Host|#hostname:{HOST}",
        f"CPUUtilization.Percent:12.5{host}",
        f"GPUUtilization.Percent:40|#Level:Host,DeviceId:0|#hostname:{HOST}",
        f"GPUMemoryUsed.Megabytes:7|#Level:Host,DeviceId:0|#hostname:{HOST}",
    ]
    assert written("ts_metrics.log") == [each for each in server if not each.startswith(tuple(upstream) or "none")]
    assert written("model_metrics.log") == [
        f"PredictionTime.ms:20.0|#ModelName:m,Level:Model|#hostname:{HOST},requestID:a,b",
        f"HandlerTime.ms:20.0|#ModelName:m,Level:Model|#hostname:{HOST},requestID:id",
    ]


def test_a_file_decides_type_and_labels(tmp_path: Path) -> None:
    """In its order; a label that the event does not have is empty, a metric that is not listed is nowhere."""
    file = tmp_path / "metrics.yaml"
    file.write_text(
        "ts_metrics: {histogram: [{name: QueueTime, unit: ms, dimensions: [Hostname, Colour]}]}\nmodel_metrics:\n"
    )
    metrics = Metrics(read_catalogue(file))
    one_of_each(metrics)
    found = shown(metrics)
    assert [name for name in found if not name.startswith("tserve_")] == [
        "QueueTime_bucket",
        "QueueTime_count",
        "QueueTime_sum",
    ]
    assert found["QueueTime_sum"] == {(HOST, ""): 5}
    assert found["tserve_metrics_dropped_total"] == {("unlisted",): 1}


# -- what goes


def test_versions_that_are_gone_are_forgotten() -> None:
    metrics = Metrics()
    for name, version in (("m", "1.0"), ("m", "2.0"), ("other", "1.0")):
        metrics.prediction_asked(name, version)
        metrics.prediction_asked(name, None)
        metrics.batch_begun((name, version), 1, [0.1])
        metrics.worker_restarts((name, version), "crashed")
    metrics.keep_only({("m", "2.0")})
    found = shown(metrics)
    assert found["ts_inference_requests_total"] == {("m", "default", HOST): 2, ("m", "2.0", HOST): 1}
    assert found["tserve_batch_size_count"] == {("m", "2.0"): 1}
    assert found["tserve_worker_restarts_total"] == {("m", "2.0", "crashed"): 1}


def test_workers_that_are_gone_are_forgotten() -> None:
    metrics = Metrics()
    for worker in ("W-9000-m_1.0", "W-9001-m_1.0"):
        metrics.worker_loaded(M1, worker, 1)
    metrics.worker_gone("W-9000-m_1.0")
    metrics.worker_gone("W-9002-m_1.0")
    assert list(shown(metrics)["WorkerLoadTime"]) == [("W-9001-m_1.0", "Host", HOST)]


def test_without_any_metric_of_the_contract() -> None:
    metrics = Metrics(Catalogue({}, {}))
    one_of_each(metrics)
    metrics.worker_gone("W-9000-m_1.0")
    metrics.keep_only(set())
    assert all(name.startswith("tserve_") for name in shown(metrics))
