"""A flat JSON object as the recorded server's parser takes it: single quotes and bare words count as strings.

Strict JSON is tried first; this reads what that refuses.  Upstream's own tests send such bodies (spec/management.md
section 2.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tserve.errors import BadRequest

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<mark>[{}:,=;\[\]])
      | "(?P<double>(?:[^"\\]|\\.)*)"
      | '(?P<single>(?:[^'\\]|\\.)*)'
      | (?P<bare>[^\s{}:,=;\[\]"'\\]+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_WORDS: dict[str, object] = {"null": None, "true": True, "false": False}
_DEPTH_TEXT = "a flat JSON object"


def parse_object(body: bytes) -> dict[str, object]:
    """The members of the object in `body`, the last of repeated ones.  Raises BadRequest for anything else."""
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise _refusal("it is nested too deeply") from None
    except ValueError:
        value = _parse_lenient(text)
    if not isinstance(value, dict):
        raise _refusal("it is not an object")
    return {_clean(name): _clean(item) if isinstance(item, str) else item for name, item in value.items()}


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _clean(text: str) -> str:
    """Without lone surrogates, which no UTF-8 text, and so no answer and no database, can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _refusal(why: str) -> BadRequest:
    return BadRequest(
        f"The request body is not a JSON object of parameters: {why}.",
        cause={"field": "body", "detail": why, "allowed": _DEPTH_TEXT},
    )


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _refusal(f"unexpected {text[at : at + 10].strip()!r}")
        yield match.lastgroup, match.group(match.lastgroup)
        at = match.end()
    yield "end", ""


def _parse_lenient(text: str) -> dict[str, object]:
    tokens = _tokens(text)
    _expect(tokens, "{")
    members: dict[str, object] = {}
    kind, word = next(tokens)
    while (kind, word) != ("mark", "}"):
        name = _scalar(kind, word)
        _expect(tokens, ":", "=")
        members[name if isinstance(name, str) else word] = _scalar(*next(tokens))
        kind, word = next(tokens)
        if kind == "mark" and word in (",", ";"):
            kind, word = next(tokens)
        elif (kind, word) != ("mark", "}"):
            raise _refusal(f"expected , or }} and found {word[:20] or 'the end'!r}")
    if next(tokens)[0] != "end":
        raise _refusal("text follows the object")
    return members


def _expect(tokens: Iterator[tuple[str, str]], *marks: str) -> None:
    kind, word = next(tokens)
    if kind != "mark" or word not in marks:
        raise _refusal(f"expected {marks[0]} and found {word[:20] or 'the end'!r}")


def _scalar(kind: str, word: str) -> object:
    if kind in ("double", "single"):
        return _ESCAPE.sub(_unescape, word)
    if kind != "bare":
        raise _refusal(f"expected a value and found {word or 'the end'!r}")
    return _WORDS.get(word, word)


def _unescape(match: re.Match[str]) -> str:
    code = match.group(1)
    return chr(int(code[1:], 16)) if len(code) == 5 else _ESCAPED.get(code, code)
