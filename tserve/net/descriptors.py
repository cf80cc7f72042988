"""How many connections the system lets this process have."""

from __future__ import annotations

import contextlib
import resource

RESERVED = 1024  # descriptors for workers, files and archives


def connections_of(ports: int, *, wanted: int) -> int:
    """Connections that each of so many ports may have: as many as are wanted, or fewer where descriptors run out.

    The soft limit is raised to the hard one for that, also for the workers to come.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = ports * wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    return max(1, (soft - min(RESERVED, soft // 2)) // ports)
