"""The list in pages: cursors that survive churn, offsets as recorded, and what a store that fails leaves of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.fakes import MemoryStore
from tserve.domain.cursors import FIRST_TOKEN, Cursor, TokensExhausted
from tserve.domain.registry import Registry, code_units
from tserve.domain.versions import Archive, Key, Version
from tserve.errors import BadRequest, InternalServer
from tserve.services import pages as pages_module
from tserve.services.pages import LIFE_S, MOST_CURSORS, Page, Pages

HOUR_S = 3600.0


class Clock:
    """The wall clock that cursors expire by."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


class CountingStore(MemoryStore):
    """Counts the commits that listing costs."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []

    async def put_cursor(self, after_name: str, *, now: float, expires_at: float, most: int) -> Cursor:
        cursor = await super().put_cursor(after_name, now=now, expires_at=expires_at, most=most)
        self.puts.append(after_name)
        return cursor


class Listing:
    """Pages over a registry of names, and a restart of both."""

    def __init__(self, names: str, *, offsets_only: bool = False) -> None:
        self.store = CountingStore()
        self.registry = Registry()
        self.offsets_only = offsets_only
        self.pages = Pages(self.store, self.registry, offsets_only=offsets_only)
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        self.registry.add(Version(Key(name, "1.0"), f"{name}.mar", "d", "h"), Archive("d", 1))

    def remove(self, name: str) -> None:
        self.registry.remove(Key(name, "1.0"))

    async def restart(self) -> None:
        self.pages = Pages(self.store, self.registry, offsets_only=self.offsets_only)
        await self.pages.load()

    async def page(self, limit: int | None = None, token: int | None = None) -> Page:
        return await self.pages.page(limit=limit, token=token)

    async def names(self, limit: int | None = None, token: int | None = None) -> tuple[str, int | None]:
        page = await self.page(limit, token)
        return "".join(name for name, _ in page.models), page.next_token

    async def walk(self, limit: int) -> list[str]:
        """All pages, as a client that follows tokens sees them."""
        pages, token = [], None
        while True:
            shown, token = await self.names(limit, token)
            pages.append(shown)
            if token is None:
                return pages


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pages_module, "time", SimpleNamespace(time=clock.time))
    return clock


# ---- cursors


async def test_a_page_has_a_token_only_if_something_follows() -> None:
    listing = Listing("abcde")
    assert await listing.walk(2) == ["ab", "cd", "e"]
    assert await listing.walk(5) == ["abcde"], "also when it ends exactly with the last model"
    assert await listing.walk(1) == ["a", "b", "c", "d", "e"]
    assert await Listing("").walk(3) == [""]


async def test_what_a_page_shows() -> None:
    listing = Listing("ab")
    assert await listing.page() == Page([("a", "a.mar"), ("b", "b.mar")], None)


async def test_the_order_is_by_code_unit() -> None:
    """Upper case before lower, and what lies outside the basic plane before the end of it."""
    names = ["a", "Z", "a/b", "br", "\uffee", "\U0001f600"]
    listing = Listing("")
    for name in names:
        listing.add(name)
    shown = [name for name, _ in (await listing.page()).models]
    assert shown == ["Z", "a", "a/b", "br", "\U0001f600", "\uffee"]


@pytest.mark.parametrize(
    ("limit", "shown"), [(None, 100), (-1, 100), (101, 100), (1000, 100), (100, 100), (99, 99), (1, 1), (0, 0)]
)
async def test_limits(limit: int | None, shown: int) -> None:
    listing = Listing("")
    for number in range(120):
        listing.add(f"m{number:03}")
    page = await listing.page(limit)
    assert len(page.models) == shown
    assert (page.next_token is None) == (shown == 0), "a page that leads nowhere has no token"


async def test_pages_neither_skip_nor_repeat_while_models_come_and_go() -> None:
    listing = Listing("bdfhj")
    _, token = await listing.names(2)
    for come, go in (("a", "b"), ("e", "d"), ("c", "f")):
        listing.add(come)
        listing.remove(go)
    assert await listing.names(2, token) == ("eh", FIRST_TOKEN + 2)
    listing.remove("h")
    assert await listing.names(2, FIRST_TOKEN + 2) == ("j", None)


@given(st.data())
@hypothesis_settings(deadline=None, max_examples=50)
async def test_every_model_that_stays_is_shown_once(data: st.DataObject) -> None:
    everyone = "abcdefghijklmnopqrstuvwxyz"
    there = set(data.draw(st.sets(st.sampled_from(everyone))))
    stays = set(there)
    listing = Listing("".join(there))
    seen: list[str] = []
    token: int | None = None
    while True:
        shown, token = await listing.names(data.draw(st.integers(1, 5)), token)
        seen += shown
        if token is None:
            break
        if data.draw(st.booleans()):
            await listing.restart()
        for name in data.draw(st.sets(st.sampled_from(everyone), max_size=4)):
            if name in there:
                listing.remove(name)
                stays.discard(name)
                there.remove(name)
            else:
                listing.add(name)
                there.add(name)
    assert seen == sorted(set(seen), key=code_units), "none twice"
    assert stays <= set(seen), "none skipped"


async def test_a_page_whose_models_are_all_gone_is_no_dead_end() -> None:
    listing = Listing("abc")
    _, token = await listing.names(1)
    for name in "abc":
        listing.remove(name)
    assert await listing.names(1, token) == ("", None)
    listing.add("b")
    assert await listing.names(1, token) == ("b", None)


async def test_cursors_survive_a_restart() -> None:
    listing = Listing("abcd")
    _, token = await listing.names(2)
    await listing.restart()
    assert await listing.names(2, token) == ("cd", None)
    assert listing.store.puts == ["b"]


async def test_everyone_who_stands_there_shares_a_cursor(clock: Clock) -> None:
    """Listing costs no commit unless a new position is met, or a known one is past half of its life."""
    listing = Listing("abcd")
    tokens = {(await listing.names(2))[1] for _ in range(5)}
    assert tokens == {FIRST_TOKEN + 1}
    assert listing.store.puts == ["b"]
    clock.now += LIFE_S / 2 - 1
    await listing.names(2)
    assert listing.store.puts == ["b"]
    clock.now += 2
    assert (await listing.names(2))[1] == FIRST_TOKEN + 1
    assert listing.store.puts == ["b", "b"]


async def test_a_refreshed_cursor_lives_on(clock: Clock) -> None:
    listing = Listing("abcd")
    _, token = await listing.names(2)
    clock.now += LIFE_S - HOUR_S
    await listing.names(2)
    clock.now += LIFE_S - HOUR_S
    assert await listing.names(2, token) == ("cd", None)
    await listing.restart()
    assert await listing.names(2, token) == ("cd", None)


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_expired_cursor_is_refused(clock: Clock, restarted: bool) -> None:
    listing = Listing("abcd")
    _, token = await listing.names(2)
    clock.now += LIFE_S
    if restarted:
        await listing.restart()
    with pytest.raises(BadRequest) as refused:
        await listing.names(2, token)
    assert refused.value.message == (
        f"Page token {token} is unknown or has expired. List again without next_page_token."
    )
    assert refused.value.cause["field"] == "next_page_token"
    assert await listing.names(2) == ("ab", FIRST_TOKEN + 2), "the position gets a new one"


@pytest.mark.parametrize("token", [FIRST_TOKEN, FIRST_TOKEN + 7, 2**31 - 1])
async def test_an_unknown_cursor_is_refused(token: int) -> None:
    """Never an empty page, which would look like the end."""
    with pytest.raises(BadRequest):
        await Listing("abcd").names(2, token)


async def test_past_the_limit_the_oldest_cursors_go(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_CURSORS == 10_000
    monkeypatch.setattr(pages_module, "MOST_CURSORS", 2)
    listing = Listing("abcde")
    tokens = []
    for limit in (1, 2, 3):
        clock.now += 1
        tokens.append((await listing.names(limit))[1])
    with pytest.raises(BadRequest):
        await listing.names(1, tokens[0])
    assert [await listing.names(1, token) for token in tokens[1:]] == [("c", FIRST_TOKEN + 3), ("d", FIRST_TOKEN + 4)]
    await listing.restart()
    with pytest.raises(BadRequest):
        await listing.names(1, tokens[0])


async def test_positions_that_are_met_again_after_their_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old token of a position must not take the new one down with it when it is dropped."""
    monkeypatch.setattr(pages_module, "MOST_CURSORS", 3)
    listing = Listing("abcdefg")
    await listing.names(1)
    await listing.names(2)
    clock.now += LIFE_S
    for limit in (1, 3, 4, 5, 6):
        clock.now += 1
        _, token = await listing.names(limit)
        assert token is not None
        assert (await listing.names(1, token))[0] == "abcdefg"[limit]
    assert (await listing.names(6))[1] == token


# ---- offsets


async def test_small_tokens_are_offsets_and_answered_with_offsets() -> None:
    """As scripts with literal tokens expect; nothing is written for them."""
    listing = Listing("abcde")
    assert await listing.names(2, 1) == ("bc", 3)
    assert await listing.names(2, 3) == ("de", 5), "a token also stands on a page that ends with the last model"
    assert await listing.names(2, 5) == ("", None)
    assert await listing.names(2, 4) == ("e", None)
    assert await listing.names(None, 12) == ("", None)
    assert await listing.names(5, FIRST_TOKEN - 1) == ("", None)
    assert listing.store.puts == []


@pytest.mark.parametrize("token", [None, 0, -1, -(2**31)])
async def test_no_token_and_what_counts_as_none(token: int | None) -> None:
    listing = Listing("abcde")
    assert await listing.names(2, token) == ("ab", FIRST_TOKEN + 1)


@pytest.mark.parametrize("token", [None, 0, 1, 3, 5, 7])
async def test_a_limit_of_zero_leads_nowhere(token: int | None) -> None:
    """The recorded answer, a token to itself, sends clients that follow it round for ever."""
    assert await Listing("abcde").names(0, token) == ("", None)


async def test_a_limit_of_zero_at_a_cursor() -> None:
    listing = Listing("abcde")
    _, token = await listing.names(2)
    assert await listing.names(0, token) == ("", None)


async def test_offsets_only() -> None:
    """`list_page_tokens=offset`, the recorded way; only the overflow is not copied."""
    listing = Listing("abcde", offsets_only=True)
    assert await listing.names(2) == ("ab", 2)
    assert await listing.names(5) == ("abcde", 5)
    assert await listing.names(6) == ("abcde", None)
    assert await listing.names(0) == ("", 0)
    assert await listing.names(2, -1) == ("ab", 2)
    assert await listing.names(5, 2**31 - 1) == ("", None)
    assert await listing.names(5, FIRST_TOKEN) == ("", None)
    assert listing.store.puts == []


# ---- a store that fails


@pytest.mark.parametrize("failure", [InternalServer("The disk is full."), TokensExhausted()])
async def test_an_offset_stands_in_for_a_cursor_that_cannot_be_written(failure: InternalServer) -> None:
    listing = Listing("abcdefg")
    _, cursor = await listing.names(2)
    listing.store.fails_with = failure
    assert await listing.names(2) == ("ab", cursor), "a known one needs no writing"
    assert await listing.names(2, cursor) == ("cd", 4)
    assert await listing.names(2, 4) == ("ef", 6)
    assert await listing.names(2, 6) == ("g", None)
    assert await listing.names(3) == ("abc", 3)
    listing.store.fails_with = None
    assert await listing.names(3) == ("abc", FIRST_TOKEN + 2)


async def test_a_model_that_leaves_while_the_write_fails() -> None:
    """The offset then counts from what is there."""

    class LosingStore(CountingStore):
        async def put_cursor(self, after_name: str, *, now: float, expires_at: float, most: int) -> Cursor:
            listing.remove(after_name)
            raise InternalServer("The disk is full.")

    listing = Listing("abcdef")
    listing.store = LosingStore()
    await listing.restart()
    assert await listing.names(2) == ("ab", 1)
    assert await listing.names(2, 1) == ("cd", 3)
