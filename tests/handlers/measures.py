"""Emits metrics, the last of them in a line that is longer than any pipe holds."""

import sys


def handle(data, context):
    if data is None:
        return None
    print("before")
    context.metrics.add_counter("Own", 1)
    print("amid")
    sys.stdout.write("[METRICS]" + "m" * (1 << 20) + "\n")
    print("after")
    return ["measured" for _ in data]
