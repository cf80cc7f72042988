"""Named tokens: their form, and what is kept of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tserve.domain.access import Scope
from tserve.domain.tokens import new_token, present

SCOPES = frozenset([Scope.INFERENCE])


def test_a_token_is_long_random_and_known_by_its_hash() -> None:
    (text, token), (other, _) = (new_token("ci", SCOPES, now=1.0) for _ in range(2))
    assert text != other
    assert text.startswith(f"tserve_{token.id}_")
    secret = text.split("_", 2)[2]
    assert len(secret) == 43  # 256 bits
    assert secret not in repr(token)
    assert len(token.digest) == 32
    presented = present(text)
    assert presented is not None
    assert presented.is_of(token)


def test_no_other_text_is_that_token() -> None:
    text, token = new_token("ci", SCOPES, now=1.0)
    other_text, other = new_token("ci", SCOPES, now=1.0)
    last = "A" if text[-1] != "A" else "B"
    for wrong in (text[:-1] + last, f"tserve_{token.id}_{other_text.split('_', 2)[2]}"):
        presented = present(wrong)
        assert presented is not None
        assert not presented.is_of(token)
    presented = present(text)
    assert presented is not None
    assert not presented.is_of(other)
    assert not presented.is_of(None)
    empty = present(f"tserve_{token.id}_{'A' * 43}")
    assert empty is not None
    assert not empty.is_of(replace(token, digest=b""))


@pytest.mark.parametrize(
    "text",
    ["", "tserve_", "tserve_abc_def", "x" * 9000, "TSERVE_000000000000_" + "a" * 43, "tserve_00000000000g_" + "a" * 43],
)
def test_other_texts_are_no_named_tokens(text: str) -> None:
    assert present(text) is None
    good, _ = new_token("ci", SCOPES, now=1.0)
    assert present(good + text + "x") is None


def test_expiry_counts_from_its_instant() -> None:
    _, token = new_token("ci", SCOPES, now=1.0, expires_at=10.0)
    assert [token.is_expired(now) for now in (9.9, 10.0, 10.1)] == [False, True, True]
    assert not new_token("ci", SCOPES, now=1.0)[1].is_expired(1e12)
