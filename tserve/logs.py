"""The server's own log: standard error, one line per record."""

from __future__ import annotations

import logging

# Names and urls in messages come from clients: a line break or an escape sequence must not forge a line.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\t"}
_CONTROL |= {ord("\n"): "\\n", ord("\r"): "\\r", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class OneLine(logging.Formatter):
    """`2026-11-22 19:00:00,123 INFO tserve.http message`; a traceback stands behind, its line breaks written `\\n`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).translate(_CONTROL)


def configure() -> None:
    """Send tserve's records from INFO on, and other packages' from WARNING on, to standard error.

    Calling it again replaces the handler of the earlier call.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each.formatter, OneLine)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("tserve").setLevel(logging.INFO)
