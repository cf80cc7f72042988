"""Tensor data of the Open Inference Protocol: typed contents of messages, raw bytes, and the values of JSON.

Raw bytes are little-endian; each element of BYTES stands behind its length in four bytes.  What else makes a tensor
valid is the business of the envelope (ts/torch_handler/request_envelope), which has the same bytes over REST.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tserve.errors import BadRequest


@dataclass(frozen=True, slots=True)
class _Kind:
    """`field` of the contents that has its values, empty when only raw bytes can; `code` of one value for `struct`."""

    field: str
    code: str


_KINDS = {
    "BOOL": _Kind("bool_contents", "?"),
    "UINT8": _Kind("uint_contents", "B"),
    "UINT16": _Kind("uint_contents", "H"),
    "UINT32": _Kind("uint_contents", "I"),
    "UINT64": _Kind("uint64_contents", "Q"),
    "INT8": _Kind("int_contents", "b"),
    "INT16": _Kind("int_contents", "h"),
    "INT32": _Kind("int_contents", "i"),
    "INT64": _Kind("int64_contents", "q"),
    "FP16": _Kind("", "e"),
    "BF16": _Kind("", ""),
    "FP32": _Kind("fp32_contents", "f"),
    "FP64": _Kind("fp64_contents", "d"),
    "BYTES": _Kind("bytes_contents", ""),
}


def has_contents(datatype: str) -> bool:
    """Whether a message can have values of that type one by one."""
    return datatype not in _KINDS or bool(_KINDS[datatype].field)


def raw_of_contents(datatype: str, contents: Any, where: str) -> bytes:
    """The bytes of typed contents.  Raises BadRequest, saying `where`."""
    kind = _kind(datatype, where)
    filled = [field.name for field, _ in contents.ListFields()]
    if filled and filled != [kind.field]:
        meant = kind.field or "raw_input_contents"
        raise _bad(where, f"its data stand in {', '.join(filled)}; those of {datatype} belong in {meant}")
    values = getattr(contents, kind.field) if kind.field else ()
    return raw_of_values(datatype, values, where)


def raw_of_values(datatype: str, values: Any, where: str) -> bytes:
    """The bytes of values as JSON or typed contents have them.  Raises BadRequest, saying `where`."""
    kind = _kind(datatype, where)
    try:
        if datatype == "BYTES":
            return b"".join(_counted(value) for value in values)
        if kind.code in "?e":
            return struct.pack(f"<{len(values)}{kind.code}", *values)
        packed = array(kind.code, values)
    except (TypeError, ValueError, OverflowError, struct.error) as e:
        raise _bad(where, f"its data are not {datatype}: {e}") from e
    if sys.byteorder == "big":
        packed.byteswap()
    return bytes(packed)


def fill_contents(contents: Any, datatype: str, raw: bytes, where: str) -> None:
    """Typed contents of raw bytes.  Raises BadRequest, saying `where`."""
    getattr(contents, _kind(datatype, where).field).extend(_values(datatype, raw, where))


def json_of_raw(datatype: str, raw: bytes, where: str) -> list[Any]:
    """Values for JSON; elements of BYTES in Base64 (spec/inference.md section 8.4).  Raises BadRequest."""
    values = _values(datatype, raw, where)
    return [base64.b64encode(value).decode() for value in values] if datatype == "BYTES" else list(values)


def flat(data: Any) -> list[Any]:
    """The values of nested lists."""
    return [value for each in data for value in flat(each)] if isinstance(data, list) else [data]


def _values(datatype: str, raw: bytes, where: str) -> Sequence[Any]:
    kind = _kind(datatype, where)
    if datatype == "BYTES":
        return list(_elements(raw, where))
    if not kind.code:
        raise _bad(where, f"{datatype} has no other form than raw bytes")
    size = struct.calcsize(f"<{kind.code}")
    if len(raw) % size:
        raise _bad(where, f"{len(raw)} bytes are no whole number of values of {datatype}")
    if kind.code in "?e":
        return struct.unpack(f"<{len(raw) // size}{kind.code}", raw)
    values = array(kind.code, raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _elements(raw: bytes, where: str) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        end = at + 4 + (struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else 0)
        if at + 4 > len(raw) or end > len(raw):
            raise _bad(where, "an element of BYTES ends after its data")
        yield raw[at + 4 : end]
        at = end


def _counted(value: Any) -> bytes:
    if not isinstance(value, bytes):
        value = (value if isinstance(value, str) else json.dumps(value)).encode()
    return struct.pack("<I", len(value)) + bytes(value)


def _kind(datatype: str, where: str) -> _Kind:
    if datatype not in _KINDS:
        raise _bad(where, f"its datatype is {datatype[:80]!r}; known are {', '.join(_KINDS)}")
    return _KINDS[datatype]


def _bad(where: str, what: str) -> BadRequest:
    return BadRequest(f"{where}: {what}.", cause={"field": where})
