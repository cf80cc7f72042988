"""Raises while it loads."""


class Refuses:
    def initialize(self, context):
        raise RuntimeError("no weights today")

    def handle(self, data, context):
        raise AssertionError
