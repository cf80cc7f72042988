"""Sends a frame of its own making beside its answer."""

import os
import struct
import threading

from to_server import channel


def handle(data, context):
    if data is None:
        return None
    frame = struct.pack("!BxxxIQQ", 4, 2, 0, 9) + b"{}"
    threading.Timer(0.05, os.write, (channel(), frame)).start()
    return [bytes(row["body"]) for row in data]
