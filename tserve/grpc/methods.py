"""Services as data: their methods, what serves them, and what their clients are told of a failure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from tserve.errors import TserveError
from tserve.grpc.codes import Code

CAUSE_KEY = "tserve-cause"  # of the trailing metadata: the `tserve` member of an error, as JSON
CAUSE_BYTES = 4 << 10  # clients take no more than 8 KiB of metadata
TEXT_BYTES = 3 << 10  # of the status text, as it is sent
_PACKAGES = {
    "ModelNotFoundException": "org.pytorch.serve.archive.model.",
    "ModelVersionNotFoundException": "org.pytorch.serve.archive.model.",
    "InvalidModelException": "org.pytorch.serve.archive.model.",
    "InvalidModelVersionException": "org.pytorch.serve.archive.model.",
    "ModelException": "org.pytorch.serve.archive.model.",
    "DownloadArchiveException": "org.pytorch.serve.archive.",
    "WorkerInitializationException": "org.pytorch.serve.wlm.",
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call, beside its message: `actor` is the client's address, `metadata` what it sent along.

    `stopping` is set as soon as the server takes no more calls: those that would have no end of their own end then.
    """

    method: str
    actor: str
    request_id: str
    metadata: Mapping[str, str | bytes]
    stopping: trio.Event


Send = Callable[[Any], Awaitable[None]]
Tell = Callable[[Any], None]  # with the reply, or the Refusal or TserveError that stands for it; once
Leave = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Method:
    """`serve` is a task: `(request, call) -> reply` for a unary method; `(request, call, send) -> None` for one that
    streams its replies; with `streams_requests`, `request` is an asynchronous iterator of them.

    `begin` takes its place for a unary method whose calls need no task: it returns at once, tells its outcome later or
    before it returns, and gives back what is to be called when the client does not wait any more.
    """

    name: str
    serve: Callable[..., Awaitable[Any]] | None = None
    streams_requests: bool = False
    streams_replies: bool = False
    begin: Callable[[Any, Call, Tell], Leave] | None = None


@dataclass(eq=False)
class Refusal(Exception):
    """How a call fails: a status, its text, and what is beside it in the trailing metadata."""

    code: Code
    details: str
    cause: Mapping[str, object]

    @property
    def text(self) -> str:
        """`details`, of a long one the beginning and the last line, as far as clients take them."""
        first, newline, last = self.details.rpartition("\n") if "\n" in self.details else (self.details, "", "")
        return _cut(first, TEXT_BYTES) + newline + _cut(last, TEXT_BYTES // 8)

    @property
    def trailing(self) -> tuple[tuple[str, str], ...]:
        if not self.cause:
            return ()
        text = json.dumps(self.cause)
        for most in (512, 64):
            if len(text) > CAUSE_BYTES:
                text = json.dumps({key: _shorter(key, value, most) for key, value in self.cause.items()})
        if len(text) > CAUSE_BYTES:
            text = json.dumps({"reason": str(self.cause.get("reason", ""))[:64]})
        return ((CAUSE_KEY, text),)


def _shorter(key: str, value: object, most: int) -> object:
    """Of what a worker said last the end counts, of other texts the beginning."""
    if not isinstance(value, str):
        return value
    return value[-most:] if key == "log_tail" else value[:most]


def _cut(text: str, most: int) -> str:
    """As much of a text as is sent in `most` bytes: %XX for each that is no printable ASCII."""
    cleaned = text.encode("utf-8", "replace").decode()
    sizes = (1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode()) for char in cleaned)
    for end, sent in enumerate(itertools.accumulate(sizes)):
        if sent > most:
            return cleaned[:end] + " …"
    return cleaned


@dataclass(frozen=True, slots=True)
class Service:
    """`refuse` says what becomes of an error of ours."""

    name: str
    methods: Sequence[Method]
    refuse: Callable[[TserveError], Refusal]


def refuse_by_code(error: TserveError) -> Refusal:
    """By the number of the error, in its own words: for services that the recorded server does not have."""
    return Refusal(code_of_http(error.code), error.message, error.cause)


def server_stops() -> Refusal:
    """What calls get that the end of the server cuts short."""
    return Refusal(Code.UNAVAILABLE, "The server is stopping.", {})


async def cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    """End what runs in `scope` once `event` is set: for calls that clients keep open, at `Call.stopping`."""
    await event.wait()
    scope.cancel()


def java_class(error: TserveError) -> str:
    """The second line of a status text, which clients match on (spec/management.md section 7.3)."""
    return _PACKAGES.get(error.type_name, "org.pytorch.serve.http.") + error.type_name


def code_of_http(status: int) -> Code:
    """The recorded table (spec/inference.md section 8.3)."""
    known = _CODES.get(status)
    if known is not None:
        return known
    if status in range(200, 300):
        return Code.OK
    if status in range(400, 500):
        return Code.FAILED_PRECONDITION
    return Code.INTERNAL if status in range(500, 600) else Code.UNKNOWN


_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    409: Code.ABORTED,
    413: Code.RESOURCE_EXHAUSTED,
    416: Code.OUT_OF_RANGE,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
