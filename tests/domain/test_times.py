"""Times as text."""

from __future__ import annotations

import time

import pytest

from tserve.domain.times import kept_time, shown_time


@pytest.mark.parametrize(
    ("epoch_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000"),
        (1700000000.0625, "2023-11-14T22:13:20.062"),
        (951868799, "2000-02-29T23:59:59.000"),
    ],
)
def test_both_forms(epoch_s: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """UTC, wherever the server runs."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert (kept_time(epoch_s), shown_time(epoch_s)) == (f"{text}+00:00", f"{text}Z")
    finally:
        monkeypatch.undo()
        time.tzset()
