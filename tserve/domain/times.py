"""Times as text: in UTC, to the millisecond."""

from __future__ import annotations

from datetime import UTC, datetime


def kept_time(epoch_s: float) -> str:
    """As every time is kept; such texts sort in order of time."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds")


def shown_time(epoch_s: float) -> str:
    """As the contract writes times, with the `Z` that means UTC (spec/management.md section 12, row 23)."""
    return kept_time(epoch_s).replace("+00:00", "Z")
