"""The memory of processes, for collectors that ask on standard input."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)


def check_process_mem_usage(stdin: TextIO) -> None:
    """Read one line of process ids, separated by commas, and log `<pid>:<resident bytes>` for each.

    A process that cannot be looked at has 0, and an error in the log.
    """
    for pid in filter(None, (word.strip() for word in stdin.readline().split(","))):
        logger.info("%s:%d", pid, _resident_bytes(pid))


def _resident_bytes(pid: str) -> int:
    try:
        pages = Path("/proc", str(int(pid)), "statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError) as error:
        logger.error("Failed get process for pid: %s (%s)", pid, error)
        return 0
