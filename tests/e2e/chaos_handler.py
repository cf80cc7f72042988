"""The handler of the chaos run: echoes, and misbehaves once for each order that lies in a folder.

The model's yaml names the folder.  In it are `orders` (files NUMBER-KIND, the first batch or load that takes one obeys
it), `claims` (the orders taken, with the worker and the requests in its hand) and `batches` (a file for each worker,
with the requests of each batch in a line), so that the test knows what every misdeed may have cost.
"""

import atexit
import os
import signal
import stat
import threading
import time
from pathlib import Path

PROCESSES = 40  # of the fork bomb; bounded for the sake of whoever has no limit
EVERY = 3  # one worker in so many does not leave when it is asked to

_worker = ""
_folder = Path()


def handle(data, context):
    global _worker, _folder
    if data is None:
        _folder = Path(context.model_yaml_config["folder"])
        if _claim("load", []):
            os._exit(3)
        if os.getpid() % EVERY == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            atexit.register(threading.Event().wait)
        _worker = f"{os.getpid()}-{time.monotonic_ns()}"
        _note([])
        return None
    requests = [bytes(row["body"]).decode() for row in data]
    _note(requests)
    kind = _claim("batch", requests)
    if kind:
        _MISDEEDS[kind]()
    time.sleep(0.02)
    return [f"of {request}" for request in requests]


def _note(requests):
    with (_folder / "batches" / _worker).open("a") as batches:
        batches.write(" ".join(requests) + "\n")
    _say_who()


def _say_who():
    """In the tail of the output that goes with an error: whoever lost a request learns from whom."""
    print(f"worker {_worker}", flush=True)


def _claim(when, requests):
    """The kind of the order that this worker has to obey, if any."""
    for order in sorted(os.listdir(_folder / "orders")):
        _, asked, kind = order.split("-")
        if asked == when:
            try:
                (_folder / "orders" / order).rename(_folder / "claims" / order)
            except FileNotFoundError:  # another worker was quicker
                continue
            (_folder / "claims" / order).write_text(" ".join([_worker or "none", *requests]) + "\n")
            return kind
    return None


def _channel():
    """The descriptor of the socket to the server."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(entry)).st_mode):
                return int(entry)
        except OSError:
            continue
    raise AssertionError("no socket")


def _exit():
    os._exit(0)


def _flood():
    for _ in range(3000):
        print(f"worker {_worker}", "x" * 500)


def _hang_up():
    os.close(_channel())


def _garbage():
    os.write(_channel(), os.urandom(4096))


def _deaf():
    """Deaf to SIGTERM and to the signal that asks where it stands; asleep in one call."""
    for number in (signal.SIGTERM, signal.SIGABRT):
        signal.signal(number, signal.SIG_IGN)
    threading.Event().wait()


def _memory():
    hoard = []
    while True:
        hoard.append(bytes(16 << 20))  # a bytearray would be filled, and that takes its time


def _bomb():
    for _ in range(PROCESSES):
        if os.fork() == 0:
            while True:
                signal.pause()
    threading.Event().wait()


_MISDEEDS = {
    "exit": _exit,
    "flood": _flood,
    "hangup": _hang_up,
    "garbage": _garbage,
    "deaf": _deaf,
    "memory": _memory,
    "bomb": _bomb,
}
