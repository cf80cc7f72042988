"""docs/metrics.md: the limits of lines and of log files, and what it says about Prometheus.

Its tables of metrics are held by tests/metrics/test_metrics_docs.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tserve.child import outbox
from tserve.metrics import files, lines
from tserve.metrics.catalogue import DEFAULT
from tserve.metrics.own import OwnFamilies, live_families
from tserve.runtime import process

ROOT = Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
PROMETHEUS = DOCS.partition("\n## Prometheus\n")[2].partition("\n## ")[0]


def test_limits_of_lines() -> None:
    assert f"more than {lines.MOST_CHARACTERS:,} characters" in DOCS
    assert f"more than {outbox.MOST_CHARACTERS >> 20} MiB that wait" in DOCS
    assert f"more than {process._LINE_BYTES >> 10} KiB" in DOCS
    assert f"more than {files.MOST_WAITING:,} that wait" in DOCS
    assert outbox.MOST_LINES == process.METRICS_AT_ONCE  # which the table of reasons names


def test_log_files() -> None:
    assert re.search(rf"at {files.LARGEST // 10**6} MB, five of each kept", DOCS)
    assert files.KEPT == 5


def test_the_example_for_prometheus_is_the_one_of_the_examples() -> None:
    told = yaml.safe_load(PROMETHEUS.partition("```yaml\n")[2].partition("```")[0])
    config = yaml.safe_load((ROOT / "examples" / "monitoring" / "prometheus.yml").read_text(encoding="utf-8"))
    assert told["scrape_configs"] == config["scrape_configs"]


def test_names_that_stand_beside_each_other() -> None:
    rows = [line.strip("|").split(" | ") for line in PROMETHEUS.splitlines() if line.startswith("| `")]
    own = {family.name for family in (*OwnFamilies().families(), *live_families().values())}
    assert rows
    for theirs, ours, difference in rows:
        assert set(re.findall(r"`(\w+)`", theirs)) <= DEFAULT.server.keys() | DEFAULT.models.keys()
        assert set(re.findall(r"`(\w+)`", ours)) <= own
        assert difference.strip()
