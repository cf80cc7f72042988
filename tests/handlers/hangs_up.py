"""Closes its socket to the server and lives on, in a batch or, when asked to, after it has answered."""

import os
import stat
import threading


def handle(data, context):
    if data is None:
        return None
    (channel,) = (fd for fd in range(3, 64) if _is_socket(fd))
    if bytes(data[0]["body"]) == b"later":
        threading.Timer(0.1, os.dup2, (os.open(os.devnull, os.O_RDONLY), channel)).start()
        return ["soon"]
    os.close(channel)
    threading.Event().wait()


def _is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
