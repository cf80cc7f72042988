"""Which requests a browser may send, and which names the server goes by."""

from __future__ import annotations

import pytest

from tserve.domain.browsers import Browsers
from tserve.errors import Forbidden

OWN = "127.0.0.1:8080"


def refused(
    browsers: Browsers,
    host: str | list[str] = OWN,
    *,
    origin: str | list[str] = (),
    site: str | list[str] = (),  # type: ignore[assignment]
) -> object:
    """The reason; None for what is let through."""
    lists = [[value] if isinstance(value, str) else list(value) for value in (host, origin, site)]
    try:
        browsers.check(*lists)
    except Forbidden as error:
        return error.cause["reason"]
    return None


PLAIN = Browsers([])
NUMBERS_AND_LOCALHOST = [
    *("127.0.0.1", "127.0.0.1:8080", "10.1.2.3:80", "0.0.0.0", "[::1]", "[::1]:8080", "[fe80::1%eth0]:8080"),
    *("localhost", "LOCALHOST:8080", "localhost.", "localhost.:8080", "a.localhost", "[::ffff:127.0.0.1]", ""),
]
FOREIGN = [
    *(
        "evil.example",
        "evil.example:8080",
        "evil",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io",
        "localhost.evil.example",
    ),
    *(
        "evillocalhost",
        "localhost@evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1:8080@evil.example",
        "127.0.0.1, evil",
    ),
    *("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1:", "127.0.0.1:port"),
    *(
        "evil.example#127.0.0.1",
        "[::1",
        "::1",
        "[::1]evil",
        "[evil.example]",
        "[127.0.0.1]x",
        "http://127.0.0.1",
        "/",
        " ",
    ),
    *("local host", "127.0.0.1\t", "①②⑦.0.0.1", "localhost\0", "..", ".", "*", "\xe9"),
]


@pytest.mark.parametrize("host", NUMBERS_AND_LOCALHOST)
def test_numbers_and_localhost_are_always_ours(host: str) -> None:
    assert refused(PLAIN, host) is None


@pytest.mark.parametrize("host", FOREIGN)
def test_any_other_name_is_foreign(host: str) -> None:
    """What a page of that name would be at once its name leads here: DNS rebinding."""
    expected = None if host == "127.0.0.1:" else "foreign_host"  # an empty port is a port, as URLs have it
    assert refused(PLAIN, host) == expected


def test_names_can_be_added() -> None:
    browsers = Browsers(["Model.example.", ".svc.local", "torchserve"])
    for host in ("model.example", "MODEL.example.:8080", "a.svc.local", "a.b.svc.local:1", "torchserve:8080"):
        assert refused(browsers, host) is None, host
    for host in ("a.model.example", "svc.local", "xsvc.local", "model.example.evil", "torchserve.evil"):
        assert refused(browsers, host) == "foreign_host", host


def test_all_names_can_be_allowed_but_nothing_that_is_no_name() -> None:
    assert refused(Browsers(["*"]), "evil.example:80") is None
    assert refused(Browsers(["*"]), "a b") == "foreign_host"


def test_each_of_several_hosts_counts() -> None:
    """HTTP/2 has `:authority`, and may have `host` as well."""
    assert refused(PLAIN, [OWN, "localhost"]) is None
    assert refused(PLAIN, [OWN, "evil.example"]) == "foreign_host"
    assert refused(PLAIN, []) is None


OTHERS = [
    *(
        "https://evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:8081",
        "http://localhost:8080",
        "null",
        "",
        "file://",
    ),
    *("http://127.0.0.1:8080.evil.example", "http://evil.example:8080", "http://evil@127.0.0.1:8080", "127.0.0.1:8080"),
    *(
        "chrome-extension://abcdef",
        "ftp://127.0.0.1:8080",
        "http://127.0.0.1:8080/",
        "http://127.0.0.1:8080 http://evil",
    ),
]


@pytest.mark.parametrize("origin", OTHERS)
def test_pages_from_elsewhere_are_refused(origin: str) -> None:
    assert refused(PLAIN, origin=origin) == "cross_site"
    assert refused(PLAIN, origin=origin, site="none") == "cross_site"
    assert refused(Browsers(["evil.example"]), origin=origin) == "cross_site", "a name of ours is no origin"
    assert refused(PLAIN, origin=["http://127.0.0.1:8080", origin]) == "cross_site"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "None", "future"])
def test_so_is_what_they_embed_or_link_to(site: str) -> None:
    """A picture's or a link's request has no Origin."""
    assert refused(PLAIN, site=site) == "cross_site"


def test_pages_of_our_own_are_not() -> None:
    for scheme in ("http", "https", "HTTP"):
        assert refused(PLAIN, origin=f"{scheme}://127.0.0.1:8080", site="same-origin") is None
    assert refused(PLAIN, site="none") is None, "typed into the address bar"
    assert refused(PLAIN, "LocalHost", origin="http://localhost") is None
    assert refused(PLAIN, "[::1]:80", origin="http://[::1]:80") is None


def test_without_a_host_no_origin_is_ours() -> None:
    assert refused(PLAIN, "", origin="http://") == "cross_site"
    assert refused(PLAIN, [], origin="http://127.0.0.1") == "cross_site"


def test_cors_lets_its_origin_in() -> None:
    browsers = Browsers([], "https://app.example")
    assert refused(browsers, origin="https://app.example", site="cross-site") is None
    assert refused(browsers, origin="https://app.example.evil", site="cross-site") == "cross_site"
    assert refused(browsers, origin=["https://app.example", "https://evil.example"]) == "cross_site"
    assert refused(browsers, site="cross-site") == "cross_site", "who it is cannot be seen"
    assert refused(browsers, "evil.example", origin="https://app.example") == "foreign_host"


def test_cors_for_all_lets_all_in_by_our_names() -> None:
    browsers = Browsers([], "*")
    for origin in OTHERS:
        assert refused(browsers, origin=origin, site="cross-site") is None
    assert refused(browsers, "evil.example", origin="http://evil.example") == "foreign_host"


def test_what_was_refused_is_said_in_short() -> None:
    with pytest.raises(Forbidden) as refusal:
        PLAIN.check(["x" * 5000], [], [])
    assert len(refusal.value.message) < 300
    assert refusal.value.cause["setting"] == "allowed_hosts"
    assert "allowed_hosts" in refusal.value.message
