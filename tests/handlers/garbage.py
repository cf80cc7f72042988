"""Writes what is no frame into the socket to the server."""

import os
import sys


def handle(data, context):
    if data is not None:
        os.write(int(sys.argv[1]), b"Traceback (most recent call last):\n")
        os.read(int(sys.argv[1]), 1)
