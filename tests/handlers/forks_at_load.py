"""Forks while it loads, and has the child leave by an exception, as a daemon's first half does."""

import os
import sys


def handle(data, context):
    if data is None:
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        return None
    return [bytes(row["body"]) for row in data]
