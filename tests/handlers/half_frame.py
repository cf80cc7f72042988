"""Dies amid its answer, as a worker does that the kernel kills while it sends."""

import os
import signal
import struct

from to_server import channel


def handle(data, context):
    if data is not None:
        os.write(channel(), struct.pack("!BxxxIQQ", 4, 2, 1 << 20, 9) + b"{}half")
        os.kill(os.getpid(), signal.SIGKILL)
