"""Metrics of a running server: what is counted, what handlers emit, the modes, and what must not do harm."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import grpc
import pytest
import yaml

from tests.e2e.archives import write
from tests.e2e.promql import asked
from tests.e2e.server import Answer, Server, eventually, running
from tests.metrics.lines import samples_of
from tserve.metrics.catalogue import DEFAULT
from tserve.metrics.exposition import SUFFIXES
from tserve.metrics.own import OwnFamilies, live_families

pytestmark = pytest.mark.e2e

HOST = socket.gethostname()
MONITORING = Path(__file__).resolve().parents[2] / "examples" / "monitoring"
PING = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping"

# A request is what it does.
DOES = """
import os, sys, threading, time
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

def handle(data, context):
    metrics = context.metrics
    if data is None:
        metrics.add_counter("loads", 1)
        return None
    scope = dict(globals(), context=context, metrics=metrics, result=["done"] * len(data))
    exec(bytes(data[0]["body"]).decode(), scope)
    return scope["result"]
"""
DOES_TOGETHER = """
async def handle(data, context):
    if data is None:
        return None
    context.metrics.add_counter("asked_together", 1)
    return [context.get_request_id(0)]
"""
LISTED = """
dimensions: [&model ModelName, &level Level]
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Count, dimensions: [Level, Hostname]}
    - {name: Requests4XX, unit: Count, dimensions: [Level, Hostname]}
    - {name: Requests5XX, unit: Count, dimensions: [Level, Hostname]}
    - {name: ts_inference_requests_total, unit: Count, dimensions: [model_name, model_version, hostname]}
    - {name: ts_inference_latency_microseconds, unit: Microseconds, dimensions: [model_name, model_version, hostname]}
    - {name: ts_queue_latency_microseconds, unit: Microseconds, dimensions: [model_name, model_version, hostname]}
  gauge:
    - {name: QueueTime, unit: Milliseconds, dimensions: [Level, Hostname]}
    - {name: WorkerThreadTime, unit: Milliseconds, dimensions: [Level, Hostname]}
    - {name: WorkerLoadTime, unit: Milliseconds, dimensions: [WorkerName, Level, Hostname]}
    - {name: CPUUtilization, unit: Percent, dimensions: [Level, Hostname]}
    - {name: MemoryUtilization, unit: Percent, dimensions: [Level, Hostname]}
    - {name: DiskUtilization, unit: Percent, dimensions: [Level, Hostname]}
    - {name: MemoryUsed, unit: Megabytes, dimensions: [Level, Hostname]}
    - {name: MemoryAvailable, unit: Megabytes, dimensions: [Level, Hostname]}
    - {name: DiskUsage, unit: Gigabytes, dimensions: [Level, Hostname]}
    - {name: DiskAvailable, unit: Gigabytes, dimensions: [Level, Hostname]}
    - {name: GPUMemoryUtilization, unit: Percent, dimensions: [Level, DeviceId, Hostname]}
    - {name: GPUUtilization, unit: Percent, dimensions: [Level, DeviceId, Hostname]}
    - {name: GPUMemoryUsed, unit: Megabytes, dimensions: [Level, DeviceId, Hostname]}
model_metrics:
  gauge:
    - {name: HandlerTime, unit: ms, dimensions: [*model, *level]}
    - {name: PredictionTime, unit: ms, dimensions: [*model, *level]}
  histogram:
    - {name: listed_seconds, unit: s, dimensions: [*model, *level]}
"""

LISTED_SECONDS = "metrics.get_metric('listed_seconds', MetricTypes.HISTOGRAM)"

# Labels of each line in the order that the tests name them in; a handler's own have these.
ORDERS = {name: (*definition.labels, "le") for name, definition in DEFAULT.server.items()} | {
    f"{family.name}{suffix}": (*family.labels, "le")
    for family in (*OwnFamilies().families(), *live_families().values())
    for suffix in ("", *SUFFIXES)
}
OF_HANDLERS = ("colour", "ModelName", "Level", "Hostname", "le")

Page = Mapping[str, Mapping[tuple[str, ...], float]]


def scrape(server: Server, query: str = "") -> Page:
    answer = server.call("GET", f"/metrics{query}", role="metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for sample in samples_of(answer.body.decode()):
        labels = tuple(sample.labels[name] for name in ORDERS.get(sample.name, OF_HANDLERS) if name in sample.labels)
        found.setdefault(sample.name, {})[labels] = sample.value
    return found


def value(server: Server, name: str, *labels: str) -> float:
    return scrape(server, f"?name[]={name}").get(name, {}).get(labels, 0.0)


def do(server: Server, code: str, model: str = "does") -> Answer:
    return server.call(
        "POST",
        f"/predictions/{model}",
        role="inference",
        body=code.encode(),
        headers={"content-type": "application/octet-stream"},
    )


def archives(store: Path) -> Path:
    store.mkdir()
    write(store, "does.mar", DOES, name="does")
    write(store, "idle.mar", DOES, name="idle")
    write(store, "together.mar", DOES_TOGETHER, name="together", config="asyncCommunication: true\n")
    return store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that has served something of every kind: answers, errors, a refusal, a death, a call over gRPC."""
    folder = tmp_path_factory.mktemp("metrics")
    store = archives(folder / "store")
    (folder / "metrics.yaml").write_text(LISTED)
    config = ["metrics_mode=prometheus", f"metrics_config={folder}/metrics.yaml", "model_metrics_auto_detect=true"]
    with running(Server(folder / "server", store, [*config, "worker_start=fresh"], grpc=True)) as server:
        for model, workers in (("does", 1), ("together", 1), ("idle", 0)):
            answer = server.register(f"{model}.mar", initial_workers=workers, synchronous=True)
            assert answer.status == 200, answer
        with grpc.insecure_channel(server.urls["grpc_inference"]) as channel:
            channel.unary_unary(PING)(b"", timeout=30)
        for code, status in (("", 200), ("os._exit(3)", 500)):
            assert do(server, code).status == status
        assert do(server, "", "idle").status == 503
        do(server, "metrics.add_metric('no name', 1, 'ms'); metrics.add_time('HandlerTime', 3)")
        yield server


def test_what_is_served_is_counted(server: Server) -> None:
    before = scrape(server)
    for _ in range(4):
        assert do(server, "").status == 200
    assert server.call("POST", "/predictions/does/1.0", role="inference", body=b"").status == 200
    assert do(server, "", "nobody").status == 404
    assert do(server, "1/0").status == 503
    assert do(server, "", "idle").status == 503
    after = scrape(server)

    def more(name: str, *labels: str) -> float:
        return after[name].get(labels, 0.0) - before.get(name, {}).get(labels, 0.0)

    assert more("ts_inference_requests_total", "does", "default", HOST) == 5
    assert more("ts_inference_requests_total", "does", "1.0", HOST) == 1
    assert more("ts_inference_requests_total", "idle", "default", HOST) == 1
    assert ("nobody", "default", HOST) not in after["ts_inference_requests_total"]
    assert more("Requests2XX", "Host", HOST) == 6  # with the page before
    assert more("Requests4XX", "Host", HOST) == 1
    assert more("Requests5XX", "Host", HOST) == 2
    route = ("inference", "POST", "/predictions/{name}")
    assert [more("tserve_http_requests_total", *route, str(status)) for status in (200, 404, 503)] == [4, 1, 2]
    assert more("tserve_requests_refused_total", "idle", "1.0", "no_worker") == 1
    for name in ("request_seconds", "queue_wait_seconds", "batch_size", "handler_seconds"):
        assert more(f"tserve_{name}_count", "does", "1.0") == 6, name
        assert more(f"tserve_{name}_bucket", "does", "1.0", "+Inf") == 6, name
    assert more("tserve_request_seconds_sum", "does", "1.0") > more("tserve_handler_seconds_sum", "does", "1.0") > 0
    assert more("ts_queue_latency_microseconds", "does", "default", HOST) > 0
    assert more("ts_queue_latency_microseconds", "does", "default", HOST) < more(
        "ts_inference_latency_microseconds", "does", "default", HOST
    )
    assert after["PredictionTime"]["does", "Model", HOST] >= 0
    assert after["QueueTime"]["Host", HOST] > 0


def test_the_rest_of_the_contracts_metrics(server: Server) -> None:
    page = scrape(server)
    assert page["WorkerLoadTime"].keys() == {
        (f"W-{number}-{model}_1.0", "Host", HOST) for number, model in ((9000, "does"), (9001, "together"))
    }
    for name, definition in DEFAULT.server.items():
        if definition.unit in ("Percent", "Megabytes", "Gigabytes") and "DeviceId" not in definition.labels:
            assert page[name]["Host", HOST] >= 0, name
    text = server.call("GET", "/metrics", role="metrics").body.decode()
    assert f'\nRequests2XX{{Hostname="{HOST}",Level="Host"}} ' in text
    assert re.findall(r"# TYPE ([A-Zt][\w]*)", text)[: len(DEFAULT.server)] == list(DEFAULT.server)


def test_what_is_true_now(server: Server) -> None:
    page = scrape(server)
    assert page["tserve_workers"]["does", "1.0", "ready"] == 1
    assert page["tserve_workers_wanted"]["idle", "1.0"] == 0
    assert page["tserve_queue_capacity"]["does", "1.0"] == 100
    assert page["tserve_queue_depth"]["does", "1.0"] == 0
    assert page["tserve_version_state"]["does", "1.0", "ready"] == 1
    assert page["tserve_version_default"]["does", "1.0"] == 1
    assert page["tserve_worker_memory_bytes"]["does", "1.0"] > 1 << 20
    assert page["tserve_grpc_requests_total"][PING[1:], "OK"] >= 1


# -- what handlers emit


@pytest.mark.parametrize(
    ("code", "name", "expected"),
    [
        ("metrics.add_counter('my_count', 2); metrics.add_counter('my_count', 3)", "my_count", 5),
        ("metrics.add_time('my_time', 7); metrics.add_time('my_time', 8)", "my_time", 8),
        ("metrics.add_time('my_seconds', 1.5, unit='s')", "my_seconds", 1.5),
        ("metrics.add_size('my_size', 4, unit='GB')", "my_size", 4),
        ("metrics.add_percent('my_percent', 99.5)", "my_percent", 99.5),
        ("metrics.add_metric('my_metric', -4, 'K', metric_type=MetricTypes.GAUGE)", "my_metric", -4),
        ("metrics.add_metric('my_times', 4, 'ms', metric_type=MetricTypes.HISTOGRAM)", "my_times_sum", 4),
        (f"{LISTED_SECONDS}.add_or_update(3, ['does', 'Model'])", "listed_seconds_sum", 3),
    ],
)
def test_metrics_of_every_kind(code: str, name: str, expected: float, server: Server) -> None:
    """They are on the page as soon as the answer is."""
    assert do(server, code).body == b"done"
    assert scrape(server)[name] == {("does", "Model", HOST): expected}


def test_errors_and_dimensions(server: Server) -> None:
    do(server, "metrics.add_error('my_error', 1)")
    do(server, "metrics.add_counter('coloured', 1, dimensions=[Dimension('colour', 'a, \"b\"')])")
    page = scrape(server)
    assert page["my_error"] == {("does", "Error", HOST): 1}
    assert page["coloured"] == {('a, "b"', "does", "Model", HOST): 1}


def test_metrics_of_a_load(server: Server) -> None:
    assert value(server, "loads", "does", "Model", HOST) >= 1


def test_metrics_of_a_thread_after_the_answer(server: Server) -> None:
    later = "threading.Timer(0.05, lambda: metrics.add_counter('later', 1)).start()"
    assert do(server, later).status == 200
    eventually(
        "it has arrived",
        lambda: value(server, "later", "does", "Error", HOST) or value(server, "later", "does", "Model", HOST),
    )


def test_metrics_of_a_forked_child(server: Server) -> None:
    code = "pid = os.fork()\nif pid == 0:\n    metrics.add_counter('forked', 1)\n    os._exit(0)\nos.waitpid(pid, 0)"
    assert do(server, code).status == 200
    eventually("it has arrived", lambda: value(server, "forked", "does", "Model", HOST) == 1)


def test_metrics_of_a_handler_that_leaves(server: Server) -> None:
    assert do(server, "metrics.add_counter('last_words', 1); sys.exit(0)").status == 500
    eventually("it has arrived", lambda: value(server, "last_words", "does", "Model", HOST) == 1)
    eventually("it is back", lambda: do(server, "").status == 200)


def test_metrics_of_an_asynchronous_worker(server: Server) -> None:
    with ThreadPoolExecutor(10) as clients:
        answers = list(clients.map(lambda _: server.predict("together"), range(30)))
    assert {answer.status for answer in answers} == {200}
    page = scrape(server)
    assert page["asked_together"] == {("together", "Model", HOST): 30}
    assert page["tserve_handler_seconds_count"]["together", "1.0"] == 30


# -- the listener


def test_a_part_of_it(server: Server) -> None:
    assert set(scrape(server, "?name[]=QueueTime&name[]=tserve_queue_depth")) == {"QueueTime", "tserve_queue_depth"}
    assert scrape(server, "?name[]=none") == {}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_any_method(method: str, server: Server) -> None:
    answer = server.call(method, "/metrics/whatever/else", role="metrics", body=b"x")
    assert (answer.status, b"# TYPE Requests2XX counter" in answer.body) == (200, True)


@pytest.mark.parametrize(("path", "status"), [("/", 405), ("/models", 404), ("/predictions/does", 404), ("/ping", 404)])
def test_other_paths(path: str, status: int, server: Server) -> None:
    answer = server.call("GET", path, role="metrics")
    assert (answer.status, answer.json["code"]) == (status, status)


@pytest.mark.parametrize("role", ["inference", "management"])
def test_it_is_on_its_own_port_only(role: str, server: Server) -> None:
    assert server.call("GET", "/metrics", role=role).status == 404


# -- what becomes of workers and versions


def test_a_death_is_shown_with_its_reason(server: Server) -> None:
    before = value(server, "tserve_worker_restarts_total", "does", "1.0", "crashed")
    assert do(server, "os._exit(3)").status == 500
    eventually("it is back", lambda: do(server, "").status == 200)
    assert value(server, "tserve_worker_restarts_total", "does", "1.0", "crashed") == before + 1
    assert value(server, "tserve_worker_start_seconds_count", "does", "1.0") >= 2


def test_what_is_unregistered_vanishes(server: Server) -> None:
    query = urlencode({"url": "does.mar", "model_name": "passing", "initial_workers": 1, "synchronous": "true"})
    assert server.call("POST", f"/models?{query}").status == 200
    assert do(server, "metrics.add_counter('passes', 1)", "passing").status == 200
    assert '"passing"' in server.call("GET", "/metrics", role="metrics").body.decode()
    assert server.unregister("passing").status == 200
    page = server.call("GET", "/metrics", role="metrics").body.decode()
    assert "passing" not in page
    assert "# TYPE passes" not in page


# -- misuse


@pytest.mark.parametrize(
    "code",
    [
        "for n in range(100_000): metrics.add_counter('flood', 1, dimensions=[Dimension('n', str(n))])",
        "for n in range(3_000): metrics.add_counter('x' * 100_000, 1)",
        "for n in range(50_000): metrics.add_counter(f'name{n}', 1)",
        "for n in range(50_000): print(f'[METRICS]printed{n}.ms:1|#|#type:GAUGE|#hostname:h,1')",
        "print('[METRICS]' + 'x' * 50_000_000)",
        "for n in range(20_000): os.write(1, b'[METRICS]\\xff\\x00|#|#type:|#hostname:\\n')",
        "def flood():\n while True: metrics.add_counter('on', 1)\nthreading.Thread(target=flood, daemon=True).start()",
    ],
    ids=["values", "long names", "names", "printed", "one line", "no text", "endless"],
)
def test_a_flood_harms_nobody(code: str, server: Server) -> None:
    """The others are served on, the page stays small, the server too; what is not taken is counted."""
    query = urlencode({"url": "does.mar", "model_name": "hostile", "initial_workers": 1, "synchronous": "true"})
    assert server.call("POST", f"/models?{query}").status == 200
    before = scrape(server)
    try:
        with ThreadPoolExecutor(1) as pool:
            flooding = pool.submit(do, server, code, "hostile")
            for _ in range(8):
                assert do(server, "metrics.add_counter('calm', 1)").status == 200
                assert len(server.call("GET", "/metrics", role="metrics").body) < 8 << 20
            assert flooding.result().status == 200
        eventually("it is counted", lambda: dropped(scrape(server)) > dropped(before))
        assert do(server, "").status == 200
        page = scrape(server)
        assert sum(len(samples) for name, samples in page.items() if not name.startswith("tserve_")) < 25_000
        assert page["tserve_memory_bytes"][()] < before["tserve_memory_bytes"][()] + (200 << 20)
    finally:
        assert server.unregister("hostile").status == 200


def dropped(page: Page) -> float:
    return sum(page.get("tserve_metrics_dropped_total", {}).values())


# -- examples/monitoring


def queries() -> Iterator[tuple[str, str]]:
    """Where it stands, and the query."""
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["query"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def labels_of(server: Server) -> dict[str, set[str]]:
    """Of each metric that the server shows, and of those that take a GPU."""
    text = server.call("GET", "/metrics", role="metrics").body.decode()
    found = {name: set(DEFAULT.server[name].labels) for name in DEFAULT.server if f"# TYPE {name} " in text}
    for sample in samples_of(text):
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_query_of_the_examples_finds_something(server: Server) -> None:
    there = labels_of(server) | {"up": {"job", "instance"}}
    of_prometheus = {"job", "instance"}
    for where, query in queries():
        if variable := re.fullmatch(r"label_values\((\w+), (\w+)\)", query):
            assert variable[2] in there[variable[1]], where
            continue
        found = asked(query)
        assert found.metrics.keys() <= there.keys(), where
        for metric, labels in found.metrics.items():
            assert labels <= there[metric] | of_prometheus, where
        everything = set().union(*(there[metric] for metric in found.metrics))
        assert found.grouped <= everything | of_prometheus, where


def test_a_wrong_query_would_be_found() -> None:
    found = asked(
        'sum by (model, le) (rate(a_bucket{model=~"$m", b!="c by (x)"}[5m])) / on(model) group_left() b > 1e3'
    )
    assert found.metrics == {"a_bucket": {"model", "b"}, "b": set()}
    assert found.grouped == {"model", "le"}
    assert asked("histogram_quantile(0.99, sum(rate(x_bucket[1m])) by (le)) and y offset 5m").metrics == {
        "x_bucket": set(),
        "y": set(),
    }


def test_the_examples_fit_together() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:8082"]
    assert job["job_name"] == "tserve"
    assert config["rule_files"] == ["alerts.yml"]


# -- modes, and what the configuration says


def test_log_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are where upstream's variables say, and whole when the server has ended; handlers' own metrics that
    no file lists are left out."""
    monkeypatch.setenv("LOG_LOCATION", "else")
    monkeypatch.setenv("METRICS_LOCATION", "my logs")
    server = Server(tmp_path / "server", archives(tmp_path / "store"), ["worker_start=fresh"])
    with running(server):
        logs = server.folder / "my logs"
        both = ["model_metrics.log", "ts_metrics.log"]
        eventually("both are there", lambda: logs.is_dir() and sorted(os.listdir(logs)) == both)
        assert server.register("does.mar", initial_workers=1, synchronous=True).status == 200
        assert do(server, "metrics.add_counter('unlisted', 1)").status == 200
        assert do(server, "metrics.add_time('HandlerTime', 12)").status == 200
        page = scrape(server)
        assert [name for name in page if not name.startswith("tserve_")] == []
        assert page["tserve_metrics_dropped_total"]["unlisted",] == 2  # with one of the load
        assert server.stop() == 0
    told = (logs / "ts_metrics.log").read_text()
    for name in ("Requests2XX.Count:1.0", "QueueTime.Milliseconds:", "CPUUtilization.Percent:", "WorkerLoadTime."):
        assert f" - {name}" in told
    assert told.count("ts_inference_requests_total.Count:1.0|#model_name:does,model_version:default|#hostname:") == 2
    models = (logs / "model_metrics.log").read_text().splitlines()
    assert len(models) == 3
    line = (
        r"\S+ - HandlerTime\.ms:12\.0\|#ModelName:does,Level:Model\|#hostname:.+,requestID:[-0-9a-f]{36},timestamp:\d+"
    )
    assert re.fullmatch(line, models[1]) or re.fullmatch(line, models[2])


def test_legacy_mode_without_a_listener_for_the_rest(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", archives(tmp_path / "store"), ["metrics_mode=legacy", "worker_start=fresh"])
    with running(server):
        assert server.register("does.mar", initial_workers=1, synchronous=True).status == 200
        assert do(server, "").status == 200
        assert [name for name in scrape(server) if not name.startswith("tserve_")] == [
            "ts_inference_requests_total",
            "ts_inference_latency_microseconds",
            "ts_queue_latency_microseconds",
        ]
        assert server.stop() == 0
    told = (server.state / "logs" / "ts_metrics.log").read_text()
    assert " - Requests2XX.Count:1.0" in told
    assert "ts_inference" not in told


def test_no_listener(tmp_path: Path) -> None:
    config = ["enable_metrics_api=false", "disable_system_metrics=true", "worker_start=fresh"]
    server = Server(tmp_path / "server", archives(tmp_path / "store"), config)
    with running(server):
        assert server.urls.keys() == {"inference", "management"}
        assert server.stop() == 0
    assert "Utilization" not in (server.state / "logs" / "ts_metrics.log").read_text()


def test_a_broken_metrics_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "metrics.yaml").write_text("ts_metrics: {}\n")
    server = Server(tmp_path / "server", archives(tmp_path / "store"), [f"metrics_config={tmp_path}/metrics.yaml"])
    assert server.spawn().wait(60) == 3
    assert f"metrics_config={tmp_path}/metrics.yaml: has no section model_metrics" in server.log()
