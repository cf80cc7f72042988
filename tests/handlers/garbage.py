"""Writes what is no frame into the socket to the server."""

import os

from to_server import channel


def handle(data, context):
    if data is not None:
        os.write(channel(), b"Traceback (most recent call last):\n")
        os.read(channel(), 1)
