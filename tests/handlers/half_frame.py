"""Dies amid its answer, as a worker does that the kernel kills while it sends."""

import os
import signal
import stat
import struct


def handle(data, context):
    if data is not None:
        (channel,) = (fd for fd in range(3, 64) if _is_socket(fd))
        os.write(channel, struct.pack("!BxxxIQQ", 4, 2, 1 << 20, 9) + b"{}half")
        os.kill(os.getpid(), signal.SIGKILL)


def _is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
