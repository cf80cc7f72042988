"""docs/metrics.md and the code name the same metrics, reasons and limits."""

from __future__ import annotations

import re
from pathlib import Path

from tserve.metrics import emitted
from tserve.metrics.catalogue import DEFAULT, read_catalogue
from tserve.metrics.own import OwnFamilies, live_families
from tserve.runtime import process

DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
NONE = "\N{EN DASH}"


def rows(heading: str) -> list[list[str]]:
    """Cells of the rows of a section's table that begin with a name in code."""
    section = DOCS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if "| `" in line]


def test_torchserves_metrics() -> None:
    """In the order of the page."""
    assert [row[:4] for row in rows("TorchServe's metrics")] == [
        [f"`{metric.name}`", metric.kind, metric.unit, ", ".join(metric.labels)]
        for metric in (*DEFAULT.server.values(), *DEFAULT.models.values())
    ]


def test_tserves_own() -> None:
    assert [row[:3] for row in rows("tserve's own")] == [
        [f"`{family.name}`", family.kind, ", ".join(family.labels) or NONE]
        for family in (*OwnFamilies().families(), *live_families().values())
    ]


def test_every_row_says_what_it_is() -> None:
    assert all(row[-1] for heading in ("TorchServe's metrics", "tserve's own") for row in rows(heading))


def test_why_metrics_are_dropped() -> None:
    code = Path(emitted.__file__).read_text(encoding="utf-8")
    reasons = set(re.findall(r'_(?:drop|warn)\(\s*"(\w+)"', code))
    told = {row[0].strip("`"): row[1] for row in rows("Metrics of handlers")}
    assert set(told) == reasons
    assert f"{emitted.MOST_SERIES:,} combinations" in told["series"]
    assert f"{emitted.MOST_LINES:,} lines" in told["series"]
    assert f"{emitted.MOST_DETECTED:,} metrics" in told["metrics"]
    assert f"{process.METRICS_AT_ONCE:,} values at once and {process.METRICS_PER_S:,} a second" in told["rate"]


def test_the_example_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.yaml"
    file.write_text(DOCS.partition("```yaml\n")[2].partition("```")[0])
    catalogue = read_catalogue(file)
    assert set(catalogue.server) == {"Requests2XX"}
    assert set(catalogue.models) == {"HandlerTime", "tokens"}
