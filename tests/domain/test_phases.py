"""The life of a slot: which phase may follow which, and that the documentation shows the same."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tserve.domain.phases import LOADED, TRANSITIONS, Phase, check, diagram

ROOT = Path(__file__).resolve().parents[2]
# Written out a second time on purpose: a slip in the table shows as a difference.
ALLOWED = {
    Phase.STARTING: {Phase.LOADING, Phase.BACKING_OFF, Phase.FAILED, Phase.STOPPED},
    Phase.LOADING: {Phase.READY, Phase.STOPPING},
    Phase.READY: {Phase.BUSY, Phase.DRAINING, Phase.STOPPING},
    Phase.BUSY: {Phase.READY, Phase.DRAINING, Phase.STOPPING},
    Phase.DRAINING: {Phase.STOPPING},
    Phase.STOPPING: {Phase.STARTING, Phase.BACKING_OFF, Phase.FAILED, Phase.STOPPED},
    Phase.BACKING_OFF: {Phase.STARTING, Phase.STOPPED},
    Phase.FAILED: {Phase.STARTING, Phase.STOPPED},
    Phase.STOPPED: set(),
}


@pytest.mark.parametrize(("old", "new"), list(product(Phase, Phase)), ids=lambda phase: phase.name.lower())
def test_edge(old: Phase, new: Phase) -> None:
    if new in ALLOWED[old]:
        check(old, new)
    else:
        with pytest.raises(AssertionError, match=f"cannot go from {old.value} to {new.value}"):
            check(old, new)


def test_every_phase_can_be_reached() -> None:
    reached: set[Phase] = set()
    ahead = {Phase.STARTING}
    while ahead:
        reached |= ahead
        ahead = {new for phase in ahead for new in TRANSITIONS[phase]} - reached
    assert reached == set(Phase)


def test_every_phase_leads_to_the_end() -> None:
    ending = {Phase.STOPPED}
    while more := {old for old, following in TRANSITIONS.items() if following & ending} - ending:
        ending |= more
    assert ending == set(Phase)


def test_sets_of_phases() -> None:
    assert {Phase.READY, Phase.BUSY, Phase.DRAINING} == LOADED


def test_the_diagram_has_every_edge() -> None:
    lines = {line.strip() for line in diagram().splitlines()}
    edges = {f"{old.name.lower()} --> {new.name.lower()}" for old, following in ALLOWED.items() for new in following}
    assert lines == edges | {"stateDiagram-v2", "[*] --> starting", "stopped --> [*]"}


def test_the_documentation_shows_the_diagram() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    _, _, rest = page.partition("<!-- phases: begin -->\n")
    shown, end, _ = rest.partition("<!-- phases: end -->")
    assert end
    assert shown == f"```mermaid\n{diagram()}\n```\n"
