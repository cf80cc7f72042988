"""The worker's socket to the server, for handlers that misuse it."""

import os
import stat


def channel():
    """Its descriptor: the only socket that a worker starts with."""
    (found,) = (fd for fd in range(3, 64) if _is_socket(fd))
    return found


def _is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
