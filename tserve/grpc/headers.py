"""What gRPC says in the header blocks of HTTP/2: the head of a call, and the blocks that answer it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from tserve.grpc.codes import Code
from tserve.grpc.http2 import Malformed

METADATA_BYTES = 16 << 10  # of a call, names and values
ENCODINGS = ("identity", "deflate", "gzip")
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_OWN = {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"content-length"}
_BINARY = b"-bin"


@dataclass(frozen=True)
class Head:
    """`path` without its slash; `problem` is the whole answer to a call that cannot be served."""

    path: str
    timeout_s: float | None
    encoding: str
    fields: tuple[tuple[bytes, bytes], ...]
    problem: bytes | None = None

    @cached_property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the client sent along; of a name that stands twice the last one."""
        return {name.decode("latin-1"): _value(name, value) for name, value in self.fields}


def read_head(fields: Iterable[tuple[bytes, bytes]]) -> Head:
    """Raises Malformed."""
    pseudo: dict[bytes, bytes] = {}
    named: dict[bytes, bytes] = {}
    others: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if name.startswith(b":"):
            if others or named or name in pseudo:
                raise Malformed
            pseudo[name] = value
        elif name in _OWN:
            named[name] = value
        else:
            others.append((name, value))
    if any(name != name.lower() for name, _ in others) or not {b":method", b":path", b":scheme"} <= pseudo.keys():
        raise Malformed
    timeout = _TIMEOUT.fullmatch(named[b"grpc-timeout"]) if b"grpc-timeout" in named else None
    return Head(
        path=pseudo[b":path"].decode("latin-1").removeprefix("/"),
        timeout_s=int(timeout[1]) * _UNITS_S[timeout[2]] if timeout else None,
        encoding=named.get(b"grpc-encoding", b"identity").decode("latin-1"),
        fields=tuple(others),
        problem=_problem(pseudo, named, others, has_timeout=timeout is not None),
    )


def _problem(
    pseudo: Mapping[bytes, bytes],
    named: Mapping[bytes, bytes],
    others: Iterable[tuple[bytes, bytes]],
    *,
    has_timeout: bool,
) -> bytes | None:
    if pseudo[b":method"] != b"POST":
        return field(b":status", b"405") + field(b"allow", b"POST")
    if not named.get(b"content-type", b"").startswith(b"application/grpc"):
        return field(b":status", b"415")
    if b"grpc-timeout" in named and not has_timeout:
        return refusal(Code.INTERNAL, f"grpc-timeout {named[b'grpc-timeout'][:32]!r} is none.")
    if named.get(b"grpc-encoding", b"identity").decode("latin-1") not in ENCODINGS:
        return refusal(Code.UNIMPLEMENTED, f"grpc-encoding has to be one of {', '.join(ENCODINGS)}.")
    if sum(len(name) + len(value) for name, value in others) > METADATA_BYTES:
        return refusal(Code.RESOURCE_EXHAUSTED, f"The metadata of a call can have {METADATA_BYTES} bytes.")
    return None


def _value(name: bytes, value: bytes) -> str | bytes:
    if not name.endswith(_BINARY):
        return value.decode("latin-1")
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4))
    except binascii.Error:
        return b""


def field(name: bytes, value: bytes) -> bytes:
    """A header field as a literal that leaves the client's table alone (RFC 7541 section 6.2.2)."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(number: int) -> bytes:
    """RFC 7541 section 5.1, with seven bits in the first byte: no Huffman."""
    if number < 127:
        return bytes((number,))
    said, number = bytearray((127,)), number - 127
    while number >= 128:
        said.append(number & 127 | 128)
        number >>= 7
    said.append(number)
    return bytes(said)


def trailers(code: Code, text: str = "", more: Iterable[tuple[str, str]] = ()) -> bytes:
    """The end of an answer; the text goes as gRPC wants it, %XX for what is no printable ASCII."""
    block = field(b"grpc-status", b"%d" % code)
    if text:
        block += field(b"grpc-message", _percent(text))
    return block + b"".join(field(name.encode(), value.encode()) for name, value in more)


def refusal(code: Code, text: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """The whole answer of a call that fails before it has said anything."""
    return ANSWER + trailers(code, text, more)


def _percent(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return b"".join(bytes((byte,)) if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in raw)


# Index 8 of the static table is `:status: 200`.
ANSWER = (
    b"\x88" + field(b"content-type", b"application/grpc") + field(b"grpc-accept-encoding", ",".join(ENCODINGS).encode())
)
DONE = trailers(Code.OK)
