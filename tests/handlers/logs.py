"""Logs the way handlers do, and replaces what it logs to when it is asked."""

import io
import logging
import sys

logger = logging.getLogger(__name__)
logger.info("at import")


class Handler:
    def initialize(self, context):
        logger.info("in initialize")
        logger.debug("not shown")

    def handle(self, data, context):
        logger.info("in handle: %s", bytes(data[0]["body"]).decode())
        if bytes(data[0]["body"]) == b"replace":
            sys.stdout = io.StringIO()
        return ["logged"]
