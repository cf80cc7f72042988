"""Closes its socket to the server in the middle of a batch, and lives on."""

import os
import threading

from to_server import channel


def handle(data, context):
    if data is not None:
        os.close(channel())
        threading.Event().wait()
