"""Metrics that a handler emits: one line of the worker's output each, which the server collects."""
