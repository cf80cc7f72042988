"""How much an archive may become.  Travels to the intake process, so it imports little."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from tserve.archive.refusal import Refused

MIB = 1 << 20
_ALWAYS_ALLOWED = 1 << 30  # bytes, whatever the ratio: small archives may hold one large file of zeros
BASE_CPU_S = 60.0
_ENTRIES_PER_S = 1000  # an honest archive needs a tenth of that time on a machine of today, and of the next one, too
_BYTES_PER_S = 100 * MIB


class Quota(NamedTuple):
    """The settings of the same names: `max_archive_entries`, `_size` and `_ratio`, and `min_free_space`; in MiB."""

    entries: int = 100_000
    size: int = 256 << 10
    ratio: int = 200
    free: int = 0

    def most_bytes(self, packed: int | None) -> tuple[int, str]:
        """What an archive of `packed` bytes, or a folder, may become, and the setting that says so."""
        by_ratio = self.size * MIB if packed is None else max(_ALWAYS_ALLOWED, self.ratio * packed)
        if by_ratio < self.size * MIB:
            return by_ratio, f"max_archive_ratio={self.ratio}, or 1024 MiB if that is more"
        return self.size * MIB, f"max_archive_size={self.size} MiB"

    def most_seconds(self, packed: int) -> float:
        """Processor time to unpack `packed` bytes in: headers can be made that the libraries read for days."""
        return BASE_CPU_S + self.entries / _ENTRIES_PER_S + self.ratio * packed / _BYTES_PER_S

    def check_free(self, folder: Path, size: int) -> None:
        """Raises Refused where so many bytes more would fill the disk."""
        disk = os.statvfs(folder)
        if disk.f_bavail * disk.f_frsize - size < self.free * MIB:
            detail = f"it would leave less than min_free_space={self.free} MiB on the disk of the state folder"
            raise Refused("no_space", detail)
