"""Starts a process that keeps socket and pipe open, then answers with its pid and ends, or lives, as asked.

The process stays `near`, in the worker's group; goes `away`, into a session of its own; starts another one there and
waits for it, as a `chain`; or is started by one that ends at once, `twice` removed.
"""

import os
import signal


def handle(data, context):
    if data is None:
        return None
    where, then = bytes(data[0]["body"]).decode().split()
    ready, go = os.pipe()
    if os.fork() == 0:
        _child(where, go)
    started = os.read(ready, 100).decode()
    if where == "twice":
        os.wait()
    if then == "dies":
        print(f"child {started}", flush=True)
        os._exit(4)
    return [started]


def _child(where, go):
    if where in ("away", "chain"):
        os.setsid()
    second = os.fork() if where in ("chain", "twice") else None
    if second != 0:  # the first one tells, as the only one or of both
        os.write(go, " ".join(map(str, filter(None, (os.getpid(), second)))).encode())
    if second and where == "twice":
        os._exit(0)
    signal.pause()
