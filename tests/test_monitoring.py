"""examples/monitoring: what it asks for is what there is, down to labels, their values, and what legends show.

That each metric is on the page of a running server, too, tests/e2e/test_metrics.py has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tests.e2e.promql import asked
from tserve.domain.phases import Phase
from tserve.metrics.catalogue import DEFAULT
from tserve.metrics.exposition import SUFFIXES
from tserve.metrics.families import SECONDS, Family
from tserve.metrics.own import OwnFamilies, live_families
from tserve.services.health import State

MONITORING = Path(__file__).resolve().parents[1] / "examples" / "monitoring"
README = (MONITORING / "README.md").read_text(encoding="utf-8")
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"] for variable in DASHBOARD["templating"]["list"]}

OF_PROMETHEUS = {"job", "instance"}
# Values that are words of ours; of other labels any will do.
WORDS = {
    "state": {state.value for state in State},
    "phase": {phase.value for phase in Phase} - {Phase.STOPPED.value},
    "code": {code.name for code in grpc.StatusCode},
    "Level": {"Host"},
    "le": {str(bound) for bound in SECONDS} | {"+Inf"},
    "job": {"tserve"},
}


def labels_of(family: Family) -> Iterator[tuple[str, set[str]]]:
    """Of each of its lines."""
    for suffix in SUFFIXES if family.kind == "histogram" else ("",):
        yield family.name + suffix, {*family.labels, *(["le"] if suffix == "_bucket" else [])}


def known() -> dict[str, set[str]]:
    contracts = [definition.family() for each in (DEFAULT.server, DEFAULT.models) for definition in each.values()]
    families = (*contracts, *OwnFamilies().families(), *live_families().values())
    return {"up": set(), **dict(line for family in families for line in labels_of(family))}


KNOWN = known()


def faults(query: str, shown: str = "") -> list[str]:
    """What is wrong with a query, and with a text that shows labels of what it finds."""
    found = asked(query)
    wrong = [f"no metric {name}" for name in found.metrics.keys() - KNOWN.keys()]
    there = {name: KNOWN[name] | OF_PROMETHEUS for name in found.metrics.keys() & KNOWN.keys()}
    if wrong:
        return wrong
    wrong += [f"{name} has no {label}" for name, of in there.items() for label in found.metrics[name] - of]
    wrong += [f"{name} is not grouped by {label}" for name, of in there.items() for label in found.grouped - of]
    for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', query):
        words = value.split("|") if operator.endswith("~") else [value]
        literal = [word for word in words if not re.search(r"[$.*]", word)]
        wrong += [f"no {label} is {word}" for word in literal if word not in WORDS.get(label, {word})]
    aggregated = re.search(r"\b(sum|max|min|avg|count)\b", query)
    left = found.grouped if aggregated else set.intersection(*there.values())
    if "histogram_quantile" in query:
        wrong += [] if "le" in found.grouped else ["a quantile needs le"]
        left = left - {"le"}
    labels = re.findall(r"\{\{\s*(\w+)\s*\}\}|\$labels\.(\w+)", shown)
    return wrong + [f"{name} is not shown" for pair in labels for name in pair if name and name not in left]


def queries() -> Iterator[Any]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']} {target['refId']}")
    for rule in RULES:
        yield pytest.param(rule["expr"], str(rule["annotations"]), id=rule["alert"])
    for number, block in enumerate(re.findall(r"```promql\n(.*?)```", README, re.DOTALL)):
        yield pytest.param(block, "", id=f"README {number}")


@pytest.mark.parametrize(("query", "shown"), list(queries()))
def test_a_query_asks_for_what_there_is(query: str, shown: str) -> None:
    assert faults(query, shown) == []
    assert set(re.findall(r"\$(\w+)", query)) <= VARIABLES | {"__rate_interval"}


@pytest.mark.parametrize(
    ("query", "shown", "fault"),
    [
        ("tserve_queue_length", "", "no metric tserve_queue_length"),
        ("rate(tserve_request_seconds[5m])", "", "no metric tserve_request_seconds"),
        ('tserve_workers{status="ready"}', "", "tserve_workers has no status"),
        ('tserve_batch_size_sum{le="1.0"}', "", "tserve_batch_size_sum has no le"),
        ('tserve_workers{phase=~"ready|working"}', "", "no phase is working"),
        ('tserve_version_state{state="broken"}', "", "no state is broken"),
        ('rate(tserve_grpc_requests_total{code="FAILED"}[5m])', "", "no code is FAILED"),
        ("sum by (route) (tserve_queue_depth)", "", "tserve_queue_depth is not grouped by route"),
        (
            "sum by (model) (tserve_queue_depth) / sum by (model) (ts_inference_requests_total)",
            "",
            "ts_inference_requests_total is not grouped by model",
        ),
        (
            "histogram_quantile(0.9, sum by (model) (rate(tserve_request_seconds_bucket[1m])))",
            "",
            "a quantile needs le",
        ),
        ("tserve_queue_depth", "{{model}} {{phase}}", "phase is not shown"),
        ("sum by (model) (tserve_queue_depth)", "{{ $labels.model }} {{ $labels.version }}", "version is not shown"),
        ("sum(tserve_queue_depth)", "{{instance}}", "instance is not shown"),
    ],
)
def test_a_wrong_query_is_found(query: str, shown: str, fault: str) -> None:
    assert faults(query, shown) == [fault]


def test_a_right_query_is_right() -> None:
    query = (
        'sum by (model) (rate(tserve_request_seconds_bucket{model=~"$model", le="0.5"}[5m])) > 1.5e3'
        ' and on (model) max by (model) (tserve_version_state{state!="failed", job="tserve"} offset 6h) == 1'
    )
    assert faults(query, "half a second {{model}}") == []
    assert faults("tserve_queue_depth", "{{instance}} {{model}}") == []


# -- alerts


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert rule["annotations"].keys() == {"summary", "description"}
    assert all(text.strip() for text in rule["annotations"].values())
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    # A template, opened and closed.
    for text in rule["annotations"].values():
        assert len(re.findall(r"\{\{ [^{}]+ \}\}", text)) == text.count("{{") == text.count("}}")


def test_alerts_of_tserve_work_in_every_mode() -> None:
    own = next(group["rules"] for group in ALERTS if group["name"] == "tserve")
    for rule in own:
        assert all(name == "up" or name.startswith("tserve_") for name in asked(rule["expr"]).metrics), rule["alert"]


# -- the dashboard


def test_grafana_can_import_it() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert {"datasource", "model", "version"} == VARIABLES
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
        assert {str(each["datasource"]) for each in (panel, *panel["targets"])} == {str(source)}
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_no_panel_is_on_another_one() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_each_of_tserves_own_is_shown() -> None:
    """But for what is a label of the state elsewhere."""
    shown = {name for panel in PANELS for target in panel["targets"] for name in asked(target["expr"]).metrics}
    for family in (*OwnFamilies().families(), *live_families().values()):
        if family.name != "tserve_version_default":
            assert shown & {name for name, _ in labels_of(family)}, family.name


# -- the page


def test_the_page_tells_each_panel_and_each_alert() -> None:
    dashboard, _, alerts = README.partition("\n## The dashboard\n")[2].partition("\n## The alerts\n")
    assert sorted(re.findall(r"\*\*(.+?)\*\*", dashboard_cells(dashboard, 1))) == sorted(p["title"] for p in PANELS)
    table = "\n".join(line.split(" | ")[0] for line in alerts.splitlines() if line.startswith("| `"))
    assert re.findall(r"`(\w+)`", table) == [rule["alert"] for rule in RULES]


def dashboard_cells(table: str, place: int) -> str:
    return "\n".join(line.split("|")[place + 1] for line in table.splitlines() if line.startswith("|"))


def test_panels_that_the_page_points_to_are_there() -> None:
    titles = {panel["title"] for panel in PANELS}
    assert set(re.findall(r"\*\*(.+?)\*\*", README)) <= titles
