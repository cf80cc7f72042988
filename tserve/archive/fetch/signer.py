"""The signer process: the AWS SDK says which request fetches an object, and with which headers.  It fetches nothing.

Credentials come from the SDK's own chain (environment, files, roles), with the session token where there is one.  The
request itself is sent by the server, which alone decides who is connected to.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from tserve.archive.parent import die_with

_ANY_REGION = "us-east-1"
_AWS_HOST = re.compile(r"^https?://[^/]*\bs3[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-[0-9])\.amazonaws\.com", re.I)


class _Captured(Exception):
    """A request that the SDK was about to send."""

    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request


def main() -> None:
    """Arguments: the package's root (used by the command line that imports this), the server's process id."""
    die_with(int(sys.argv[2]))
    sys.stdout.write(json.dumps(answer(json.load(sys.stdin.buffer))))


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """`{"url", "headers", "region"}`, or `{"reason", "detail"}` when there is nothing to sign with."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.session.Session(region_name=asked.get("region"))
        if asked["url"].lower().startswith("s3://"):
            return _object(session, asked["url"], asked.get("endpoint"))
        return _signed(session, asked["url"])
    except (BotoCoreError, ValueError) as error:
        reason = "no_credentials" if "redential" in type(error).__name__ else "s3_error"
        return {"reason": reason, "detail": str(error)[:500]}


def _signed(session: Any, url: str) -> dict[str, Any]:
    """A GET of the URL as it is given, signed for S3 (spec/management.md section 3.4, without its slips)."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    credentials = session.get_credentials()
    if credentials is None:
        return {"reason": "no_credentials", "detail": "Unable to locate credentials"}
    named = _AWS_HOST.match(url)
    region = session.region_name or (named[1] if named else _ANY_REGION)
    request = AWSRequest("GET", url)
    S3SigV4Auth(credentials.get_frozen_credentials(), "s3", region).add_auth(request)
    return {"url": url, "headers": dict(request.headers.items()), "region": region}


def _object(session: Any, url: str, endpoint: str | None) -> dict[str, Any]:
    """The request that the S3 client makes for `s3://bucket/key`; the key is taken as it is written."""
    from botocore.config import Config

    bucket, _, key = url.partition("://")[2].partition("/")
    config = Config(retries={"total_max_attempts": 1}, signature_version="s3v4")
    region = session.region_name or _ANY_REGION
    client = session.client("s3", region_name=region, endpoint_url=endpoint, config=config)
    client.meta.events.register("before-send.s3", _capture)
    try:
        client.get_object(Bucket=bucket, Key=key)
    except _Captured as captured:
        request = captured.request
    headers = {name: _text(value) for name, value in request.headers.items()}
    return {"url": request.url, "headers": headers, "region": region}


def _capture(request: Any, **_: Any) -> None:
    raise _Captured(request)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
