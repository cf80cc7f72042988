"""Paths, queries and typed parameters, row by row of spec/management.md sections 0.2, 0.3 and 2.1."""

from __future__ import annotations

from typing import Any

import pytest

from tserve.errors import BadRequest
from tserve.http import operations as declare
from tserve.http.params import JsonBody, Query, Undeclared, decode, parse_int, split_path

N = declare.number("n", "")
URL = declare.text("url", "")
BATCH_SIZE = declare.number("batch_size", "")
SYNCHRONOUS = declare.flag("synchronous", "")


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        (b"/models", ["models"]),
        (b"/models/noop/1.0", ["models", "noop", "1.0"]),
        # No segments at all.
        (b"/", []),
        (b"//", []),
        (b"////", []),
        # Trailing empty segments vanish, inner and leading ones stay.
        (b"/models/", ["models"]),
        (b"/models//", ["models"]),
        (b"/models/x/1.0/set-default/", ["models", "x", "1.0", "set-default"]),
        (b"/models//1.0", ["models", "", "1.0"]),
        (b"/models/x//", ["models", "x"]),
        (b"//models", ["", "models"]),
        # Decoded first, then split: an escaped slash separates, and an escaped trailing one vanishes.
        (b"/models/a%2Fb", ["models", "a", "b"]),
        (b"/models/a%2fb", ["models", "a", "b"]),
        (b"/models/a%2F", ["models", "a"]),
        (b"/models%2F%2F1.0", ["models", "", "1.0"]),
        (b"%2Fmodels", ["models"]),
        # Decoded once.
        (b"/models/a%252Fb", ["models", "a%2Fb"]),
        (b"/models/50%25", ["models", "50%"]),
        # A plus is a plus, a dot segment a segment, and case counts.
        (b"/models/a+b", ["models", "a+b"]),
        (b"/models/../x", ["models", "..", "x"]),
        (b"/models/./x", ["models", ".", "x"]),
        (b"/Models", ["Models"]),
        (b"/models/a%20b", ["models", "a b"]),
        (b"/models/a%00b", ["models", "a\0b"]),
        (b"/models/a%3Fb;c", ["models", "a?b;c"]),
        # UTF-8, well and badly formed.
        (b"/models/%E6%A8%A1", ["models", "\u6a21"]),
        ("/models/\u6a21".encode(), ["models", "\u6a21"]),
        (b"/models/%ff", ["models", "\ufffd"]),
        (b"/models/\xe6\xa8", ["models", "\ufffd"]),
        (b"/models/%E6%A8x", ["models", "\ufffdx"]),
        # Not a path.
        (b"*", None),
        (b"", None),
        (b"http://h/models", None),
        (b"models", None),
    ],
)
def test_split_path(raw: bytes, segments: list[str] | None) -> None:
    assert split_path(raw) == segments


@pytest.mark.parametrize(
    ("raw", "bad", "index"),
    [
        (b"/models/%zz", "%zz", 8),
        (b"/models/a%", "%", 9),
        (b"/models/a%4", "%4", 9),
        (b"/%20%4g", "%4g", 4),
        (b"/%%20", "%%2", 1),
        (b"/%-1", "%-1", 1),
        (b"/%\xff\xff", "%\xff\xff", 1),
    ],
)
def test_a_broken_escape_is_refused(raw: bytes, bad: str, index: int) -> None:
    with pytest.raises(BadRequest) as refused:
        split_path(raw)
    assert refused.value.message == f"Invalid percent-escape '{bad}' at index {index} of the path."
    assert refused.value.cause == {"field": "path", "value": bad, "allowed": "% and two hexadecimal digits"}


def test_decode_names_what_is_broken() -> None:
    with pytest.raises(BadRequest, match="of the query"):
        decode(b"%", "query")


@pytest.mark.parametrize(
    ("raw", "pairs"),
    [
        (b"", {}),
        (b"a=1", {"a": "1"}),
        (b"a=1&b=2", {"a": "1", "b": "2"}),
        # A semicolon separates as an ampersand does.
        (b"batch_size=9;max_batch_delay=3", {"batch_size": "9", "max_batch_delay": "3"}),
        (b"a=1;b=2&c=3", {"a": "1", "b": "2", "c": "3"}),
        # The first of repeated names counts, also when it is empty.
        (b"a=1&a=2", {"a": "1"}),
        (b"a=&a=2", {"a": ""}),
        (b"a&a=2", {"a": ""}),
        (b"%61=1&a=2", {"a": "1"}),
        # Names are case-sensitive.
        (b"URL=x&url=y", {"URL": "x", "url": "y"}),
        # A plus is a space, an escaped one a plus.
        (b"a=b+c", {"a": "b c"}),
        (b"a=%2B3", {"a": "+3"}),
        (b"a+b=1", {"a b": "1"}),
        # Values: everything after the first equals sign, decoded once, separators only when bare.
        (b"a=b=c", {"a": "b=c"}),
        (b"a=b%26c%3Bd", {"a": "b&c;d"}),
        (b"url=http://h/m.mar?x", {"url": "http://h/m.mar?x"}),
        (b"a=%25%32%36", {"a": "%26"}),
        (b"a=%ff", {"a": "\ufffd"}),
        ("a=\u6a21".encode(), {"a": "\u6a21"}),
        # Nothing in it.
        (b"&&;&", {}),
        (b"=1&b=2", {"b": "2"}),
        (b"flag", {"flag": ""}),
    ],
)
def test_query(raw: bytes, pairs: dict[str, str]) -> None:
    assert Query(raw, free=True).pairs() == pairs


@pytest.mark.parametrize("raw", [b"limit=%zz", b"a=1&%=2", b"unknown=%4"])
def test_a_broken_escape_anywhere_in_a_query_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        Query(raw)
    assert refused.value.cause["field"] == "query"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (None, None),
        ("0", 0),
        ("-0", 0),
        ("7", 7),
        ("+3", 3),
        ("-3", -3),
        ("007", 7),
        ("0" * 50 + "7", 7),
        ("2147483647", 2147483647),
        ("-2147483648", -2147483648),
        ("2147483648", None),
        ("-2147483649", None),
        ("9" * 5000, None),
        ("", None),
        ("abc", None),
        ("1.5", None),
        ("2.0", None),
        ("1e3", None),
        ("0x10", None),
        ("1_000", None),
        (" 1", None),
        ("1 ", None),
        ("1\n", None),
        ("+", None),
        ("-", None),
        ("--1", None),
        ("+-1", None),
        ("NaN", None),
        ("\u0663", None),
        ("\u00b2", None),
    ],
)
def test_parse_int(text: str | None, number: int | None) -> None:
    """An answer at once for every row: looking for a non-number in a range once walked through all of it."""
    assert parse_int(text) == number


@pytest.mark.parametrize(
    ("raw", "flag"),
    [
        (b"", None),
        (b"synchronous=true", True),
        (b"synchronous=TRUE", True),
        (b"synchronous=tRuE", True),
        (b"synchronous=", False),
        (b"synchronous", False),
        (b"synchronous=false", False),
        (b"synchronous=1", False),
        (b"synchronous=yes", False),
        (b"synchronous=-1", False),
        (b"synchronous=nan", False),
        (b"synchronous=true+", False),
        (b"Synchronous=true", None),
    ],
)
def test_a_flag_in_a_query(raw: bytes, flag: bool | None) -> None:
    assert Query(raw, [SYNCHRONOUS])[SYNCHRONOUS] is flag


@pytest.mark.parametrize(
    ("raw", "number"), [(b"", None), (b"n=", None), (b"n=abc", None), (b"n=%2B3", 3), (b"n=+3", None), (b"n=-1", -1)]
)
def test_a_number_in_a_query_is_never_an_error(raw: bytes, number: int | None) -> None:
    assert Query(raw, [N])[N] == number


def test_a_text_in_a_query() -> None:
    wanted = [declare.text(name, "") for name in "abc"]
    query = Query(b"a=&b=x", wanted)
    assert [query[each] for each in wanted] == ["", "x", None]


def test_repeated_texts_in_a_query() -> None:
    names, others = declare.texts("name[]", ""), declare.texts("others", "")
    query = Query(b"name[]=a&name%5B%5D=b;name[]=", [names, others])
    assert (query[names], query[others]) == (("a", "b", ""), ())


def test_a_default_is_read_where_nothing_is_given_that_makes_sense() -> None:
    count, sure = declare.number("n", "", default=7), declare.flag("f", "", default=True)

    assert [Query(raw, [count])[count] for raw in (b"", b"n=", b"n=x", b"n=0", b"n=3")] == [7, 7, 7, 0, 3]
    assert [Query(raw, [sure])[sure] for raw in (b"", b"f=", b"f=true")] == [True, False, True]


def test_what_an_operation_does_not_declare_cannot_be_read() -> None:
    """Not even under the same name: the document would not have the one that is read."""
    declared, other = declare.text("a", ""), declare.text("a", "")
    with pytest.raises(Undeclared):
        Query(b"a=1", [declared])[other]
    with pytest.raises(Undeclared):
        JsonBody({"a": 1}, [declared])[other]
    with pytest.raises(Undeclared):
        Query(b"a=1", [declared]).pairs()


# ---- JSON bodies


@pytest.mark.parametrize(
    ("value", "text"),
    [("x", "x"), ("", ""), (None, None), (True, "true"), (False, "false"), (3, "3"), (2.5, "2.5")],
)
def test_a_text_in_a_json_body(value: object, text: str | None) -> None:
    assert JsonBody({"url": value}, [URL])[URL] == text


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (-1, -1),
        (2.0, 2),
        (-0.0, 0),
        (1e3, 1000),
        ("3", 3),
        ("+3", 3),
        ("2.0", 2),
        (None, None),
        (2**31 - 1, 2**31 - 1),
        (-(2**31), -(2**31)),
    ],
)
def test_a_number_in_a_json_body(value: object, number: int | None) -> None:
    assert JsonBody({"batch_size": value}, [BATCH_SIZE])[BATCH_SIZE] == number


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("abc", "abc"),
        ("", ""),
        ("2.5", "2.5"),
        (2.5, "2.5"),
        (True, "True"),
        (2**31, "2147483648"),
        ("2147483648", "2147483648"),
        (1e300, "1e+300"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        ([], "[]"),
        ({"a": 1}, "{'a': 1}"),
        ("x" * 1000, "x" * 200),
    ],
)
def test_a_bad_number_in_a_json_body_is_refused(value: object, shown: str) -> None:
    with pytest.raises(BadRequest) as refused:
        JsonBody({"batch_size": value}, [BATCH_SIZE])[BATCH_SIZE]
    assert refused.value.message == f"Parameter batch_size must be a 32-bit whole number: {shown}"
    assert refused.value.cause == {"field": "batch_size", "value": shown, "allowed": "a 32-bit whole number"}


@pytest.mark.parametrize(
    ("value", "flag"),
    [(True, True), (False, False), (None, None), ("true", True), ("TRUE", True), ("maybe", False), ("", False)],
)
def test_a_flag_in_a_json_body(value: object, flag: bool | None) -> None:
    assert JsonBody({"synchronous": value}, [SYNCHRONOUS])[SYNCHRONOUS] is flag


@pytest.mark.parametrize("value", [1, 0, 1.0, [], {}])
def test_a_bad_flag_in_a_json_body_is_refused(value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        JsonBody({"synchronous": value}, [SYNCHRONOUS])[SYNCHRONOUS]
    assert refused.value.cause == {"field": "synchronous", "value": str(value), "allowed": "true or false"}


@pytest.mark.parametrize("value", [[], {}, ["a.mar"]])
def test_a_bad_text_in_a_json_body_is_refused(value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        JsonBody({"url": value}, [URL])[URL]
    assert refused.value.cause == {"field": "url", "value": str(value), "allowed": "a string"}


def test_a_member_that_is_not_there() -> None:
    declared: list[declare.Parameter[Any]] = [URL, BATCH_SIZE, SYNCHRONOUS]
    body = JsonBody({}, declared)
    assert [body[each] for each in declared] == [None, None, None]
