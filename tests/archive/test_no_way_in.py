"""No URL, redirect or change of a name's addresses leads to a connection that the policy forbids.

The sockets tell: every connect of this process is seen by an audit hook, and on the loopback addresses stand traps that
count whoever comes.
"""

import ipaddress
import os
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.archive.hostile_urls import ADDRESSES, NAMES, corpus
from tests.archive.origin import GOOD, redirect, serving
from tserve.archive.fetch.policy import AddressPolicy
from tserve.archive.fetch.rules import Rules
from tserve.archive.keep import Keep
from tserve.errors import TserveError

HAS_IPV6 = Path("/proc/net/if_inet6").exists()
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "192.0.1.1", "223.255.255.255", "2606:4700::1111"]
_connects = None  # the addresses that sockets were told to connect to, while somebody watches


def _hook(event, args):
    if _connects is not None and event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        family = args[0].family
        if family != socket.AF_UNIX:
            _connects.append(args[1])


sys.addaudithook(_hook)


class Names(trio.abc.HostnameResolver):
    """A name server of the test's own: `answers` says which addresses a name has, question by question."""

    def __init__(self):
        self.answers = {}
        self.asked = []

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        host = host.decode() if isinstance(host, bytes) else host
        self.asked.append(host)
        found = self.answers.get(host)
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        addresses = next(found)
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in addresses
        ]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


def always(*addresses):
    while True:
        yield list(addresses)


@pytest.fixture
async def names():
    made = Names()
    before = trio.socket.set_custom_hostname_resolver(made)
    made.answers |= {name: always(address) for name, address in NAMES.items()}
    made.answers |= {name.encode("idna").decode(): always(address) for name, address in NAMES.items() if name.isalpha()}
    yield made
    trio.socket.set_custom_hostname_resolver(before)


@asynccontextmanager
async def watched():
    """The addresses that sockets were told to connect to inside the block."""
    global _connects
    _connects = seen = []
    try:
        yield seen
    finally:
        _connects = None


@asynccontextmanager
async def traps():
    """One port, on every loopback address, that nobody may come to."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        with trio.socket.socket(trio.socket.AF_INET6 if HAS_IPV6 else trio.socket.AF_INET) as six:
            if HAS_IPV6:
                six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await six.bind(("::1" if HAS_IPV6 else "127.0.0.3", port))
            six.listen()
            caught = []

            async def catch(stream):
                caught.append(stream.socket.getpeername())
                await stream.aclose()

            nursery.start_soon(trio.serve_listeners, catch, [*listeners, trio.SocketListener(six)])
            yield port, caught
            nursery.cancel_scope.cancel()


@pytest.fixture
async def guarded(tmp_path, store, names):
    """A way to try URLs, one by one; afterwards nothing forbidden was connected to, nothing is on the disk."""
    rules = Rules(addresses=AddressPolicy([ipaddress.ip_network(GOOD)]), retries=0, connect_s=5, idle_s=5)
    keep = Keep(tmp_path / "state", store, allowed_urls=["file://.*", "http(s)?://.*"], rules=rules)
    await keep.prepare(())
    answers = {}

    async def attempt(url):
        try:
            with trio.fail_after(20):
                async with keep.admit(url, referenced=lambda _: False):
                    answers[url] = "admitted"
        except TserveError as error:
            answers[url] = error
        return answers[url]

    async with traps() as (port, caught), watched() as connects:
        yield attempt, port
        assert caught == []
        assert {address[0] for address in connects} <= {GOOD}
    assert "admitted" not in answers.values()
    assert [
        str(p) for folder in ("incoming", "archives", "downloads") for p in (tmp_path / "state" / folder).iterdir()
    ] == []
    assert os.listdir(store) == []


async def test_hostile_urls(guarded):
    attempt, port = guarded
    urls = corpus(port, f"{GOOD}:1")
    assert len(urls) >= 300
    for url in urls:
        await attempt(url)


@pytest.mark.parametrize("status", [302, 307])
async def test_hostile_urls_behind_redirects(guarded, status):
    attempt, port = guarded
    async with serving() as origin:
        for number, url in enumerate(corpus(port, f"{GOOD}:1")):
            origin.pages[f"/{number}.mar"] = redirect(url, status)
            await attempt(origin.url(f"/{number}.mar"))
        assert [asked.path for asked in origin.asked if asked.path.endswith(".mar")]
        assert len(origin.asked) >= 300


@pytest.mark.parametrize("hops", [1, 3])
async def test_names_that_change_their_address_between_requests(guarded, names, hops):
    """The first answers are of a server that may be asked, which leads back to the name: it must be looked at anew."""
    attempt, _ = guarded
    async with serving() as origin:
        for number, address in enumerate(ADDRESSES):
            host = f"rebind{number}.example"
            names.answers[host] = iter([[GOOD]] * hops + [[address]] * 9)
            origin.pages[f"/{number}.mar"] = redirect(f"http://{host}:{origin.port}/{number}.mar")
            error = await attempt(f"http://{host}:{origin.port}/{number}.mar")
            assert error.cause["reason"] == "address_not_allowed", (address, error.cause)
            assert names.asked.count(host) == hops + 1  # once for each connection, so that it cannot change in between


async def test_names_with_one_bad_address_among_good_ones(guarded, names):
    """Which of them would be connected to is up to chance: so to none."""
    attempt, _ = guarded
    async with serving() as origin:
        for number, address in enumerate(ADDRESSES):
            for turn, order in enumerate([[GOOD, address], [address, GOOD], [GOOD] * 9 + [address]]):
                host = f"mixed{number}-{turn}.example"
                names.answers[host] = always(*order)
                error = await attempt(f"http://{host}:{origin.port}/x.mar")
                assert error.cause["reason"] == "address_not_allowed", (address, error.cause)
        assert origin.connections == 0


async def test_names_that_change_between_the_check_and_the_connection(guarded, names):
    """The second answer, which a server that resolved twice would connect to, is never asked for."""
    attempt, _ = guarded
    async with serving() as origin:
        names.answers["twice.example"] = iter([[GOOD], ["127.0.0.1"]])
        await attempt(f"http://twice.example:{origin.port}/x.mar")
        assert names.asked == ["twice.example"]
        assert origin.connections == 1


async def test_a_name_in_no_encoding(guarded):
    """What no name server can be asked for is refused, and not an internal error."""
    attempt, _ = guarded
    for host in ("xn--a", "a..b", "-", "\u0130.example", "a\u200d.example", "\ud83d\ude00.example"):
        error = await attempt(f"http://{host}/x.mar")
        assert error.status in (400, 404)


async def test_the_watch_sees_what_is_connected_to(names):
    """Else the tests above would show nothing."""
    hosts = ["127.0.0.1", "::1" if HAS_IPV6 else "127.0.0.3"]
    async with traps() as (port, caught), watched() as connects:
        for host in hosts:
            stream = await trio.open_tcp_stream(host, port)
            await stream.receive_some()
            await stream.aclose()
    assert [address[:2] for address in connects] == [(host, port) for host in hosts]
    assert len(caught) == 2


# -- the table itself


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_that_are_not_public(address):
    assert AddressPolicy().objection(address)
    assert AddressPolicy(allow_all=True).objection(address) is None
    exactly = [ipaddress.ip_network(address)]
    assert AddressPolicy(exactly).objection(address) is None
    assert AddressPolicy([ipaddress.ip_network("192.168.7.0/24")]).objection(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are_public(address):
    assert AddressPolicy().objection(address) is None


def test_the_table_knows_all_that_python_calls_not_global():
    """Two lists, made by different hands, of what is not public."""
    for prefix in range(1 << 16):
        first = ipaddress.IPv4Address(prefix << 16)
        if not first.is_global or first.is_multicast:
            assert AddressPolicy().objection(str(first)), first
