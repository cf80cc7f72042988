"""The units of metrics: as handlers write them, and as the emitted line has them (spec/inference.md section 12)."""

from __future__ import annotations

_WORDS: dict[str | None, str] = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
    "": "unit",
    None: "unit",
}


class Units:
    """`units` has the word of each known unit; any other unit is its own word."""

    def __init__(self) -> None:
        self.units = dict(_WORDS)


def word_of(unit: str | None) -> str:
    """The unit as a line has it."""
    return _WORDS.get(unit) or str(unit)
