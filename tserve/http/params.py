"""Paths, queries and bodies as the contract reads them (spec/management.md sections 0.2, 0.3 and 2.1).

Bad numbers and booleans in a query fall back to the default, in silence, as recorded; a JSON body is read leniently
but a value of the wrong type in it is refused.  Only declared parameters can be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from tserve.errors import BadRequest
from tserve.http.operations import Parameter

T = TypeVar("T")
_INT = re.compile(r"([+-]?)0*([0-9]{1,10})")  # not more: int() is slow, then refuses, on very long ones
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
INT32 = range(-(2**31), 2**31)


def decode(raw: bytes, what: str) -> str:
    """Percent-decode to text; bytes that are no UTF-8 become U+FFFD.  Raises BadRequest for a broken escape."""
    broken = _BAD_ESCAPE.search(raw)
    if broken is not None:
        bad = raw[broken.start() : broken.start() + 3].decode("latin-1")
        raise BadRequest(
            f"Invalid percent-escape '{bad}' at index {broken.start()} of the {what}.",
            cause={"field": what, "value": bad, "allowed": "% and two hexadecimal digits"},
        )
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def split_path(raw: bytes) -> list[str] | None:
    """The segments of a request path: decoded first, then split; trailing empty ones vanish, inner ones stay.

    None for a target that is not a path (`*`, an absolute URI).
    """
    path = decode(raw, "path")
    if not path.startswith("/"):
        return None
    segments = path[1:].split("/")
    while segments and not segments[-1]:
        segments.pop()
    return segments


def parse_int(text: str | None) -> int | None:
    """A 32-bit whole number with an optional sign; None for everything else."""
    match = _INT.fullmatch(text) if text is not None else None
    if match is None:
        return None
    value = int(match[1] + match[2])
    return value if value in INT32 else None


class Undeclared(LookupError):
    """Code reads what the operation of its route does not declare; a bug, found by the first request."""


class _Declared:
    """What may be read: the parameters that an operation declares."""

    def __init__(self, declared: Sequence[Parameter[Any]]) -> None:
        self._declared = declared

    def __getitem__(self, wanted: Parameter[T]) -> T:
        """The value of a parameter, or its default.  Raises BadRequest, and Undeclared for one of another route."""
        if wanted not in self._declared:
            raise Undeclared(wanted.name)
        value: Any = getattr(self, "_" + wanted.kind)(wanted.name)
        return wanted.default if value is None else value


class Query(_Declared):
    """A query string: `&` and `;` separate, `+` is a space, the first of repeated names counts."""

    def __init__(self, raw: bytes, declared: Sequence[Parameter[Any]] = (), *, free: bool = False) -> None:
        """`free`: whether all pairs may be read, whatever their names.  Raises BadRequest."""
        super().__init__(declared)
        self._free = free
        self._pairs: list[tuple[str, str]] = []
        for part in re.split(rb"[&;]", raw):
            name, _, value = part.replace(b"+", b" ").partition(b"=")
            if name:
                self._pairs.append((decode(name, "query"), decode(value, "query")))
        self._values = dict(reversed(self._pairs))

    def _text(self, name: str) -> str | None:
        return self._values.get(name)

    def _number(self, name: str) -> int | None:
        return parse_int(self._values.get(name))

    def _flag(self, name: str) -> bool | None:
        """True only for `true` in any case; None when absent."""
        value = self._values.get(name)
        return None if value is None else value.lower() == "true"

    def _texts(self, name: str) -> tuple[str, ...]:
        return tuple(value for key, value in self._pairs if key == name)

    def pairs(self) -> dict[str, str]:
        """Every pair, of repeated names the first.  Raises Undeclared where the operation has no `free_query`."""
        if not self._free:
            raise Undeclared("any pairs")
        return {name: self._values[name] for name, _ in self._pairs}


class JsonBody(_Declared):
    """Parameters from a JSON object, typed as loosely as recorded: numbers as strings, `2.0`, null for unset."""

    def __init__(self, values: dict[str, object], declared: Sequence[Parameter[Any]]) -> None:
        super().__init__(declared)
        self._values = values

    def _text(self, name: str) -> str | None:
        value = self._values.get(name)
        if isinstance(value, bool):
            return "true" if value else "false"
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, (int, float)):
            return str(value)
        raise self._refusal(name, "a string")

    def _number(self, name: str) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            number = parse_int(re.sub(r"\.0+$", "", value))
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
            number = None
        else:
            number = int(value) if int(value) in INT32 else None
        if number is None:
            raise self._refusal(name, "a 32-bit whole number")
        return number

    def _flag(self, name: str) -> bool | None:
        value = self._values.get(name)
        if isinstance(value, str):
            return value.lower() == "true"
        if value is None or isinstance(value, bool):
            return value
        raise self._refusal(name, "true or false")

    def _refusal(self, name: str, allowed: str) -> BadRequest:
        shown = str(self._values[name])[:200]
        return BadRequest(
            f"Parameter {name} must be {allowed}: {shown}", cause={"field": name, "value": shown, "allowed": allowed}
        )


Parameters = Query | JsonBody
