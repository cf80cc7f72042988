"""The server's log: one line per record, whatever stands in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from tserve import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root, ours = logging.getLogger(), logging.getLogger("tserve")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    return captured.err[:-1].split("\n")


def test_format_and_levels(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logging.getLogger("tserve.http").info("%s of %d", "message", 2)
    logging.getLogger("tserve.http").debug("not shown")
    logging.getLogger("another.package").info("not shown")
    logging.getLogger("another.package").warning("shown")
    first, second = lines(capsys)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert re.fullmatch(rf"{stamp} INFO tserve\.http message of 2", first)
    assert re.fullmatch(rf"{stamp} WARNING another\.package shown", second)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("tab\tstays, modèle too", "tab\tstays, modèle too"),
        ("\x00\x7f\x85\u2028", "\\x00\\x7f\\x85\\u2028"),
    ],
)
def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str], text: str, shown: str) -> None:
    logs.configure()
    logging.getLogger("tserve.x").info("%s", text)
    (line,) = lines(capsys)
    assert line.endswith(f"INFO tserve.x {shown}")


def test_a_traceback_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logging.getLogger("tserve.x").exception("it failed")
    (line,) = lines(capsys)
    assert "ERROR tserve.x it failed\\nTraceback (most recent call last):\\n" in line
    assert line.endswith("ValueError: first\\nsecond")


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logs.configure()
    logging.getLogger("tserve.x").info("once")
    assert len(lines(capsys)) == 1
