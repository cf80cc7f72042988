"""Families as the text that Prometheus reads, exactly as the recorded server writes it (spec/server.md section 10.1).

Written here and not by a client library: those sort the labels, leave out the comma behind the last one, put `_total`
behind the names of counters, and take ten times as long, in which the server would answer nobody.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from tserve.metrics.families import Family, Labels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SUFFIXES = ("", "_bucket", "_sum", "_count")


def text_of(family: Family) -> bytes:
    """Its part of the page; without samples just what it is."""
    name, labels = family.name, family.labels
    lines = [f"# HELP {name} {_plain(family.help)}\n# TYPE {name} {family.kind}\n"]
    for values, value in family.samples.items():
        lines.append(f"{name}{_braces(_pairs(labels, values))} {_number(value)}\n")
    bounds = [f'le="{_number(bound)}",' for bound in (*family.bounds, math.inf)]
    for values, histogram in family.histograms.items():
        pairs, sofar = _pairs(labels, values), 0
        for bound, count in zip(bounds, histogram.counts, strict=True):
            sofar += count
            lines.append(f"{name}_bucket{{{pairs}{bound}}} {float(sofar)}\n")
        braces = _braces(pairs)
        lines.append(f"{name}_count{braces} {float(sofar)}\n{name}_sum{braces} {_number(histogram.sum)}\n")
    return "".join(lines).encode("utf-8", "replace")


def is_asked_for(family: Family, names: Collection[str]) -> bool:
    """Whether the family is one of `names`, or its lines are; no names stand for all."""
    return not names or any(family.name + suffix in names for suffix in _SUFFIXES)


def _pairs(names: Labels, values: Labels) -> str:
    return "".join([f'{name}="{_escaped(value)}",' for name, value in zip(names, values, strict=True)])


def _braces(pairs: str) -> str:
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else "NaN" if math.isnan(value) else f"{value:+}".capitalize()
