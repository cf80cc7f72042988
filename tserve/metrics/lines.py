"""The line that a handler's metric is, as workers send it (spec/inference.md section 12)."""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_CHARACTERS = 2 << 10  # of name, unit and labels

Subject = tuple[str, str]  # what a line is about, as it stands there: before the value, and behind it


@dataclass(frozen=True, slots=True)
class Series:
    """What lines are about."""

    name: str
    unit: str
    labels: tuple[tuple[str, str], ...]
    kind: str


def split(line: str) -> tuple[Subject, float, str] | None:
    """What a line is about, its value, and the ids of requests as the worker joined them, empty without any.

    None for what is no metric: whoever prints one by hand may get it wrong.
    """
    head, _, rest = line.partition("|#")
    what, _, number = head.rpartition(":")
    of, found, origin = rest.rpartition("|#hostname:")
    try:
        value = float(number)
    except ValueError:
        return None
    if not found or not math.isfinite(value) or len(what) + len(of) > MOST_CHARACTERS:
        return None
    words = origin.split(",", 2)  # host, seconds, ids
    return (what, of), value, words[2] if len(words) == 3 else ""


def read(subject: Subject) -> Series | None:
    """None for what is no metric.  A part of the labels without a colon belongs to the value before it."""
    what, of = subject
    name, dot, unit = what.rpartition(".")
    labels, typed, kind = of.rpartition("|#type:")
    if not dot or not name or not typed:
        return None
    pairs: list[tuple[str, str]] = []
    for part in labels.split(",") if labels else ():
        key, colon, value = part.partition(":")
        if colon:
            pairs.append((key, value))
        elif pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{part}")
        else:
            return None
    return Series(name, unit, tuple(pairs), kind.lower())
