"""What a PromQL query asks for: metrics, and labels of them.  Enough of the language for dashboards and alerts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^}]*)\})?\s*(\()?")
_WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


@dataclass
class Asked:
    """Labels of each metric that are matched, and labels that what is found is grouped by."""

    metrics: dict[str, set[str]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)


def asked(query: str) -> Asked:
    """Raises ValueError for a text in which nothing is asked for."""
    found = Asked()
    bare = _RANGE.sub("", _TEXT.sub('""', query))
    for match in _GROUPING.finditer(bare):
        found.grouped |= {label.strip() for label in match[2].split(",") if label.strip()}
    for match in _SELECTOR.finditer(re.sub(r"\b\d[\w.]*", "", _GROUPING.sub("", bare))):
        name, matchers, call = match.groups()
        if call or name.lower() in _WORDS:
            continue
        labels = re.findall(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)", matchers or "")
        found.metrics.setdefault(name, set()).update(labels)
    if not found.metrics:
        raise ValueError(query)
    return found
