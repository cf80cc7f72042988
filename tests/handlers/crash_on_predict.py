"""Ends its process at the first batch: with the exit code, or by the signal, that the request names."""

import os


def handle(data, context):
    if data is None:
        return
    how, _, number = bytes(data[0]["body"]).decode().partition(" ")
    if how == "signal":
        os.kill(os.getpid(), int(number))
    if how == "sys.exit":
        raise SystemExit(int(number))
    os._exit(int(number or 7))
