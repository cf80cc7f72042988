"""The list in pages, as clients see it: cursors that survive changes and restarts, offsets, and bad tokens."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.archives import write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import Answer, Server, running

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

# By UTF-16 code unit: upper case before lower, the emoji (a surrogate pair) before the half-width mark.
NAMES = ["A", "B b", "a", "a+", "a/", "b", "naïve", "z", "模型", "\U0001f600", "｡"]
FIRST_CURSOR, INT32 = 2**30, 2**31


def names_of(page: dict[str, object]) -> list[str]:
    models = page["models"]
    assert isinstance(models, list)
    return [model["modelName"] for model in models]


def add(server: Server, *names: str) -> None:
    for name in names:
        assert server.register("echo.mar", model_name=name).status == 200


def remove(server: Server, *names: str) -> None:
    for name in names:
        assert server.unregister(name).status == 200


def positions(server: Server) -> list[tuple[object, ...]]:
    """All that listing may have written."""
    return server.rows("SELECT id, after_name, expires_at FROM cursors ORDER BY id")


def is_refused_cursor(answer: Answer) -> bool:
    error = answer.json
    assert (answer.status, error["code"], error["type"]) == (400, 400, "BadRequestException")
    assert error["tserve"]["field"] == "next_page_token"
    return "List again without next_page_token" in error["message"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a model of each name; tests that change models make a server of their own."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "store").mkdir()
    write(folder / "store", "echo.mar")
    with running(Server(folder / "server", folder / "store")) as server:
        add(server, *reversed(NAMES))
        yield server


@pytest.fixture
def own(make_server: MakeServer, store: Path) -> Server:
    write(store, "echo.mar")
    return make_server()


@pytest.mark.parametrize("limit", [1, 2, 3, len(NAMES) - 1])
def test_pages_show_every_model_once_in_order(server: Server, limit: int) -> None:
    listed: list[str] = []
    page = server.page(limit=limit)
    while "nextPageToken" in page:
        assert len(names_of(page)) == limit
        assert next(iter(page)) == "nextPageToken"
        assert page["nextPageToken"] == str(int(page["nextPageToken"]))
        assert FIRST_CURSOR <= int(page["nextPageToken"]) < INT32
        listed += names_of(page)
        page = server.page(limit=limit, next_page_token=page["nextPageToken"])
    assert names_of(page)
    assert listed + names_of(page) == NAMES


@pytest.mark.parametrize("limit", [len(NAMES), 100, 101, 10**10, -1, "abc", "", None])
def test_a_list_that_fits_has_no_token(server: Server, limit: object) -> None:
    page = server.page(limit=limit)
    assert names_of(page) == NAMES
    assert "nextPageToken" not in page


def test_the_limit_may_differ_from_page_to_page(server: Server) -> None:
    token = server.page(limit=3)["nextPageToken"]
    assert names_of(server.page(limit=1, next_page_token=token)) == NAMES[3:4]
    assert names_of(server.page(next_page_token=token)) == NAMES[3:]
    assert server.page(limit=0, next_page_token=token) == {"models": []}


def test_listing_again_writes_nothing(server: Server) -> None:
    first = [server.page(limit=limit) for limit in (1, 2, 5)]
    before = positions(server)
    for _ in range(3):
        assert [server.page(limit=limit) for limit in (1, 2, 5)] == first
        assert names_of(server.page(limit=2, next_page_token=first[1]["nextPageToken"])) == NAMES[2:4]
    assert server.page(limit=2) == first[1]
    after = positions(server)
    assert after[: len(before)] == before
    assert {name for _, name, _ in after} - {name for _, name, _ in before} <= {NAMES[3]}, "one new position was met"
    assert len({name for _, name, _ in after}) == len(after)


def test_offsets_work_and_are_answered_with_offsets(server: Server) -> None:
    page = server.page(limit=4, next_page_token=2)
    assert (names_of(page), page["nextPageToken"]) == (NAMES[2:6], "6")
    page = server.page(limit=len(NAMES), next_page_token=1)
    assert (names_of(page), page.get("nextPageToken")) == (NAMES[1:], None)
    assert server.page(limit=4, next_page_token="+2") == server.page(limit=4, next_page_token=2)
    for beyond in (len(NAMES), 10**6, FIRST_CURSOR - 1):
        assert server.page(limit=4, next_page_token=beyond) == {"models": []}


@pytest.mark.parametrize("token", ["abc", "-1", "1.5", "", "0", "1e3", "0x10", "٣", str(INT32), "9" * 400, "null"])
def test_a_malformed_token_is_the_first_page(server: Server, token: str) -> None:
    assert server.page(limit=3, next_page_token=token) == server.page(limit=3)


@pytest.mark.parametrize("token", [FIRST_CURSOR, FIRST_CURSOR + 9999, INT32 - 1])
def test_an_unknown_cursor_is_refused(server: Server, token: int) -> None:
    assert is_refused_cursor(server.call("GET", "/models", next_page_token=token))
    assert is_refused_cursor(server.call("GET", "/models", limit=0, next_page_token=token))


def test_pages_neither_skip_nor_repeat_while_models_come_and_go(own: Server) -> None:
    """Also across a restart of either kind, and when the model that a cursor stands on is gone."""
    own.start()
    lasting = [f"m{i:02}" for i in range(12)]
    add(own, *lasting)
    seen: list[str] = []
    page = own.page(limit=2)
    disturbances = [
        lambda: add(own, "a", "m00x", "m01x", "z"),
        lambda: own.restart("kill"),
        lambda: remove(own, "a", seen[-1]),
        lambda: add(own, "b", seen[-1] + "x", seen[-3]),
        lambda: own.restart("term"),
        lambda: remove(own, "b", "m00x"),
    ]
    while True:
        seen += names_of(page)
        if "nextPageToken" not in page:
            break
        if disturbances:
            disturbances.pop(0)()
        page = own.page(limit=2, next_page_token=page["nextPageToken"])
    assert not disturbances
    assert [name for name in seen if name in lasting] == lasting
    assert seen == sorted(set(seen))
    assert "z" in seen


def test_a_cursor_expires(own: Server) -> None:
    own.start()
    add(own, "a", "b", "c")
    old, other = own.page(limit=1)["nextPageToken"], own.page(limit=2)["nextPageToken"]
    assert own.stop() == 0
    with closing(sqlite3.connect(own.state / "state.db")) as connection, connection:
        connection.execute("UPDATE cursors SET expires_at = 1.0 WHERE after_name = 'a'")
    own.start()
    assert is_refused_cursor(own.call("GET", "/models", next_page_token=old))
    assert names_of(own.page(next_page_token=other)) == ["c"]
    new = own.page(limit=1)["nextPageToken"]
    assert new not in (old, other), "a token never comes to stand for another position"
    assert names_of(own.page(next_page_token=new)) == ["b", "c"]
    assert is_refused_cursor(own.call("GET", "/models", next_page_token=old))


def test_offsets_only(make_server: MakeServer, store: Path) -> None:
    write(store, "echo.mar")
    own = make_server("list_page_tokens=offset")
    own.start()
    add(own, "a", "b", "c")
    page = own.page(limit=2)
    assert (names_of(page), page["nextPageToken"]) == (["a", "b"], "2")
    page = own.page(limit=2, next_page_token=2)
    assert (names_of(page), page.get("nextPageToken")) == (["c"], None)
    assert own.page(limit=3)["nextPageToken"] == "3", "as recorded, also when the page ends with the last model"
    assert own.page(limit=3, next_page_token=3) == {"models": []}
    assert own.page(next_page_token=INT32 - 1) == {"models": []}
    assert own.page(limit=2, next_page_token="abc") == own.page(limit=2)
    assert positions(own) == []
