"""The life of a slot as data: phases, named sets of them, and which may follow which.

docs/architecture.md shows the diagram that `diagram()` draws from this table.
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    STARTING = "starting"  # a process is being started
    LOADING = "loading"  # the process loads the model
    READY = "ready"  # waits for a batch
    BUSY = "busy"  # has a batch in hand
    DRAINING = "draining"  # told to stop; finishes what it has in hand or in the queue
    STOPPING = "stopping"  # the process, alive or not, is being ended with its group
    BACKING_OFF = "backing off"  # waits before the next start
    FAILED = "failed"  # gave up; a scale call starts it again
    STOPPED = "stopped"  # the slot is gone


_DOWN = frozenset({Phase.STARTING, Phase.BACKING_OFF, Phase.FAILED, Phase.STOPPED})
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.STARTING: frozenset({Phase.LOADING}) | _DOWN - {Phase.STARTING},
    Phase.LOADING: frozenset({Phase.READY, Phase.STOPPING}),
    Phase.READY: frozenset({Phase.BUSY, Phase.DRAINING, Phase.STOPPING}),
    Phase.BUSY: frozenset({Phase.READY, Phase.DRAINING, Phase.STOPPING}),
    Phase.DRAINING: frozenset({Phase.STOPPING}),
    Phase.STOPPING: _DOWN,
    Phase.BACKING_OFF: frozenset({Phase.STARTING, Phase.STOPPED}),
    Phase.FAILED: frozenset({Phase.STARTING, Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}

LOADED = frozenset({Phase.READY, Phase.BUSY, Phase.DRAINING})  # describe shows READY


def check(old: Phase, new: Phase) -> None:
    """Raises AssertionError for a step that the table does not have: a bug, never a client's doing."""
    if new not in TRANSITIONS[old]:
        raise AssertionError(f"a slot cannot go from {old.value} to {new.value}")


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> starting"]
    for old, following in TRANSITIONS.items():
        for new in sorted(following, key=lambda phase: list(Phase).index(phase)):
            lines.append(f"    {old.name.lower()} --> {new.name.lower()}")
    return "\n".join([*lines, "    stopped --> [*]"])
