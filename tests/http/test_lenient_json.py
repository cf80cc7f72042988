"""Register's JSON bodies, row by row of the table in spec/management.md section 2.1."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tserve.errors import BadRequest
from tserve.http.lenient_json import parse_object


@pytest.mark.parametrize(
    ("body", "members"),
    [
        # Strict JSON.
        ("{}", {}),
        ('{"url": "noop.mar", "batch_size": 3}', {"url": "noop.mar", "batch_size": 3}),
        (' \n{"synchronous": true, "url": null}\t', {"synchronous": True, "url": None}),
        ('{"batch_size": 2.0}', {"batch_size": 2.0}),
        ('{"unknown": [1, {"x": 2}]}', {"unknown": [1, {"x": 2}]}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        # Single quotes.
        ("{'url': 'noop.mar'}", {"url": "noop.mar"}),
        ("{'url': \"noop.mar\", \"batch_size\": '3'}", {"url": "noop.mar", "batch_size": "3"}),
        ("{'url': 'it\"s'}", {"url": 'it"s'}),
        (r"{'url': 'it\'s'}", {"url": "it's"}),
        # Names and values without quotes.
        ("{url:noop.mar}", {"url": "noop.mar"}),
        (
            "{url: noop.mar, batch_size: 3, synchronous: true}",
            {"url": "noop.mar", "batch_size": "3", "synchronous": True},
        ),
        ("{url:null,a:false}", {"url": None, "a": False}),
        ("{url: -1, delay: 2.0}", {"url": "-1", "delay": "2.0"}),
        ("{null: x, 'true': y}", {"null": "x", "true": "y"}),
        # Separators as the recorded parser takes them.
        ("{url=noop.mar}", {"url": "noop.mar"}),
        ("{url=noop.mar;a=b}", {"url": "noop.mar", "a": "b"}),
        # The last of repeated names counts.
        ("{a:1,a:2}", {"a": "2"}),
        # Text of any kind inside quotes, also when the rest is lenient.
        ("{'a': '{x: [1, 2]}'}", {"a": "{x: [1, 2]}"}),
        (r"{'a': '\u6a21\n\t\r\b\f\/\\'}", {"a": "\u6a21\n\t\r\b\f/\\"}),
        (r"{'a': '\ud83d\ude00'}", {"a": "\U0001f600"}),
        ("{'a': ''}", {"a": ""}),
        ("{'': 'x'}", {"": "x"}),
        ("{ 'a' : 'line\nbreak' }", {"a": "line\nbreak"}),
        ("{NaN: NaN}", {"NaN": "NaN"}),
    ],
)
def test_what_is_read(body: str, members: dict[str, object]) -> None:
    assert parse_object(body.encode()) == members


def test_a_number_that_json_has_not_is_a_word() -> None:
    """Like every other bare word it is refused only where a number is wanted."""
    assert parse_object(b'{"batch_size": NaN, "x": Infinity}') == {"batch_size": "NaN", "x": "Infinity"}


def test_a_number_of_thousands_of_digits_does_no_harm() -> None:
    assert parse_object(b'{"batch_size": %s}' % (b"9" * 5000)) == {"batch_size": "9" * 5000}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (rb'{"url": "\ud800.mar"}', "\ufffd.mar"),
        (rb"{'url': '\udc00.mar'}", "\ufffd.mar"),
        (rb'{"url": "\ud83d\ude00"}', "\U0001f600"),
        (b'{"url": "\xff.mar"}', "\ufffd.mar"),
    ],
)
def test_what_no_text_can_hold_is_replaced(body: bytes, text: str) -> None:
    """No answer and no database could carry it."""
    read = parse_object(body)["url"]
    assert read == text
    assert isinstance(read, str)
    read.encode()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "expected { and found 'the end'"),
        (b"   ", "expected { and found 'the end'"),
        (b"null", "it is not an object"),
        (b"[]", "it is not an object"),
        (b'["url"]', "it is not an object"),
        (b'"url"', "it is not an object"),
        (b"3", "it is not an object"),
        (b"noop.mar", "expected { and found 'noop.mar'"),
        (b"url=noop.mar", "expected { and found 'url'"),
        (b"{", "expected a value and found 'the end'"),
        (b'{"url"', "expected : and found 'the end'"),
        (b'{"url":', "expected a value and found 'the end'"),
        (b'{"url": "noop.mar"', "expected , or } and found 'the end'"),
        (b'{"url": "noop.mar', "unexpected '\"noop.mar'"),
        (b"{'url': 'noop.mar}", 'unexpected "\'noop.mar"'),
        (b'{"url": }', "expected a value and found '}'"),
        (b'{"url": "a.mar" "b": 1}', "expected , or } and found 'b'"),
        (b"{url}", "expected : and found '}'"),
        (b"{,}", "expected a value and found ','"),
        (b"{url: [a]}", "expected a value and found '['"),
        (b"{url: {a: b}}", "expected a value and found '{'"),
        (b'{"url": "noop.mar"} x', "text follows the object"),
        (b'{"url": "noop.mar"}{}', "text follows the object"),
        (b"{url: a\\b}", "unexpected '\\\\b}'"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
    ],
)
def test_what_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_object(body)
    assert refused.value.message == f"The request body is not a JSON object of parameters: {why}."
    assert refused.value.cause == {"field": "body", "detail": why, "allowed": "a flat JSON object"}
    assert refused.value.code == 400


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(codec="utf-8"))


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), SCALARS))
def test_every_flat_object_is_read_as_it_is(members: dict[str, object]) -> None:
    assert parse_object(json.dumps(members).encode()) == members


@given(st.text(st.sampled_from("{}[]:,;='\"\\ aé1\n")) | st.binary())
def test_any_other_text_is_read_or_refused(body: str | bytes) -> None:
    raw = body if isinstance(body, bytes) else body.encode()
    try:
        read = parse_object(raw)
    except BadRequest as refused:
        assert refused.cause["field"] == "body"
    else:
        assert all(isinstance(name, str) for name in read)
