"""What a handler in a worker emits by `context.metrics`: while it loads, and for a batch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import tserve

HANDLER = """
from ts.metrics.metric_type_enum import MetricTypes

class Handler:
    def initialize(self, context):
        self.calls = context.metrics.add_metric_to_cache("Calls", "count", ["ModelName"], MetricTypes.COUNTER)
        context.metrics.add_counter("Loads", 1)
        context.metrics.add_error("Troubles", 1)

    def handle(self, data, context):
        self.calls.add_or_update(1, [context.model_name])
        context.metrics.add_percent("Share", 50, 1)
        context.metrics.add_time("Took", 2, None, "s")
        return ["done" for _ in data]
"""
WORKER = """
import sys
from tserve.child.batches import answer
from tserve.child.loader import load
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import JobRequest

spec = WorkerSpec("m", sys.argv[1], "handler.py", 2)
model = load(spec)
answer(model, spec, [JobRequest("id-0", {}, ()), JobRequest("id-1", {}, ())], lambda pieces: None)
"""
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def test_metrics_of_a_worker(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(HANDLER)
    environment = os.environ | {"PYTHONPATH": str(Path(tserve.__file__).parent.parent)}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("[METRICS]PredictionTime.")]
    labels, tail = "ModelName:m,Level", r"\|#hostname:[^,]+,\d+"
    expected = [
        rf"\[METRICS\]Loads\.Count:1\|#{labels}:Model\|#type:COUNTER{tail},{UUID}",
        rf"\[METRICS\]Troubles\.unit:1\|#{labels}:Error\|#type:COUNTER{tail}",
        rf"\[METRICS\]Calls\.Count:1\|#ModelName:m\|#type:COUNTER{tail}",
        rf"\[METRICS\]Share\.Percent:50\|#{labels}:Model\|#type:GAUGE{tail},id-1",
        rf"\[METRICS\]Took\.Seconds:2\|#{labels}:Model\|#type:GAUGE{tail},id-0,id-1",
    ]
    assert len(lines) == len(expected), lines
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
