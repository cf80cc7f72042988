"""Prints as many bytes as the request says, and then in one line as many again."""

import sys


def handle(data, context):
    if data is None:
        return None
    size = int(bytes(data[0]["body"]))
    for _ in range(size // 64):
        print("x" * 63)
    sys.stdout.write("y" * size + "\nend\n")
    return [b"said"]
