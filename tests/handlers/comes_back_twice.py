"""Forks and lets both processes return to the worker's loop, as a careless use of multiprocessing does."""

import os


def handle(data, context):
    if data:
        os.fork()
    return [bytes(next(iter(row.values()), b"")) for row in data or ()]
