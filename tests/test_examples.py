"""The examples that are not served out of the box: packed by the public archiver, served, and asked as their pages say.

They want packages that the other tests do without: `tox run -e examples`.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.server import Answer, Server, exchange, running

pytestmark = pytest.mark.examples

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("examples")
    store = folder / "store"
    store.mkdir()
    for name in ("streaming", "embedding"):
        program = [sys.executable, str(EXAMPLES / name / "pack.py"), "--export-path", str(store)]
        subprocess.run(program, check=True)
    with running(Server(folder / "server", store)) as server:
        for name in ("streaming", "embedding"):
            answer = server.register(f"{name}.mar", synchronous=True)
            assert answer.status == 200, answer
        yield server


def ask(server: Server, model: str, body: object) -> Answer:
    headers = {"Content-Type": "text/plain" if isinstance(body, str) else "application/json"}
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    return server.call("POST", f"/predictions/{model}", role="inference", body=data, headers=headers)


# -- streaming


def pieces(server: Server, body: object) -> list[bytes]:
    """Chunk by chunk, as they came."""
    with closing(server.connect("inference")) as connection:
        connection.request("POST", "/predictions/streaming", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert (response.status, response.getheader("transfer-encoding")) == (200, "chunked")
        return list(chunks(response))


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1():
        yield chunk


def test_words_come_one_by_one(server: Server) -> None:
    text = ask(server, "streaming", {"prompt": "The ", "words": 30, "seed": 1})
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    words = text.body.decode().split()
    assert 20 <= len(words) <= 40
    assert len(pieces(server, {"prompt": "The ", "words": 30, "seed": 1})) > 5


def test_a_seed_decides(server: Server) -> None:
    first, again, other = (
        ask(server, "streaming", {"prompt": "A class ", "words": 20, "seed": seed}).body for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_it_writes_words_of_its_text(server: Server) -> None:
    """Most of what it writes are words that the reference has: it has learnt to spell."""
    from pydoc_data.topics import topics

    known = set(" ".join(topics.values()).split())
    words = ask(server, "streaming", {"prompt": "The ", "words": 200, "temperature": 0.3}).body.decode().split()
    assert sum(word in known for word in words) > len(words) * 0.7


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": ""}, "prompt must be a text"),
        ({"prompt": 3}, "prompt must be a text"),
        ({"words": 0}, "words must be a whole number from 1"),
        ({"words": 2.5}, "words must be a whole number from 1"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ("plain text", "must be a JSON object"),
    ],
)
def test_what_cannot_be_written_on(server: Server, body: object, says: str) -> None:
    with ThreadPoolExecutor(2) as clients:
        bad = clients.submit(ask, server, "streaming", body)
        good = clients.submit(ask, server, "streaming", {"words": 3})
    assert bad.result().status == 400
    assert says in bad.result().body.decode()
    assert good.result().status == 200


# -- embedding


def vector(server: Server, body: object) -> list[float]:
    answer = ask(server, "embedding", body)
    assert answer.status == 200, answer
    found: list[float] = answer.json
    return found


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_sentences_that_mean_the_same_are_near(server: Server) -> None:
    car, automobile, soup = (
        vector(server, text) for text in ("How do I repair my car?", "Fixing an automobile", "A recipe for onion soup")
    )
    assert len(car) == 384
    assert likeness(car, car) == pytest.approx(1, abs=1e-4)
    assert likeness(car, automobile) > likeness(car, soup) + 0.3


def test_requests_share_batches_and_get_their_own(server: Server) -> None:
    texts = [f"sentence number {n} about {word}" for n, word in enumerate(["cats", "war", "bread", "law"] * 4)]
    alone = [vector(server, {"text": text}) for text in texts]
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda text: vector(server, {"text": text}), texts))
    for one, other in zip(alone, together, strict=True):
        assert likeness(one, other) == pytest.approx(1, abs=1e-3)


def test_a_request_without_text(server: Server) -> None:
    with ThreadPoolExecutor(2) as clients:
        bad = clients.submit(ask, server, "embedding", {"words": 3})
        good = clients.submit(ask, server, "embedding", "a text")
    assert (bad.result().status, "text" in bad.result().json["error"]) == (400, True)
    assert good.result().status == 200


def test_a_connection_may_be_kept(server: Server) -> None:
    with closing(server.connect("inference")) as connection:
        for text in (b"one", b"two"):
            headers = {"Content-Type": "text/plain"}
            assert exchange(connection, "POST", "/predictions/embedding", body=text, headers=headers).status == 200
