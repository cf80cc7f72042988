"""Closes its socket to the server in the middle of a batch, and lives on."""

import os
import stat
import threading


def handle(data, context):
    if data is None:
        return
    (channel,) = (fd for fd in range(3, 64) if _is_socket(fd))
    os.close(channel)
    threading.Event().wait()


def _is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
