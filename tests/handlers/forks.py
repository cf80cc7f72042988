"""Starts a process that keeps socket and pipe open, then answers with its pid and ends, or lives, as asked."""

import os
import signal


def handle(data, context):
    if data is None:
        return None
    where, then = bytes(data[0]["body"]).decode().split()
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        if where == "away":
            os.setsid()
        os.write(go, b"x")
        signal.pause()
    os.read(ready, 1)
    if then == "dies":
        print(f"child {child}", flush=True)
        os._exit(4)
    return [str(child)]
