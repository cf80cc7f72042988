"""Starts a process that leaves when asked to ("polite"), or notes it and stays ("deaf"); answers with its pid."""

import os
import signal
from pathlib import Path


def handle(data, context):
    if data is None:
        return None
    wish, path = bytes(data[0]["body"]).decode().split()
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:

        def asked(number, frame):
            Path(path).write_text("asked to leave")
            if wish == "polite":
                os._exit(0)

        signal.signal(signal.SIGTERM, asked)
        os.write(go, b"x")
        while True:
            signal.pause()
    os.read(ready, 1)
    return [str(child)]
