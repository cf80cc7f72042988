"""Bodies of every size and kind come back as they were sent; larger ones than allowed are refused, and say so."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.archives import write
from tests.e2e.server import Answer, Server, exchange, running

pytestmark = pytest.mark.e2e

MOST = 300_000
# JSON comes back as JSON, text as text, bytes as bytes; of a form every field, by name.
ECHO = """
def handle(data, context):
    if data is None:
        return None
    return [row["body"] if list(row) == ["body"] else {name: bytes(value).hex() for name, value in row.items()}
            for row in data]
"""
TOLERANT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bodies")
    store = folder / "store"
    store.mkdir()
    write(store, "echo.mar", ECHO)
    with running(Server(folder / "server", store, [f"max_request_size={MOST}", "worker_start=fresh"])) as server:
        assert server.register("echo.mar", initial_workers=1, synchronous=True).status == 200
        yield server


@pytest.fixture(scope="module")
def connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    """One for all that succeeds: it is kept alive."""
    with closing(server.connect("inference")) as connection:
        yield connection


def ask(connection: http.client.HTTPConnection, body: bytes, content_type: str, *, chunks: int = 0) -> Answer:
    headers = {"Content-Type": content_type}
    if not chunks:
        return exchange(connection, "POST", "/predictions/echo", body=body, headers=headers)
    parts = [body[i : i + chunks] for i in range(0, len(body), chunks)]
    connection.request("POST", "/predictions/echo", iter(parts), headers, encode_chunked=True)
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


sizes = (
    st.integers(0, 200) | st.integers(0, MOST) | st.sampled_from([1, 4095, 4096, 65535, 65536, 65537, MOST - 1, MOST])
)
chunkings = st.sampled_from([0, 1, 7, 1000, 65536])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


@given(size=sizes, seed=st.integers(0, 2**32), chunks=chunkings)
@TOLERANT
def test_bytes(connection: http.client.HTTPConnection, size: int, seed: int, chunks: int) -> None:
    if chunks and size // chunks > 2000:
        chunks = 1000
    body = random.Random(seed).randbytes(size)
    answer = ask(connection, body, "application/octet-stream", chunks=chunks)
    assert (answer.status, answer.body) == (200, body)


@given(text=st.text(), times=st.sampled_from([1, 1, 1, 100, 1000]))
@TOLERANT
def test_text(connection: http.client.HTTPConnection, text: str, times: int) -> None:
    body = (text * times).encode()[:MOST].decode("utf-8", "ignore")
    answer = ask(connection, body.encode(), "text/plain; charset=utf-8")
    assert (answer.status, answer.body.decode()) == (200, body)


@given(value=json_values)
@TOLERANT
def test_json(connection: http.client.HTTPConnection, value: Any) -> None:
    answer = ask(connection, json.dumps(value).encode(), "application/json")
    assert answer.status == 200
    # A text is an answer of its own, not JSON; everything else comes back as JSON.
    assert (answer.body.decode() if isinstance(value, str) else json.loads(answer.body)) == value


names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
    lambda name: name != "body"
)


@given(fields=st.dictionaries(names, st.binary(max_size=300), min_size=1, max_size=5))
@TOLERANT
def test_urlencoded_forms(connection: http.client.HTTPConnection, fields: dict[str, bytes]) -> None:
    answer = ask(connection, urlencode(fields).encode(), "application/x-www-form-urlencoded")
    assert answer.json == {name: value.hex() for name, value in fields.items()}


@given(
    fields=st.dictionaries(
        st.from_regex(r"[a-z]{1,8}[0-9]", fullmatch=True), st.binary(max_size=9000), min_size=1, max_size=4
    )
)
@TOLERANT
def test_multipart_forms(connection: http.client.HTTPConnection, fields: dict[str, bytes]) -> None:
    """As files, so that their bytes are nobody's line ends."""
    boundary = "the-boundary-9c1185a5c5e9fc54612808977ee8f548"
    body = b""
    for name, value in fields.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n'
        body += head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + value + b"\r\n"
    answer = ask(connection, body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}")
    assert answer.json == {name: value.hex() for name, value in fields.items()}


@pytest.mark.parametrize("size", [MOST - 1, MOST])
@pytest.mark.parametrize("chunks", [0, 50_000])
def test_the_largest_text_and_json(connection: http.client.HTTPConnection, size: int, chunks: int) -> None:
    text = "é" * (size // 2) + "e" * (size % 2)
    answer = ask(connection, text.encode(), "text/plain", chunks=chunks)
    assert (answer.status, answer.body.decode()) == (200, text)
    numbers = [0] * ((size - 1) // 2)
    body = json.dumps(numbers, separators=(",", ":")).encode().ljust(size)
    answer = ask(connection, body, "application/json", chunks=chunks)
    assert (len(body), answer.status, answer.json) == (size, 200, numbers)


@pytest.mark.parametrize("size", [MOST + 1, MOST + 70_000, 4 * MOST])
@pytest.mark.parametrize("chunks", [0, 50_000])
@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/json", "text/plain"])
def test_a_body_that_is_too_large(server: Server, size: int, chunks: int, content_type: str) -> None:
    with closing(server.connect("inference")) as connection:
        answer = ask(connection, b"1" * size, content_type, chunks=chunks)
    assert (answer.status, answer.headers["content-type"]) == (413, "application/json")
    assert answer.headers["connection"] == "close", "the rest of it is nobody's next request"
    message = f"Request body is larger than max_request_size, {MOST} bytes."
    assert answer.json == {"code": 413, "type": "PayloadTooLargeException", "message": message}
    assert server.predict("echo", body=b"x").status == 200
