"""Talks: on both streams, from a child process, in bytes that are no text, and without a last newline."""

import os
import subprocess
import sys


def handle(data, context):
    if data is None:
        print("loading")
        return None
    print("to stdout")
    print("to stderr", file=sys.stderr)
    print("\udcff lone surrogate")
    subprocess.run(["echo", "from a child"], check=True)
    os.write(1, b"\xff no text\n")
    sys.stdout.write("no newline")
    sys.stdout.flush()
    return [b"said"]
