"""Why an archive was not taken in: raised in the intake process, carried to the server as plain data."""

from __future__ import annotations


class Refused(Exception):
    """The archive cannot be saved: `reason` is one word for programs, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class NotVouchedFor(Refused):
    """It is not the archive that was meant, or nobody trusted says that it is: what it should be, and is, if known."""

    def __init__(self, reason: str, detail: str, *, expected: str | None = None, actual: str | None = None) -> None:
        super().__init__(reason, detail)
        self.facts = {
            name: f"sha256:{digest}" for name, digest in (("expected", expected), ("actual", actual)) if digest
        }


class BadManifest(Refused):
    """The archive was unpacked, but its manifest cannot be read."""
