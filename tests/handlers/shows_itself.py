"""Answers with what it is: environment, arguments, paths, signals, threads, random numbers."""

import json
import os
import random
import signal
import sys
from pathlib import Path


def handle(data, context):
    torch = "torch" in sys.modules
    if data is None:
        return None
    threads = len(os.listdir("/proc/self/task"))
    import numpy  # which has threads of its own where nobody forbids it

    environ = {k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST",)}
    shown = {
        "torch": torch,
        "random": [random.random(), float(numpy.random.random()), _of_torch()],
        "environ": environ,
        "argv": sys.argv,
        "path": sys.path,
        "cwd": str(Path.cwd()),
        "main": sys.modules["__main__"].__name__,
        "threads": threads,
        "terminate": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "interrupt": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "leads": os.getpid() == os.getsid(0) == os.getpgid(0),
        "stdin": str(Path("/proc/self/fd/0").readlink()),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }
    return [json.dumps(shown)]


def _of_torch():
    torch = sys.modules.get("torch")
    return float(torch.rand(1)) if torch is not None else random.random()
