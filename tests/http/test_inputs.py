"""From bodies to a handler's inputs, row by row of spec/inference.md section 2."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tserve.domain.wire import Input
from tserve.errors import BadRequest
from tserve.http.inputs import MOST_PARTS, NAMES_BYTES, query_inputs, read_inputs
from tserve.http.params import Query

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=line"


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("", ""),
        ("application/json", "application/json"),
        ("application/json; charset=utf-8", "application/json"),
        ("application/json;charset=utf-8; x=y", "application/json"),
        ("Application/JSON", "Application/JSON"),
        (" text/plain ; charset=latin-1", "text/plain"),
        ("image/jpeg", "image/jpeg"),
        ("application/x-www-form-urlencoded-not", "application/x-www-form-urlencoded-not"),
        ("nonsense", "nonsense"),
        (";", ""),
        ('a"b;c', 'a"b'),
    ],
)
def test_a_body_of_no_form_type_is_one_input(content_type: str, kind: str) -> None:
    """Parameters of the type are stripped, its case is kept."""
    assert read_inputs(content_type, b"\x00\xff") == (Input("body", kind, b"\x00\xff"),)


def test_an_empty_body_is_an_input_too() -> None:
    assert read_inputs("", b"") == (Input("body", "", b""),)


@pytest.mark.parametrize("content_type", [FORM, FORM.upper(), FORM + "; charset=utf-8"])
@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (b"a=1", [("a", b"1")]),
        (b"a=1&b=2", [("a", b"1"), ("b", b"2")]),
        (b"a=1+2%2B3", [("a", b"1 2+3")]),
        (b"a=%ff%00", [("a", b"\xff\x00")]),
        (b"a=b=c", [("a", b"b=c")]),
        (b"a=", [("a", b"")]),
        (b"=x", [("", b"x")]),
        (b"%61+b=1", [("a b", b"1")]),
        (b"%ff=1", [("\ufffd", b"1")]),
        (b"a=1;b=2", [("a", b"1;b=2")]),
        (b"a=%zz", [("a", b"%zz")]),
        # Without `=` there are no inputs: plain `curl -d text`.
        (b"just text", []),
        (b'{"a": 1}', []),
        (b"", []),
        (b"&&", []),
        (b"a&b=2", [("b", b"2")]),
        # The last of repeated names wins.
        (b"a=1&b=2&a=3", [("a", b"3"), ("b", b"2")]),
    ],
)
def test_a_form(content_type: str, body: bytes, inputs: list[tuple[str, bytes]]) -> None:
    assert read_inputs(content_type, body) == tuple(Input(name, "", value) for name, value in inputs)


def part(*headers: str, value: bytes = b"v", disposition: str = 'form-data; name="a"') -> bytes:
    lines = [b"--line", f"Content-Disposition: {disposition}".encode(), *(h.encode() for h in headers), b"", value]
    return b"\r\n".join(lines) + b"\r\n"


FILE = 'form-data; name="a"; filename="x.jpg"'
END = b"--line--\r\n"


@pytest.mark.parametrize(
    ("parts", "inputs"),
    [
        # Only a part with a file name has a type, and the file name is lost.
        ([part()], [("a", "", b"v")]),
        ([part("Content-Type: application/json", value=b"{}")], [("a", "", b"{}")]),
        ([part("Content-Type: image/jpeg", disposition=FILE)], [("a", "image/jpeg", b"v")]),
        ([part("Content-Type: text/plain; charset=utf-8", disposition=FILE)], [("a", "text/plain", b"v")]),
        ([part("content-type: Image/JPEG", disposition=FILE)], [("a", "Image/JPEG", b"v")]),
        ([part(disposition=FILE)], [("a", "application/octet-stream", b"v")]),
        ([part(disposition="form-data; name=a; filename=x")], [("a", "application/octet-stream", b"v")]),
        ([part(disposition='form-data; name="a"; filename=""')], [("a", "application/octet-stream", b"v")]),
        # Bytes are kept as they are.
        ([part(value=b"\r\n\x00\xff--lin\r\n")], [("a", "", b"\r\n\x00\xff--lin\r\n")]),
        ([part(value=b"")], [("a", "", b"")]),
        ([part(value=bytes(200_000), disposition=FILE)], [("a", "application/octet-stream", bytes(200_000))]),
        # Several parts; the last of repeated names wins.
        (
            [part(), part(disposition='form-data; name="b"', value=b"w")],
            [("a", "", b"v"), ("b", "", b"w")],
        ),
        ([part(value=b"1"), part("Content-Type: x/y", disposition=FILE, value=b"2")], [("a", "x/y", b"2")]),
        ([part(disposition='form-data; name="\u6a21"')], [("\u6a21", "", b"v")]),
        ([], []),
    ],
)
def test_a_multipart_body(parts: list[bytes], inputs: list[tuple[str, str, bytes]]) -> None:
    assert read_inputs(MULTIPART, b"".join(parts) + END) == tuple(Input(*each) for each in inputs)


@pytest.mark.parametrize("content_type", ['multipart/form-data; boundary="line"', "Multipart/Form-Data;boundary=line"])
def test_spellings_of_the_type(content_type: str) -> None:
    assert read_inputs(content_type, part() + END) == (Input("a", "", b"v"),)


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_multipart_without_a_boundary_is_one_input(content_type: str) -> None:
    assert read_inputs(content_type, part() + END) == (Input("body", "multipart/form-data", part() + END),)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not multipart at all",
        b"--other\r\n\r\nx\r\n--other--\r\n",
        b"--line\r\nno colon\r\n\r\nv\r\n--line--",
        b"--line\r\nContent-Type: text/plain\r\n\r\nv\r\n--line--",
        b"--line--\r\n",
    ],
)
def test_malformed_multipart_is_no_error_and_no_input(body: bytes) -> None:
    """The recorded front end does not refuse it (section 5)."""
    assert read_inputs(MULTIPART, body) == ()


def test_what_stands_before_the_break_is_kept() -> None:
    assert read_inputs(MULTIPART, part() + b"--line\r\nno colon\r\n\r\nv\r\n") == (Input("a", "", b"v"),)
    assert read_inputs(MULTIPART, part() + b"--line\r\nContent-Dispo") == (Input("a", "", b"v"),)


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        (MULTIPART, lambda count: b"".join(part(disposition=f"form-data; name=p{n}") for n in range(count)) + END),
        (FORM, lambda count: b"&".join(b"p%d=v" % n for n in range(count))),
    ],
)
def test_the_number_of_parts_is_bounded(content_type: str, form: Callable[[int], bytes]) -> None:
    """A body of the allowed size may hold a million of them, and reading that would stop the server for seconds."""
    assert len(read_inputs(content_type, form(MOST_PARTS))) == MOST_PARTS
    with pytest.raises(BadRequest) as refused:
        read_inputs(content_type, form(MOST_PARTS + 1))
    assert refused.value.cause["field"] == "body"


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        ("application/x-www-form-urlencoded", lambda name: name + b"=1"),
        (
            "multipart/form-data; boundary=line",
            lambda name: part(disposition=f'form-data; name="{name.decode()}"') + END,
        ),
    ],
)
def test_the_names_are_bounded(content_type: str, form: Callable[[bytes], bytes]) -> None:
    """They travel in the bounded head of a frame; six bytes of it for each that is not ASCII."""
    room = NAMES_BYTES
    assert len(read_inputs(content_type, form(b"n" * room))) == 1
    with pytest.raises(BadRequest, match="names"):
        read_inputs(content_type, form(b"n" * (room + 1)))


def test_a_boundary_that_latin_1_cannot_spell() -> None:
    assert read_inputs("multipart/form-data; boundary*=utf-8''%E6%A8%A1", b"x") == ()


def test_query_inputs() -> None:
    assert query_inputs(Query(b"a=1&b=%E6&a=2", free=True)) == (Input("a", "", b"1"), Input("b", "", "\ufffd".encode()))


@given(st.text(), st.binary())
def test_any_body_of_any_type_is_read(content_type: str, body: bytes) -> None:
    for kind in (content_type, MULTIPART, FORM, "multipart/form-data; boundary=" + content_type):
        assert all(isinstance(each, Input) for each in read_inputs(kind, body))
