"""What every `Store` does.  test_contract.py runs it against SqliteStore and against the fake."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tserve.domain import history
from tserve.domain.actor import Actor
from tserve.domain.cursors import FIRST_TOKEN
from tserve.domain.history import PRUNED_EVERY, Event, PastEvent
from tserve.domain.model_config import ModelConfig
from tserve.domain.versions import Archive, Key, Manifest, Version
from tserve.errors import Conflict, DefaultVersionInUse, ModelNotFound, ModelVersionNotFound
from tserve.services.ports import Store

ODD_NAMES = (
    "br",
    "a/b",
    "",
    " ",
    "\0",
    "a\0b",
    "a",
    "ß",
    "\U0001f600",
    "\ufffd",
    "e\u0301",
    "\u00e9",
    "x" * 5000,
    "'\"%s",
)


def version(name: str, number: str = "1.0", digest: str = "d1", **settings: int | str) -> Version:
    return Version(Key(name, number), f"{name}.mar", digest, "handler.py", **settings)  # type: ignore[arg-type]


FULL_VERSION = Version(
    Key("full", "2"), "http://host/full.mar", "d-full", "h:f", "python3", 8, -1, 300, 0, -(2**31), 2**31 - 1
)
FULL_ARCHIVE = Archive(
    "d-full",
    2**40,
    Manifest(
        "full", "2", "h:f", None, "c.yaml", "r.txt", {"model": {"n": [1, 2.5, None]}, "\ud800": "\0\u20ac"}, "kserve"
    ),
    ModelConfig(
        min_workers=2,
        device_ids=(0, 3),
        device_type="gpu",
        use_venv=True,
        inputs=({"name": "é", "datatype": "FP32", "shape": [-1, 4]},),
        given=frozenset({"min_workers", "use_venv", "inputs"}),
    ),
)
NOW = 1_700_000_000.25


def died(model: str = "m", number: str = "1.0", *, at: float = NOW, log_tail: str = "") -> Event:
    return Event(at, "worker_died", Key(model, number), 9000, 4711, detail={"reason": "crashed"}, log_tail=log_tail)


async def all_events(store: Store, model: str) -> list[PastEvent]:
    return await store.events(model, None, before=None, limit=100_000)


async def pour(store: Store, events: Sequence[Event], *, at_once: int = 500) -> None:
    for start in range(0, len(events), at_once):
        await store.add_events(events[start : start + at_once])


class StoreContract:
    """Subclasses give the fixture `store`: an empty Store."""

    async def test_is_empty_at_first(self, store: Store) -> None:
        contents = await store.load()
        assert (contents.versions, contents.defaults, contents.archives) == ((), (), ())
        assert await store.load_cursors(now=0.0) == []

    async def test_every_field_comes_back(self, store: Store) -> None:
        await store.add_version(FULL_VERSION, FULL_ARCHIVE, actor=Actor("start"))
        contents = await store.load()
        assert contents.versions == (FULL_VERSION,)
        assert contents.defaults == (FULL_VERSION.key,)
        assert contents.archives == (FULL_ARCHIVE,)

    async def test_an_archive_without_manifest_or_yaml_comes_back(self, store: Store) -> None:
        await store.add_version(version("m"), Archive("d1", 0), actor=Actor("a"))
        assert (await store.load()).archives == (Archive("d1", 0),)

    async def test_changes_are_numbered_in_order(self, store: Store) -> None:
        one, two = version("m", "1"), version("m", "2")
        numbers = [
            await store.add_version(one, Archive("d1", 1), actor=Actor("a")),
            await store.add_version(two, Archive("d1", 1), actor=Actor("a")),
            await store.set_default(two.key, actor=Actor("a")),
            await store.replace_version(replace(two, min_workers=1, max_workers=1), actor=Actor("a")),
            await store.remove_version(one.key, actor=Actor("a")),
        ]
        assert numbers == sorted(set(numbers))

    async def test_names_are_any_text(self, store: Store) -> None:
        for name in ODD_NAMES:
            await store.add_version(version(name, name), Archive("d1", 1), actor=Actor(name))
        assert [v.key for v in (await store.load()).versions] == [Key(name, name) for name in ODD_NAMES]
        await store.set_default(Key("a\0b", "a\0b"), actor=Actor("a"))
        await store.remove_version(Key("a\0b", "a\0b"), actor=Actor("a"))
        assert [v.key.name for v in (await store.load()).versions] == [name for name in ODD_NAMES if name != "a\0b"]

    async def test_the_first_version_is_the_default_until_another_is_set(self, store: Store) -> None:
        for number in ("1", "2", "3"):
            await store.add_version(version("m", number), Archive("d1", 1), actor=Actor("a"))
        assert (await store.load()).defaults == (Key("m", "1"),)
        await store.set_default(Key("m", "3"), actor=Actor("a"))
        await store.set_default(Key("m", "3"), actor=Actor("a"))
        assert (await store.load()).defaults == (Key("m", "3"),)

    async def test_order_is_order_of_registration(self, store: Store) -> None:
        """A model stands where its name was first registered, also when that version has gone."""
        for name, number in (("b", "1"), ("a", "9"), ("b", "2"), ("a", "10"), ("c", "1")):
            await store.add_version(version(name, number), Archive("d1", 1), actor=Actor("a"))
        await store.set_default(Key("b", "2"), actor=Actor("a"))
        await store.remove_version(Key("b", "1"), actor=Actor("a"))
        await store.add_version(version("b", "1"), Archive("d1", 1), actor=Actor("a"))
        contents = await store.load()
        assert [str(v.key) for v in contents.versions] == ["b:2", "b:1", "a:9", "a:10", "c:1"]
        assert [str(key) for key in contents.defaults] == ["b:2", "a:9", "c:1"]

    async def test_a_version_is_added_once(self, store: Store) -> None:
        held = version("m", batch_size=4)
        await store.add_version(held, Archive("d1", 1), actor=Actor("a"))
        with pytest.raises(Conflict, match=r"Model version 1\.0 is already registered for model m"):
            await store.add_version(version("m", digest="d2"), Archive("d2", 1), actor=Actor("a"))
        contents = await store.load()
        assert contents.versions == (held,)
        assert [archive.digest for archive in contents.archives] == ["d1"]

    async def test_replace_overwrites_worker_counts_only(self, store: Store) -> None:
        held = version("m", batch_size=4)
        await store.add_version(held, Archive("d1", 1), actor=Actor("a"))
        wish = replace(
            held, min_workers=3, max_workers=-5, batch_size=9, url="x", handler="x", runtime="x", response_timeout=1
        )
        await store.replace_version(wish, actor=Actor("a"))
        assert (await store.load()).versions == (replace(held, min_workers=3, max_workers=-5),)

    @pytest.mark.parametrize("call", ["replace_version", "set_default", "remove_version"])
    async def test_unknown_keys_are_refused(self, store: Store, call: str) -> None:
        await store.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
        for key, error in ((Key("M", "1.0"), ModelNotFound), (Key("m", "1"), ModelVersionNotFound)):
            with pytest.raises(error):
                if call == "replace_version":
                    await store.replace_version(version(key.name, key.version), actor=Actor("a"))
                elif call == "set_default":
                    await store.set_default(key, actor=Actor("a"))
                else:
                    await store.remove_version(key, actor=Actor("a"))
        assert (await store.load()).versions == (version("m"),)

    async def test_the_default_goes_last(self, store: Store) -> None:
        for number in ("1", "2"):
            await store.add_version(version("m", number), Archive("d1", 1), actor=Actor("a"))
        with pytest.raises(DefaultVersionInUse):
            await store.remove_version(Key("m", "1"), actor=Actor("a"))
        await store.remove_version(Key("m", "2"), actor=Actor("a"))
        await store.remove_version(Key("m", "1"), actor=Actor("a"))
        contents = await store.load()
        assert (contents.versions, contents.defaults) == ((), ())

    async def test_an_archive_lives_as_long_as_a_version_stands_on_it(self, store: Store) -> None:
        await store.add_version(version("a"), Archive("d1", 1), actor=Actor("a"))
        await store.add_version(version("b"), Archive("d1", 1), actor=Actor("a"))
        await store.add_version(version("c", digest="d2"), Archive("d2", 2), actor=Actor("a"))
        await store.remove_version(Key("a", "1.0"), actor=Actor("a"))
        assert [archive.digest for archive in (await store.load()).archives] == ["d1", "d2"]
        await store.remove_version(Key("b", "1.0"), actor=Actor("a"))
        assert [archive.digest for archive in (await store.load()).archives] == ["d2"]

    async def test_what_is_known_of_an_archive_is_renewed(self, store: Store) -> None:
        await store.add_version(version("a"), Archive("d1", 1), actor=Actor("a"))
        renewed = Archive("d1", 1, Manifest(handler="h"), ModelConfig(batch_size=2))
        await store.add_version(version("b"), renewed, actor=Actor("a"))
        assert (await store.load()).archives == (renewed,)

    async def test_one_cursor_per_name(self, store: Store) -> None:
        first = await store.put_cursor("m\0", now=0.0, expires_at=10.0, most=5)
        assert (first.token > FIRST_TOKEN, first.after_name, first.expires_at) == (True, "m\0", 10.0)
        moved = await store.put_cursor("m\0", now=5.0, expires_at=15.0, most=5)
        assert moved == replace(first, expires_at=15.0)
        assert await store.put_cursor("m\0", now=5.0, expires_at=11.0, most=5) == moved
        assert await store.load_cursors(now=6.0) == [moved]

    async def test_an_expired_cursor_is_gone_and_its_token_never_comes_back(self, store: Store) -> None:
        old = await store.put_cursor("a", now=0.0, expires_at=10.0, most=5)
        assert await store.load_cursors(now=10.0) == []
        new = await store.put_cursor("b", now=10.0, expires_at=20.0, most=5)
        again = await store.put_cursor("a", now=10.0, expires_at=20.0, most=5)
        assert old.token < new.token < again.token
        assert await store.load_cursors(now=0.0) == [new, again]

    async def test_past_the_most_those_that_expire_first_go(self, store: Store) -> None:
        for name, expires_at in (("a", 30.0), ("b", 10.0), ("c", 20.0)):
            await store.put_cursor(name, now=0.0, expires_at=expires_at, most=3)
        await store.put_cursor("d", now=0.0, expires_at=40.0, most=3)
        assert [cursor.after_name for cursor in await store.load_cursors(now=0.0)] == ["a", "c", "d"]
        await store.put_cursor("e", now=0.0, expires_at=5.0, most=1)
        assert [cursor.after_name for cursor in await store.load_cursors(now=0.0)] == ["e"]

    async def test_an_event_comes_back(self, store: Store) -> None:
        asked = Event(NOW, "retry", Key("m", "2"), actor=Actor("10.0.0.1", "id-1"))
        full = replace(
            died(log_tail="a\nb\0\u20ac"), detail={"reason": "r", "n": [1, 2.5, None], "\ud800": {"a": "\ud800"}}
        )
        await store.add_events([full, asked, replace(asked, actor=Actor("start"))])
        newest, middle, oldest = await all_events(store, "m")
        assert (oldest.event, middle.event) == (full, asked)
        assert newest.event.actor == Actor("start")
        assert oldest.number < middle.number < newest.number
        assert (oldest.before, oldest.after) == (None, None)

    async def test_no_events_are_no_event(self, store: Store) -> None:
        await store.add_events([])
        assert await all_events(store, "m") == []

    async def test_each_change_is_an_event(self, store: Store) -> None:
        """Who, which request, when, before and after."""
        one, two = version("m", "1"), version("m", "2", min_workers=1)
        started = time.time()
        await store.add_version(one, Archive("d1", 1), actor=Actor("start"))
        await store.add_version(two, Archive("d1", 1), actor=Actor("a", "r1"))
        await store.replace_version(replace(two, min_workers=4, max_workers=6), actor=Actor("a", "r2"))
        await store.set_default(two.key, actor=Actor("b", "r3"))
        await store.remove_version(one.key, actor=Actor("b", "r4"))
        past = (await all_events(store, "m"))[::-1]
        assert [(p.event.kind, p.event.key.version, p.event.actor) for p in past] == [
            ("register", "1", Actor("start")),
            ("register", "2", Actor("a", "r1")),
            ("scale", "2", Actor("a", "r2")),
            ("set_default", "2", Actor("b", "r3")),
            ("unregister", "1", Actor("b", "r4")),
        ]
        (_, first), (none, _), workers, default, (gone, nothing) = ((p.before, p.after) for p in past)
        assert (none, nothing) == (None, None)
        assert first is not None
        assert (first["url"], first["min_workers"]) == ("m.mar", 0)
        assert gone == first
        assert workers == ({"min_workers": 1, "max_workers": 0}, {"min_workers": 4, "max_workers": 6})
        assert default == ({"default_version": "1"}, {"default_version": "2"})
        assert all(started - 0.001 <= p.event.at <= time.time() for p in past)

    async def test_a_refused_change_is_no_event(self, store: Store) -> None:
        await store.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
        with pytest.raises(Conflict):
            await store.add_version(version("m"), Archive("d1", 1), actor=Actor("a"))
        assert len(await all_events(store, "m")) == 1

    async def test_events_are_chosen_by_model_and_version(self, store: Store) -> None:
        keys = [("m", "1"), ("m", "2"), ("M", "1"), ("m", "1"), ("", "")]
        await store.add_events([died(*key) for key in keys])

        async def numbers(model: str, number: str | None, before: int | None = None, limit: int = 9) -> list[int]:
            return [past.number for past in await store.events(model, number, before=before, limit=limit)]

        fourth, second, first = await numbers("m", None)
        assert await numbers("m", "1") == [fourth, first]
        assert await numbers("m", None, before=fourth) == [second, first]
        assert await numbers("m", "1", before=fourth) == [first]
        assert await numbers("m", None, before=2**62, limit=2) == [fourth, second]
        assert await numbers("m", None, before=first) == []
        assert len(await numbers("", "")) == 1
        assert await numbers("m", "") == []

    async def test_a_model_has_so_many_events_at_most(self, store: Store) -> None:
        await store.add_events([died("quiet")])
        await pour(store, [died()] * (history.MOST_OF_A_MODEL + PRUNED_EVERY - 2), at_once=333)
        assert len(await all_events(store, "m")) <= history.MOST_OF_A_MODEL + PRUNED_EVERY - 1
        await pour(store, [died()] * PRUNED_EVERY, at_once=1)
        past = await all_events(store, "m")
        assert history.MOST_OF_A_MODEL <= len(past) < history.MOST_OF_A_MODEL + PRUNED_EVERY
        assert len(await all_events(store, "quiet")) == 1
        await store.prune_events(now=NOW)
        assert await all_events(store, "m") == past[: history.MOST_OF_A_MODEL], "the newest are kept"

    async def test_there_are_so_many_events_at_most(self, store: Store) -> None:
        models = [f"m{index}" for index in range(history.MOST_EVENTS // 500 + 2)]
        await pour(store, [died(model) for model in models for _ in range(500)])
        counts = [len(await all_events(store, model)) for model in models]
        assert history.MOST_EVENTS <= sum(counts) < history.MOST_EVENTS + PRUNED_EVERY
        assert (counts[0], counts[-1]) == (0, 500), "the oldest go"

    async def test_old_events_go(self, store: Store) -> None:
        """The age is looked at with the others; or when the store is told to, though nothing comes."""
        await store.add_events([died(at=NOW - history.LIFE_S - 60), died(at=NOW - history.LIFE_S + 60)])
        await pour(store, [died("other")] * PRUNED_EVERY)
        assert len(await all_events(store, "m")) == 1
        await store.prune_events(now=NOW + 120)
        assert await all_events(store, "m") == []
        assert len(await all_events(store, "other")) == PRUNED_EVERY

    async def test_log_tails_go_before_their_events(self, store: Store) -> None:
        most = history.MOST_TAILS_OF_A_MODEL
        events = [died(log_tail=f"tail {index}") if index % 2 else died() for index in range(4 * most)]
        await store.add_events(events)
        await store.prune_events(now=NOW)
        tails = [past.event.log_tail for past in await all_events(store, "m")]
        expected = [event.log_tail for event in reversed(events)]
        assert tails == expected[: 2 * most] + [""] * 2 * most

    async def test_there_are_so_many_log_tails_at_most(self, store: Store) -> None:
        each = history.MOST_TAILS_OF_A_MODEL
        models = [f"m{index}" for index in range(history.MOST_TAILS // each + 2)]
        await pour(store, [died(model, log_tail="x") for model in models for _ in range(each)])
        await store.prune_events(now=NOW)
        tails = Counter({m: sum(bool(p.event.log_tail) for p in await all_events(store, m)) for m in models})
        assert tails.total() == history.MOST_TAILS
        assert [tails[m] for m in models[:3]] == [0, 0, each]
        assert len(await all_events(store, models[0])) == each

    async def test_numbers_never_come_back(self, store: Store) -> None:
        await store.add_events([died()] * 3)
        numbers = [past.number for past in await all_events(store, "m")]
        await store.prune_events(now=NOW + 2 * history.LIFE_S)
        await store.add_events([died(at=NOW + 2 * history.LIFE_S)])
        (past,) = await all_events(store, "m")
        assert past.number > max(numbers)

    async def test_pages_neither_skip_nor_repeat_while_events_come_and_go(self, store: Store) -> None:
        await pour(store, [died("m", str(index % 3)) for index in range(history.MOST_OF_A_MODEL)])
        at_first = [past.number for past in await all_events(store, "m")]
        seen: list[int] = []
        page = await store.events("m", None, before=None, limit=37)
        while page:
            seen += [past.number for past in page]
            await store.add_events([died(), died("other"), died()] * 3)
            page = await store.events("m", None, before=page[-1].number, limit=37)
        at_last = [past.number for past in await all_events(store, "m")]
        assert len(set(at_first) - set(at_last)) > 100, "some were pruned meanwhile"
        assert seen == sorted(set(seen), reverse=True)
        assert set(at_first) >= set(seen) >= set(at_first) & set(at_last)
