"""tserve's own metrics: what they are called, what they mean, how they are labelled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tserve.metrics.families import SECONDS, SIZES, Family, Labels

_VERSION = ("model", "version")
# Read at a scrape: help, and labels.
LIVE: Mapping[str, tuple[str, Labels]] = {
    "tserve_queue_depth": ("Requests that wait in the job queue of a version.", _VERSION),
    "tserve_queue_capacity": ("Requests that may wait in the job queue of a version.", _VERSION),
    "tserve_workers": ("Workers of a version by the phase they are in.", (*_VERSION, "phase")),
    "tserve_workers_wanted": ("Workers that a version should have.", _VERSION),
    "tserve_worker_memory_bytes": ("Resident memory of a version's worker processes.", _VERSION),
    "tserve_version_state": ("1 for the state that a version is in, 0 for the others.", (*_VERSION, "state")),
    "tserve_version_default": ("1 for the version that answers when none is named, else 0.", _VERSION),
    "tserve_memory_bytes": ("Resident memory of the server process.", ()),
    "tserve_cpu_seconds_total": ("Processor time that the server process has used.", ()),
    "tserve_open_files": ("Files and sockets that the server process has open.", ()),
}


class OwnFamilies:
    """Those that are counted as things happen."""

    def __init__(self) -> None:
        self.info = Family("tserve_info", "gauge", "1, with the release of the server.", ("release",))
        self.started = Family("tserve_start_time_seconds", "gauge", "When the server started, in epoch seconds.", ())
        self.http = _counter(
            "tserve_http_requests_total",
            "Answers over HTTP by listener, method, route and status.",
            ("listener", "method", "route", "status"),
        )
        self.grpc = _counter("tserve_grpc_requests_total", "Calls over gRPC by status.", ("method", "code"))
        self.grpc_seconds = _times("tserve_grpc_request_seconds", "Time of calls over gRPC.", ("method",))
        self.request_seconds = _times(
            "tserve_request_seconds", "Time from a request's place in the queue to the end of its answer."
        )
        self.refused = _counter(
            "tserve_requests_refused_total", "Requests that no worker could take, by reason.", (*_VERSION, "reason")
        )
        self.queue_wait = _times("tserve_queue_wait_seconds", "Time of requests in the job queue.")
        self.batch_size = Family(
            "tserve_batch_size", "histogram", "Requests in the batches that workers were given.", _VERSION, SIZES
        )
        self.handler_seconds = _times("tserve_handler_seconds", "Time of batches in the handler.")
        self.start_seconds = _times(
            "tserve_worker_start_seconds", "Time from the start of a worker's process to its loaded model."
        )
        self.restarts = _counter(
            "tserve_worker_restarts_total",
            "Workers that died or could not be loaded, and were started again, by reason.",
            (*_VERSION, "reason"),
        )
        self.dropped = _counter(
            "tserve_metrics_dropped_total", "Metrics of handlers that were not taken, by reason.", ("reason",)
        )
        self.of_versions = (
            self.request_seconds,
            self.refused,
            self.queue_wait,
            self.batch_size,
            self.handler_seconds,
            self.start_seconds,
            self.restarts,
        )

    def families(self) -> list[Family]:
        return [self.info, self.started, self.http, self.grpc, self.grpc_seconds, *self.of_versions, self.dropped]


def _counter(name: str, text: str, labels: Labels) -> Family:
    return Family(name, "counter", text, labels)


def _times(name: str, text: str, labels: Labels = _VERSION) -> Family:
    return Family(name, "histogram", text, labels, SECONDS)


def live_families() -> dict[str, Family]:
    """Those that are read at a scrape, by name and without samples."""
    kinds = {name: "counter" if name.endswith("_total") else "gauge" for name in LIVE}
    return {name: Family(name, kinds[name], text, labels) for name, (text, labels) in LIVE.items()}


def usage() -> dict[str, float]:
    """Of the server process; 0 where the kernel does not say."""
    times = os.times()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        pages = 0
    try:
        open_files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        open_files = 0
    return {
        "tserve_open_files": float(open_files),
        "tserve_cpu_seconds_total": times.user + times.system,
        "tserve_memory_bytes": float(pages * os.sysconf("SC_PAGE_SIZE")),
    }
