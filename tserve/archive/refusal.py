"""Why an archive was not taken in: raised in the intake process, carried to the server as plain data."""

from __future__ import annotations


class Refused(Exception):
    """The archive cannot be saved: `reason` is one word for programs, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class BadManifest(Refused):
    """The archive was unpacked, but its manifest cannot be read."""
