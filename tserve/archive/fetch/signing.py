"""Asks the signer process for the request of an S3 object."""

from __future__ import annotations

import json
from dataclasses import dataclass

import trio

from tserve.archive.fetch.rules import TransferFailed
from tserve.archive.one_shot import ask

_PATIENCE_S = 60.0  # a chain of roles may have to ask several services for credentials
_SIGNERS = trio.CapacityLimiter(2)  # each is an interpreter with the SDK in it


@dataclass(frozen=True, slots=True)
class Signed:
    url: str
    headers: dict[str, str]
    region: str


async def sign(url: str, *, endpoint: str | None = None, region: str | None = None) -> Signed:
    """The request for `s3://bucket/key`, or for an http(s) URL as it is given.  Raises TransferFailed."""
    request = {"url": url, "endpoint": endpoint, "region": region}
    answer: dict[str, object] = {}
    try:
        async with _SIGNERS:
            with trio.fail_after(_PATIENCE_S):
                output, status = await ask("fetch.signer", json.dumps(request).encode())
        answer = json.loads(output)
        if "reason" not in answer:
            return Signed(**json.loads(output))
    except trio.TooSlowError as error:
        raise TransferFailed("no_credentials", f"the AWS SDK gave no answer within {_PATIENCE_S:g} s") from error
    except (OSError, ValueError, TypeError) as error:
        raise TransferFailed("s3_error", f"the signer process ended with status {status}") from error
    raise TransferFailed(str(answer["reason"]), str(answer["detail"]))
