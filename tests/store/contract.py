"""What every `Store` does.  test_contract.py runs it against SqliteStore and against the fake."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tserve.domain.cursors import FIRST_TOKEN
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
    Manifest("full", "2", "h:f", None, "c.yaml", "r.txt", {"model": {"n": [1, 2.5, None]}, "\ud800": "\0\u20ac"}),
    ModelConfig(
        min_workers=2, device_ids=(0, 3), device_type="gpu", use_venv=True, given=frozenset({"min_workers", "use_venv"})
    ),
)


class StoreContract:
    """Subclasses give the fixture `store`: an empty Store."""

    async def test_is_empty_at_first(self, store: Store) -> None:
        contents = await store.load()
        assert (contents.versions, contents.defaults, contents.archives) == ((), (), ())
        assert await store.load_cursors(now=0.0) == []

    async def test_every_field_comes_back(self, store: Store) -> None:
        await store.add_version(FULL_VERSION, FULL_ARCHIVE, actor="start")
        contents = await store.load()
        assert contents.versions == (FULL_VERSION,)
        assert contents.defaults == (FULL_VERSION.key,)
        assert contents.archives == (FULL_ARCHIVE,)

    async def test_an_archive_without_manifest_or_yaml_comes_back(self, store: Store) -> None:
        await store.add_version(version("m"), Archive("d1", 0), actor="a")
        assert (await store.load()).archives == (Archive("d1", 0),)

    async def test_changes_are_numbered_in_order(self, store: Store) -> None:
        one, two = version("m", "1"), version("m", "2")
        numbers = [
            await store.add_version(one, Archive("d1", 1), actor="a"),
            await store.add_version(two, Archive("d1", 1), actor="a"),
            await store.set_default(two.key, actor="a"),
            await store.replace_version(replace(two, min_workers=1, max_workers=1), actor="a"),
            await store.remove_version(one.key, actor="a"),
        ]
        assert numbers == sorted(set(numbers))

    async def test_names_are_any_text(self, store: Store) -> None:
        for name in ODD_NAMES:
            await store.add_version(version(name, name), Archive("d1", 1), actor=name)
        assert [v.key for v in (await store.load()).versions] == [Key(name, name) for name in ODD_NAMES]
        await store.set_default(Key("a\0b", "a\0b"), actor="a")
        await store.remove_version(Key("a\0b", "a\0b"), actor="a")
        assert [v.key.name for v in (await store.load()).versions] == [name for name in ODD_NAMES if name != "a\0b"]

    async def test_the_first_version_is_the_default_until_another_is_set(self, store: Store) -> None:
        for number in ("1", "2", "3"):
            await store.add_version(version("m", number), Archive("d1", 1), actor="a")
        assert (await store.load()).defaults == (Key("m", "1"),)
        await store.set_default(Key("m", "3"), actor="a")
        await store.set_default(Key("m", "3"), actor="a")
        assert (await store.load()).defaults == (Key("m", "3"),)

    async def test_order_is_order_of_registration(self, store: Store) -> None:
        """A model stands where its name was first registered, also when that version has gone."""
        for name, number in (("b", "1"), ("a", "9"), ("b", "2"), ("a", "10"), ("c", "1")):
            await store.add_version(version(name, number), Archive("d1", 1), actor="a")
        await store.set_default(Key("b", "2"), actor="a")
        await store.remove_version(Key("b", "1"), actor="a")
        await store.add_version(version("b", "1"), Archive("d1", 1), actor="a")
        contents = await store.load()
        assert [str(v.key) for v in contents.versions] == ["b:2", "b:1", "a:9", "a:10", "c:1"]
        assert [str(key) for key in contents.defaults] == ["b:2", "a:9", "c:1"]

    async def test_a_version_is_added_once(self, store: Store) -> None:
        held = version("m", batch_size=4)
        await store.add_version(held, Archive("d1", 1), actor="a")
        with pytest.raises(Conflict, match=r"Model version 1\.0 is already registered for model m"):
            await store.add_version(version("m", digest="d2"), Archive("d2", 1), actor="a")
        contents = await store.load()
        assert contents.versions == (held,)
        assert [archive.digest for archive in contents.archives] == ["d1"]

    async def test_replace_overwrites_worker_counts_only(self, store: Store) -> None:
        held = version("m", batch_size=4)
        await store.add_version(held, Archive("d1", 1), actor="a")
        wish = replace(
            held, min_workers=3, max_workers=-5, batch_size=9, url="x", handler="x", runtime="x", response_timeout=1
        )
        await store.replace_version(wish, actor="a")
        assert (await store.load()).versions == (replace(held, min_workers=3, max_workers=-5),)

    @pytest.mark.parametrize("call", ["replace_version", "set_default", "remove_version"])
    async def test_unknown_keys_are_refused(self, store: Store, call: str) -> None:
        await store.add_version(version("m"), Archive("d1", 1), actor="a")
        for key, error in ((Key("M", "1.0"), ModelNotFound), (Key("m", "1"), ModelVersionNotFound)):
            with pytest.raises(error):
                if call == "replace_version":
                    await store.replace_version(version(key.name, key.version), actor="a")
                elif call == "set_default":
                    await store.set_default(key, actor="a")
                else:
                    await store.remove_version(key, actor="a")
        assert (await store.load()).versions == (version("m"),)

    async def test_the_default_goes_last(self, store: Store) -> None:
        for number in ("1", "2"):
            await store.add_version(version("m", number), Archive("d1", 1), actor="a")
        with pytest.raises(DefaultVersionInUse):
            await store.remove_version(Key("m", "1"), actor="a")
        await store.remove_version(Key("m", "2"), actor="a")
        await store.remove_version(Key("m", "1"), actor="a")
        contents = await store.load()
        assert (contents.versions, contents.defaults) == ((), ())

    async def test_an_archive_lives_as_long_as_a_version_stands_on_it(self, store: Store) -> None:
        await store.add_version(version("a"), Archive("d1", 1), actor="a")
        await store.add_version(version("b"), Archive("d1", 1), actor="a")
        await store.add_version(version("c", digest="d2"), Archive("d2", 2), actor="a")
        await store.remove_version(Key("a", "1.0"), actor="a")
        assert [archive.digest for archive in (await store.load()).archives] == ["d1", "d2"]
        await store.remove_version(Key("b", "1.0"), actor="a")
        assert [archive.digest for archive in (await store.load()).archives] == ["d2"]

    async def test_what_is_known_of_an_archive_is_renewed(self, store: Store) -> None:
        await store.add_version(version("a"), Archive("d1", 1), actor="a")
        renewed = Archive("d1", 1, Manifest(handler="h"), ModelConfig(batch_size=2))
        await store.add_version(version("b"), renewed, actor="a")
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
