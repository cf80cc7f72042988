"""A little of what `tox run -e fuzz` does at length; what it once found stays here as an input."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.mutation import MOST_BYTES, mutated
from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS, Target

INPUTS = 300


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_crash(target: Target) -> None:
    figures = fuzz(target, INPUTS, seed=1)
    assert figures["inputs"] == INPUTS
    assert figures["outcomes"] > 1


def test_a_crash_is_not_missed(tmp_path: Path) -> None:
    """And comes with the input that it takes."""

    def make(folder: Path):  # type: ignore[no-untyped-def]
        def run(data: bytes) -> str:
            if b"\xff" in data:
                raise KeyError(data)
            return str(len(data))

        return run

    with pytest.raises(KeyError) as crash:
        fuzz(Target("bad", 1, [b"seed"], make), 10_000, seed=1)
    (note,) = crash.value.__notes__
    assert b"\xff" in bytes.fromhex(note.rpartition(" ")[2])


def test_mutations_can_be_had_again() -> None:
    seeds, words = [b"one", b"two" * 100], [b"word"]
    one, two = ([mutated(random.Random(number), seeds, words) for number in range(500)] for _ in range(2))
    assert one == two
    assert len(set(one)) > 400
    assert max(map(len, one)) <= MOST_BYTES
