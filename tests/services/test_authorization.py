"""The check of tokens: every rule with every kind of token, wrong ones counted, right ones never kept out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from tserve.domain.access import ANY_PORT, INFERENCE, MANAGEMENT, METRICS, OPEN, PROBE, RULES, TOKEN, Rule, Scope
from tserve.domain.tokens import new_token
from tserve.errors import InternalServer, InvalidKey, TooManyWrongTokens, TserveError
from tserve.services.authorization import (
    MOST_PEERS,
    PERIOD_S,
    WRONG_TOKENS,
    Authorization,
    Key,
    WrongTokens,
    network_of,
)

NOW = 1000.0
KEYS = {
    Scope.MANAGEMENT: Key("management-key", NOW + 60),
    Scope.INFERENCE: Key("inference-key", NOW + 60),
    Scope.TOKEN: Key("api-key"),
}
RULE_NAMES = {
    "open": OPEN,
    "probe": PROBE,
    "any": ANY_PORT,
    "token": TOKEN,
    "inference": INFERENCE,
    "management": MANAGEMENT,
    "metrics": METRICS,
}


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def make(
    *, metrics_need_token: bool = True, scopes: Sequence[frozenset[Scope]] = ()
) -> tuple[Authorization, list[str], Clock]:
    """A check, and texts of named tokens with these scopes."""
    clock = Clock()
    check = Authorization(KEYS, metrics_need_token=metrics_need_token, clock=clock)
    made = [new_token(f"t{number}", each, now=NOW, expires_at=NOW + 60) for number, each in enumerate(scopes)]
    check.named = {token.id: token for _, token in made}
    return check, [text for text, _ in made], clock


def reason(
    check: Authorization, rule: Rule | None, *headers: str, bare: bool = False, peer: str = "10.0.0.1"
) -> object:
    """Why it is refused; None for what is let in."""
    try:
        check.check(rule, headers, peer, bare=bare)
    except TserveError as error:
        return error.cause["reason"]
    return None


def bearer(text: str) -> str:
    return f"Bearer {text}"


EVERY_SCOPES = [frozenset(some) for size in range(5) for some in itertools.combinations(Scope, size)]


@pytest.mark.parametrize("scopes", EVERY_SCOPES, ids=lambda scopes: "+".join(sorted(scopes)) or "none")
@pytest.mark.parametrize("rule", RULE_NAMES.values(), ids=RULE_NAMES)
def test_every_rule_with_every_set_of_scopes(rule: Rule, scopes: frozenset[Scope]) -> None:
    check, (text,), clock = make(scopes=[scopes])
    expected = None if rule.anyone or scopes & rule.scopes else "wrong_scope"
    assert reason(check, rule, bearer(text)) == expected
    clock.now = NOW + 60
    assert reason(check, rule, bearer(text)) == (None if rule.anyone else "expired")
    check.named = {}
    assert reason(check, rule, bearer(text)) == (None if rule.anyone else "wrong_token")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("rule", RULE_NAMES.values(), ids=RULE_NAMES)
def test_every_rule_with_every_key(rule: Rule, key: Scope) -> None:
    check, _, clock = make()
    header = bearer(KEYS[key].text)
    expected = None if rule.anyone or key in rule.scopes else "wrong_scope"
    assert reason(check, rule, header) == expected
    clock.now = NOW + 60
    late = expected if key is Scope.TOKEN else "expired"
    assert reason(check, rule, header) == (None if rule.anyone else late)


@pytest.mark.parametrize("rule", [rule for rule in RULE_NAMES.values() if rule != OPEN])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], "no_token"),
        ([""], "malformed"),
        (["inference-key"], "malformed"),
        (["bearer inference-key"], "malformed"),
        (["BEARER inference-key"], "malformed"),
        (["Bearer"], "malformed"),
        (["Bearer "], "malformed"),
        (["Bearerinference-key"], "malformed"),
        (["Bearer inference-key x"], "malformed"),
        (["Basic aW5mZXJlbmNlLWtleQ=="], "malformed"),
        (["Bearer inference-key", "Bearer inference-key"], "malformed"),
        (["Bearer inference-key", "Bearer wrong"], "malformed"),
        (["Bearer wrong"], "wrong_token"),
        (["Bearer inference-ke"], "wrong_token"),
        (["Bearer inference-keyy"], "wrong_token"),
        (["Bearer INFERENCE-KEY"], "wrong_token"),
        (["Bearer inference-key,wrong"], "wrong_token"),
        (["Bearer \xff\udcff"], "wrong_token"),
        (["Bearer " + "x" * 8000], "wrong_token"),
    ],
)
def test_what_is_no_token_of_ours(rule: Rule, headers: list[str], expected: str) -> None:
    assert reason(make()[0], rule, *headers) == expected


def test_spaces_are_as_recorded() -> None:
    check, _, _ = make()
    for header in ("Bearer   inference-key", "Bearer \t inference-key", " Bearer inference-key "):
        assert reason(check, INFERENCE, header) is None


def test_without_a_check_all_is_let_in_but_what_has_no_rule() -> None:
    check = Authorization(None)
    for rule in RULES.values():
        assert reason(check, rule) is None
        assert reason(check, rule, "Bearer wrong") is None
    with pytest.raises(InternalServer, match="Nobody may"):
        check.check(None, [], "")


def test_what_has_no_rule_is_refused_with_every_token() -> None:
    check, texts, _ = make(scopes=[frozenset(Scope)])
    for text in (*texts, *(key.text for key in KEYS.values())):
        assert reason(check, None, bearer(text)) == "no_rule"


def test_a_probe_needs_a_token_for_its_query_only() -> None:
    check, (text,), _ = make(scopes=[frozenset([Scope.METRICS])])
    assert reason(check, PROBE, bare=True) is None
    assert reason(check, PROBE) == "no_token"
    assert reason(check, PROBE, bearer(text)) is None
    assert reason(check, MANAGEMENT, bare=True) == "no_token"


def test_metrics_are_open_unless_asked_otherwise() -> None:
    assert reason(make(metrics_need_token=False)[0], METRICS) is None
    assert reason(make()[0], METRICS) == "no_token"


def test_what_is_told_says_what_is_needed_and_no_secret() -> None:
    check, (text,), _ = make(scopes=[frozenset([Scope.METRICS])])
    for header in ("Bearer wrong-secret", bearer(text), bearer("management-key")):
        with pytest.raises(InvalidKey) as refusal:
            check.check(INFERENCE, [header], "10.0.0.1")
        told = f"{refusal.value.message} {refusal.value.cause}"
        assert refusal.value.cause["needed"] == ["inference"]
        assert header.split()[1] not in told
    assert "management-key" not in repr(KEYS)


def test_messages_are_as_recorded() -> None:
    check, _, _ = make()
    rest = "failed. Token either incorrect, expired, or not provided correctly"
    for rule, word in ((MANAGEMENT, "Authorization"), (TOKEN, "Authentication")):
        with pytest.raises(InvalidKey) as refusal:
            check.check(rule, [], "10.0.0.1")
        assert refusal.value.message == f"Token {word} {rest}"


# -- many wrong tokens


def test_many_wrong_tokens_are_answered_otherwise_and_a_right_one_is_taken() -> None:
    """An attacker behind the same address, a proxy's for one, must not lock anybody out."""
    check, (text,), _ = make(scopes=[frozenset([Scope.INFERENCE])])
    asked = [reason(check, INFERENCE, "Bearer wrong") for _ in range(WRONG_TOKENS + 5)]
    assert asked == ["wrong_token"] * WRONG_TOKENS + ["wrong_tokens"] * 5
    for right in (text, "inference-key"):
        assert reason(check, INFERENCE, bearer(right)) is None
    assert reason(check, INFERENCE) == "no_token"
    assert reason(check, INFERENCE, "Bearer wrong", peer="10.0.0.2") == "wrong_token"
    with pytest.raises(TooManyWrongTokens):
        check.check(INFERENCE, ["Bearer wrong"], "10.0.0.1")


def test_what_is_no_guess_is_not_counted() -> None:
    check, (text,), _ = make(scopes=[frozenset([Scope.METRICS])])
    for _ in range(3 * WRONG_TOKENS):
        assert reason(check, INFERENCE) == "no_token"
        assert reason(check, INFERENCE, "Basic x") == "malformed"
        assert reason(check, INFERENCE, bearer(text)) == "wrong_scope"
    assert reason(check, INFERENCE, "Bearer wrong") == "wrong_token"


def test_counts_end_with_their_minute_and_are_bounded() -> None:
    clock = Clock()
    wrong = WrongTokens(clock)
    assert [wrong.count("10.0.0.1") for _ in range(WRONG_TOKENS)] == [0] * WRONG_TOKENS
    assert wrong.count("10.0.0.1") == PERIOD_S
    clock.now += PERIOD_S - 0.1
    assert wrong.count("10.0.0.1") == 1
    clock.now += 0.1
    assert wrong.count("10.0.0.1") == 0
    for number in range(MOST_PEERS + 10):
        wrong.count(f"host-{number}")
    assert len(wrong._counts) == MOST_PEERS


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_who_is_one_and_the_same(peer: str, network: str) -> None:
    assert network_of(peer) == network
