"""Frames between the server and its workers: a sans-IO codec shared by both sides.

A frame is a fixed head (kind, id, two lengths), a small JSON object, and raw bytes that no encoder touches.
Lengths are checked before anything is allocated for them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

_HEAD = struct.Struct("!BxxxIQQ")  # kind, bytes of meta, bytes of body, id
# Bound here: in a worker, a handler may put functions of its own into the module.
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode
META_LIMIT = 64 << 20
BODY_LIMIT = 4 << 30
CONTROL_BYTES = 4096  # of the longest message between the server and the zygote


TOOK = "took"  # meta of a REPLY: seconds that the handler took
METRICS = "metrics"  # meta of any frame of a worker: lines that its handler has emitted
METRICS_LOST = "lost"  # beside it: how many more there were
STREAM_NEXT = "ts_stream_next"  # response header: "true" says that more follows (spec/inference.md section 6)


class Kind(IntEnum):
    """LOAD and BATCH go to the worker; LOADED and REPLY come back, each to one of them.

    Any number of PIECEs, parts of a streamed answer, may come before the REPLY of a batch.  GONE tells a worker that
    nobody waits for a batch any more; it is not answered, the batch still is.  METRICS comes when it comes; its meta
    has `metrics`, lines of text, which the meta of any other frame of a worker may have as well.
    """

    LOAD = 1
    LOADED = 2
    BATCH = 3
    REPLY = 4
    PIECE = 5
    GONE = 6
    METRICS = 7


class WireError(Exception):
    """The other side sent bytes that are no frame, or hung up within one."""


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    id: int
    meta: dict[str, Any]
    body: bytes = b""

    def encode(self) -> bytes:
        """Raises WireError for a frame that the other side would refuse."""
        meta = _to_json(self.meta).encode()
        if len(meta) > META_LIMIT:
            raise WireError(f"{len(meta)} bytes of meta are over the limit")
        return b"".join((_HEAD.pack(self.kind, len(meta), len(self.body), self.id), meta, self.body))


class Decoder:
    """Bytes in any portions in, whole frames out.  Raises WireError; it is of no use after that."""

    def __init__(self, *, body_limit: int = BODY_LIMIT) -> None:
        self._buffer = bytearray()
        self._body_limit = body_limit
        self._need = _HEAD.size

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._buffer += data
        while len(self._buffer) >= self._need:
            frame = self._next()
            if frame is not None:
                yield frame

    def end(self) -> None:
        """The other side hung up; an error if that was within a frame."""
        if self._buffer:
            raise WireError(f"hung up within a frame, after {len(self._buffer)} of {self._need} bytes")

    def _next(self) -> Frame | None:
        kind, meta_size, body_size, number = _HEAD.unpack_from(self._buffer)
        if self._need == _HEAD.size:
            if meta_size > META_LIMIT or body_size > self._body_limit:
                raise WireError(f"frame of {meta_size} + {body_size} bytes is over the limit")
            self._need = _HEAD.size + meta_size + body_size
            if len(self._buffer) < self._need:
                return None
        view = memoryview(self._buffer)
        try:
            split = _HEAD.size + meta_size
            meta = _from_json(bytes(view[_HEAD.size : split]).decode())
            if not isinstance(meta, dict):
                raise WireError("frame meta is not an object")
            frame = Frame(Kind(kind), number, meta, bytes(view[split : self._need]))
        except (ValueError, RecursionError) as e:
            raise WireError(f"not a frame: {e}") from e
        finally:
            view.release()
        del self._buffer[: self._need]
        self._need = _HEAD.size
        return frame


@dataclass(frozen=True, slots=True)
class Input:
    """One named value of a request; `content_type` decides how the worker decodes it (spec/inference.md section 2)."""

    name: str
    content_type: str
    value: bytes


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a handler gets of one request: inputs by name and headers with the client's spelling."""

    request_id: str
    headers: dict[str, str]
    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class JobReply:
    """One answer of a batch.  `headers` are what the handler set, `content-type` among them if it set one."""

    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class HandlerFailed:
    """The handler failed a request, or a whole batch (spec/inference.md section 4.2 has the codes and messages)."""

    code: int
    message: str
    detail: str = ""


Answers = list[JobReply | HandlerFailed]


def encode_batch(number: int, requests: list[JobRequest]) -> Frame:
    jobs = [[r.request_id, r.headers, [[i.name, i.content_type, len(i.value)] for i in r.inputs]] for r in requests]
    return Frame(Kind.BATCH, number, {"jobs": jobs}, b"".join(i.value for r in requests for i in r.inputs))


def decode_batch(frame: Frame) -> list[JobRequest]:
    requests, at = [], 0
    for request_id, headers, parts in frame.meta["jobs"]:
        inputs = []
        for name, content_type, size in parts:
            inputs.append(Input(name, content_type, frame.body[at : at + size]))
            at += size
        requests.append(JobRequest(request_id, headers, tuple(inputs)))
    return requests


def encode_reply(
    number: int, answers: Answers | HandlerFailed, *, kind: Kind = Kind.REPLY, took_s: float | None = None
) -> Frame:
    """`answers` in the order of the batch's requests, or the one failure that all of them share; `took_s` is the
    time of the handler."""
    took = {} if took_s is None else {TOOK: took_s}
    if isinstance(answers, HandlerFailed):
        return Frame(kind, number, {"failed": _failed(answers), **took})
    parts = [
        _failed(a) if isinstance(a, HandlerFailed) else [a.status, a.phrase, a.headers, len(a.body)] for a in answers
    ]
    return Frame(kind, number, {"replies": parts, **took}, b"".join(a.body for a in answers if isinstance(a, JobReply)))


def _failed(failed: HandlerFailed) -> list[object]:
    return [failed.code, failed.message, failed.detail]


def decode_reply(frame: Frame) -> Answers | HandlerFailed:
    """Raises WireError when the frame is neither a reply nor a piece, or its sizes do not add up."""
    if frame.kind not in (Kind.REPLY, Kind.PIECE):
        raise WireError(f"expected a reply, got {frame.kind.name}")
    try:
        if "replies" not in frame.meta:
            return _read_failed(frame.meta["failed"])
        answers: Answers = []
        at = 0
        for part in frame.meta["replies"]:
            if len(part) == 3:
                answers.append(_read_failed(part))
                continue
            status, phrase, headers, size = part
            if size < 0:
                raise WireError("reply sizes do not add up")
            answers.append(JobReply(int(status), str(phrase), dict(headers), frame.body[at : at + size]))
            at += size
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise WireError(f"not a reply: {e!r}") from e
    if at != len(frame.body):
        raise WireError("reply sizes do not add up")
    return answers


def _read_failed(part: list[object]) -> HandlerFailed:
    code, message, detail = part
    if type(code) is not int or not isinstance(message, str) or not isinstance(detail, str):
        raise TypeError("a failure is a status and two texts")
    return HandlerFailed(code, message, detail)
