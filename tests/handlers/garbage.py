"""Writes what is no frame into the socket to the server."""

import os
import stat


def handle(data, context):
    if data is not None:
        (channel,) = (fd for fd in range(3, 64) if _is_socket(fd))
        os.write(channel, b"Traceback (most recent call last):\n")
        os.read(channel, 1)


def _is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
