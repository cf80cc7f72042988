"""The registry in memory: order, defaults, removal (spec/management.md sections 1.8, 3.7 and 4.3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tserve.domain.registry import Contents, Registry
from tserve.domain.versions import Archive, Key, Version
from tserve.errors import Conflict, DefaultVersionInUse, ModelNotFound, ModelVersionNotFound


def version(name: str, number: str = "1.0", digest: str = "d") -> Version:
    return Version(Key(name, number), f"{name}.mar", digest, "handler.py")


def registry(*keys: tuple[str, str]) -> Registry:
    made = Registry()
    for name, number in keys:
        made.add(version(name, number), Archive("d", 1))
    return made


def test_names_come_by_code_unit() -> None:
    """U+FFFD is above U+1F600 in UTF-16, below it by code point; `/` is below letters, upper case before lower."""
    names = ["br", "a/b", "B", "", "\U0001f600", "\ufffd", "\ud800", "é", "a", "A"]
    made = registry(*((name, "1") for name in names))
    assert made.names_from(0, 99) == ["", "A", "B", "a", "a/b", "br", "é", "\ud800", "\U0001f600", "\ufffd"]
    assert len(made) == 10


@given(st.lists(st.text(max_size=4), unique=True, max_size=12), st.text(max_size=4), st.integers(1, 5))
def test_pages_neither_skip_nor_repeat(names: list[str], behind: str, limit: int) -> None:
    made = registry(*((name, "1") for name in names))
    whole = sorted(names, key=lambda name: name.encode("utf-16-be"))
    assert made.names_from(0, 99) == whole
    assert made.names_after(behind, 99) == [n for n in whole if n.encode("utf-16-be") > behind.encode("utf-16-be")]
    page = shown = made.names_from(0, limit)
    while page:
        page = made.names_after(page[-1], limit)
        shown = shown + page
    assert shown == whole


def test_a_name_that_is_gone_still_marks_a_place() -> None:
    made = registry(("a", "1"), ("b", "1"), ("c", "1"))
    made.remove(Key("b", "1"))
    assert made.names_after("b", 9) == ["c"]
    assert made.names_after("", 1) == ["a"]
    assert made.names_after("c", 9) == []


def test_the_first_version_is_the_default_until_another_is_set() -> None:
    made = registry(("m", "2"), ("m", "1"), ("m", "3"))
    assert made.find("m").key == Key("m", "2")
    assert made.is_default(Key("m", "2"))
    made.set_default(Key("m", "3"))
    assert made.find("m").key == Key("m", "3")
    assert not made.is_default(Key("m", "2"))
    assert [v.key.version for v in made.all_of("m")] == ["2", "1", "3"]
    assert [v.key for v in made.defaults()] == [Key("m", "3")]


def test_find_says_what_is_missing() -> None:
    made = registry(("m", "1"))
    assert made.find("m", "1").key == Key("m", "1")
    for name in ("M", "", "m:1"):
        with pytest.raises(ModelNotFound, match=f"Model not found: {name}"):
            made.find(name)
        with pytest.raises(ModelNotFound):
            made.find(name, "1")
        with pytest.raises(ModelNotFound):
            made.all_of(name)
    for number in ("", "1.0", "01"):
        with pytest.raises(ModelVersionNotFound, match=f"Model version: {number} does not exist for model: m"):
            made.find("m", number)
    assert made.get(Key("m", "2")) is None
    assert made.get(Key("x", "1")) is None


def test_a_version_is_free_until_it_is_registered() -> None:
    made = registry(("m", "1"))
    made.check_free(Key("m", "2"))
    with pytest.raises(Conflict, match="Model version 1 is already registered for model m"):
        made.check_free(Key("m", "1"))


def test_the_default_goes_last() -> None:
    made = registry(("m", "1"), ("m", "2"))
    made.check_removable(Key("m", "2"))
    with pytest.raises(DefaultVersionInUse, match="Cannot remove default version for model m"):
        made.check_removable(Key("m", "1"))
    made.remove(Key("m", "2"))
    made.check_removable(Key("m", "1"))
    made.remove(Key("m", "1"))
    assert len(made) == 0
    assert list(made) == []
    assert not made.is_default(Key("m", "1"))
    with pytest.raises(ModelNotFound):
        made.find("m")


def test_a_name_may_come_back() -> None:
    made = registry(("m", "1"))
    made.remove(Key("m", "1"))
    made.add(version("m", "9"), Archive("d", 1))
    assert made.find("m").key == Key("m", "9")
    assert made.names_from(0, 9) == ["m"]


def test_an_archive_lives_as_long_as_a_version_stands_on_it() -> None:
    made = Registry()
    made.add(version("a", digest="d1"), Archive("d1", 1))
    made.add(version("b", digest="d1"), Archive("d1", 1))
    made.remove(Key("a", "1.0"))
    assert made.references("d1")
    assert made.archive("d1") == Archive("d1", 1)
    made.remove(Key("b", "1.0"))
    assert not made.references("d1")
    with pytest.raises(KeyError):
        made.archive("d1")


def test_replace_keeps_place_and_default() -> None:
    made = registry(("m", "1"), ("m", "2"))
    made.replace(replace(version("m", "1"), min_workers=3))
    assert [(v.key.version, v.min_workers) for v in made.all_of("m")] == [("1", 3), ("2", 0)]
    assert made.find("m").min_workers == 3


def test_what_the_store_holds_comes_back() -> None:
    contents = Contents(
        (version("b", "1"), version("a", "1"), version("b", "2")), (Key("b", "2"), Key("a", "1")), (Archive("d", 7),)
    )
    made = Registry(contents)
    assert [str(v.key) for v in made] == ["b:1", "b:2", "a:1"]
    assert [str(v.key) for v in made.defaults()] == ["b:2", "a:1"]
    assert made.names_from(0, 9) == ["a", "b"]
    assert made.names_from(1, 9) == ["b"]
    assert made.names_from(2, 9) == []
    assert made.archive("d") == Archive("d", 7)
