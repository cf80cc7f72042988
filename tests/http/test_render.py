"""Answers as bytes: the JSON style and the header order of spec/management.md section 0."""

from __future__ import annotations

import pytest

from tserve.errors import BadRequest, InternalServer
from tserve.http.render import all_headers, error_reply, json_reply, status_reply, to_json
from tserve.http.routes import Reply

JSON = ("content-type", "application/json")
COMMON = [
    ("pragma", "no-cache"),
    ("cache-control", "no-cache; no-store, must-revalidate, private"),
    ("expires", "Thu, 01 Jan 1970 00:00:00 UTC"),
]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}\n"),
        ([], "[]\n"),
        ({"models": []}, '{\n  "models": []\n}\n'),
        ({"status": "ok"}, '{\n  "status": "ok"\n}\n'),
        ([{"b": 1, "a": [True, "x"]}], '[\n  {\n    "b": 1,\n    "a": [\n      true,\n      "x"\n    ]\n  }\n]\n'),
        ({"u": "</\u6a21&'>"}, '{\n  "u": "</\u6a21&\'>"\n}\n'),
        ({"u": 'a"b\\c\n'}, '{\n  "u": "a\\"b\\\\c\\n"\n}\n'),
        ({"u": "\ud800"}, '{\n  "u": "?"\n}\n'),
    ],
)
def test_json_style(value: object, text: str) -> None:
    """Two spaces, order kept, nothing escaped that need not be, one newline at the end."""
    assert to_json(value) == text.encode()


def test_replies() -> None:
    assert json_reply(206, []) == Reply(206, b"[]\n", (JSON,))
    assert status_reply(202, "on it") == Reply(202, b'{\n  "status": "on it"\n}\n', (JSON,))


def test_an_error_reply() -> None:
    plain = error_reply(BadRequest("no"))
    assert plain == Reply(400, b'{\n  "code": 400,\n  "type": "BadRequestException",\n  "message": "no"\n}\n', (JSON,))
    reply = error_reply(InternalServer("Worker died.", code=507, cause={"reason": "crashed", "field": ["a"]}))
    assert reply.status == 507
    assert reply.body == to_json(
        {
            "code": 507,
            "type": "InternalServerException",
            "message": "Worker died.",
            "tserve": {"reason": "crashed", "field": ["a"]},
        }
    )


def test_header_order() -> None:
    cors = [("access-control-allow-origin", "*"), ("access-control-allow-methods", "GET")]
    assert all_headers(Reply(200, b"12", (("X-Own", "1"), JSON)), "the-id", cors) == [
        ("X-Own", "1"),
        JSON,
        ("x-request-id", "the-id"),
        *cors,
        *COMMON,
        ("content-length", "2"),
        ("connection", "keep-alive"),
    ]


@pytest.mark.parametrize(("status", "closes"), [(200, False), (206, False), (399, False), (400, True), (599, True)])
def test_errors_close_the_connection(status: int, closes: bool) -> None:
    headers = all_headers(Reply(status, b""), "the-id", [])
    assert headers == [
        ("x-request-id", "the-id"),
        *COMMON,
        ("content-length", "0"),
        ("connection", "close" if closes else "keep-alive"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "x-request-id",
        "X-Request-Id",
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "TE",
        "Upgrade",
        "Keep-Alive",
    ],
)
def test_what_a_handler_cannot_set(name: str) -> None:
    """The request id is the server's, and so is the framing of the message."""
    headers = all_headers(Reply(200, b"12", ((name, "5"), ("x-other", "6"))), "the-id", [])
    servers = [("x-request-id", "the-id"), *COMMON, ("content-length", "2"), ("connection", "keep-alive")]
    assert headers == [("x-other", "6"), *servers]
