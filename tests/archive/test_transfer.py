"""One download over real sockets: redirects, broken connections, bounds; what is in the file is the whole truth."""

import ipaddress
import os
import ssl

import pytest
import trio
import trustme

from tests.archive.origin import GOOD, redirect, reply, serving
from tserve.archive.fetch.network import make_tls
from tserve.archive.fetch.policy import AddressPolicy
from tserve.archive.fetch.rules import NotAllowed, Progress, Rules, TransferFailed, Validator
from tserve.archive.fetch.transfer import Transfer
from tserve.archive.sources import compile_allowed

ALLOWED = AddressPolicy([ipaddress.ip_network(GOOD)])
BODY = os.urandom(3_000_000)
HALF = len(BODY) // 2
OPEN = compile_allowed(["https?://.*"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.fixture
async def origin():
    async with serving() as made:
        yield made


def transfer(url, path, *, allowed=OPEN, tls=None, known=None, progress=None, **rules):
    rules = Rules(**{"addresses": ALLOWED, "retries": 2, "free_bytes": 0} | rules)
    tls = tls or make_tls()
    return Transfer(url, path, rules=rules, allowed=allowed, tls=tls, progress=progress or Progress(), known=known)


async def failed(url, path, **more):
    """The failure that a download ends with."""
    with pytest.raises(TransferFailed) as caught, trio.fail_after(20):
        await transfer(url, path, **more).run()
    return caught.value


def breaking(*, etag='"1"', resumes=True, at=HALF, body=BODY, breaks=1, part=None):
    """Breaks off `breaks` times; then sends what is asked for.  `part` are other headers, of a part of other bytes."""
    left = [breaks]

    async def page(asked, stream):
        start = 0
        head = [f"ETag: {etag}"] if etag else []
        if resumes and "range" in asked.headers and asked.headers.get("if-range") == etag:
            start = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
            status = "206 Partial"
            head = [part] if part else [*head, f"Content-Range: bytes {start}-{len(body) - 1}/{len(body)}"]
        else:
            status = "200 OK"
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) - start}", *head]
        await stream.send_all("\r\n".join([*head, "", ""]).encode())
        left[0] -= 1
        if part and start:
            await stream.send_all(bytes(len(body) - start))
            return
        await stream.send_all(body[start:] if left[0] < 0 else body[start : max(start, at)])

    return page


async def test_a_download(origin, path):
    origin.pages["/x.mar"] = reply(200, BODY, ("ETag", '"1"'), ("Last-Modified", "yesterday"))
    progress = Progress()
    made = transfer(origin.url("/x.mar?token=1"), path, progress=progress)
    assert await made.run() is True
    assert path.read_bytes() == BODY
    assert made.validator == Validator('"1"', "yesterday")
    assert (progress.received, progress.expected, progress.tries) == (len(BODY), len(BODY), 1)
    (asked,) = origin.asked
    assert asked.path == "/x.mar?token=1"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["user-agent"].startswith("tserve/")
    assert not {"range", "authorization", "cookie", "if-none-match"} & asked.headers.keys()


async def test_what_is_compressed_on_the_way_stays_as_it_came(origin, path):
    origin.pages["/x.tar.gz"] = reply(200, b"\x1f\x8b not really", ("Content-Encoding", "gzip"))
    await transfer(origin.url("/x.tar.gz"), path).run()
    assert path.read_bytes() == b"\x1f\x8b not really"


async def test_a_body_in_chunks(origin, path):
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
    origin.pages["/x"] = chunks
    await transfer(origin.url("/x"), path).run()
    assert path.read_bytes() == b"hello!"


async def test_it_goes_on_where_it_broke_off(origin, path):
    origin.pages["/x"] = breaking()
    await transfer(origin.url("/x"), path).run()
    assert path.read_bytes() == BODY
    assert [asked.headers.get("range") for asked in origin.asked] == [None, f"bytes={HALF}-"]
    assert origin.asked[1].headers["if-range"] == '"1"'


async def test_it_goes_on_as_long_as_it_gets_further(origin, path):
    """More breaks than tries in a row are allowed."""
    size = len(BODY)

    async def page(asked, stream):
        start = int(asked.headers.get("range", "bytes=0-")[6:-1])
        part = f"206 X\r\nContent-Range: bytes {start}-{size - 1}/{size}" if start else "200 OK"
        await stream.send_all(f'HTTP/1.1 {part}\r\nETag: "1"\r\nContent-Length: {size - start}\r\n\r\n'.encode())
        await stream.send_all(BODY[start : start + size // 4 + 1])

    origin.pages["/x"] = page
    await transfer(origin.url("/x"), path, retries=1).run()
    assert path.read_bytes() == BODY
    assert len(origin.asked) == 4


@pytest.mark.parametrize(
    "page",
    [
        breaking(etag=None),
        breaking(etag='W/"1"'),
        breaking(resumes=False),
        breaking(part="Content-Range: bytes 7-2999999/3000000"),
        breaking(part=f"Content-Range: bytes {HALF}-2999999/3000001"),
        breaking(part=f'Content-Range: bytes {HALF}-2999999/3000000\r\nETag: "2"'),
        breaking(part="X: y"),
    ],
    ids=["no-tag", "weak-tag", "no-parts", "other-offset", "other-size", "other-tag", "no-range"],
)
async def test_otherwise_it_starts_anew(origin, path, page):
    """Whatever the other side does, the halves of two contents never meet in the file."""
    origin.pages["/x"] = page

    async def second(asked, stream):
        await page(asked, stream)
        if len(origin.asked) > 1:
            origin.pages["/x"] = reply(200, BODY)

    origin.pages["/x"] = second
    await transfer(origin.url("/x"), path).run()
    assert path.read_bytes() == BODY


async def test_a_file_that_changed_meanwhile(origin, path):
    first = breaking(body=bytes(len(BODY)))

    async def page(asked, stream):
        await first(asked, stream)
        origin.pages["/x"] = breaking(etag='"2"', breaks=0)

    origin.pages["/x"] = page
    await transfer(origin.url("/x"), path).run()
    assert path.read_bytes() == BODY


async def test_a_body_that_always_ends_early(origin, path):
    origin.pages["/x"] = breaking(etag=None, breaks=99)
    error = await failed(origin.url("/x"), path)
    assert error.reason == "broken"
    assert len(origin.asked) == 3


async def test_a_passing_fault_is_tried_again(origin, path):
    async def page(asked, stream):
        origin.pages["/x"] = reply(200, b"at last")
        await stream.send_all(reply(503, b"later", ("Retry-After", "0")))

    origin.pages["/x"] = page
    await transfer(origin.url("/x"), path).run()
    assert path.read_bytes() == b"at last"


@pytest.mark.parametrize("status", [204, 206, 300, 304, 305, 400, 401, 403, 404, 410])
async def test_an_answer_that_will_not_change(origin, path, status):
    origin.pages["/x"] = b"HTTP/1.1 %d X\r\n%s\r\n" % (
        status,
        b"" if status in (204, 304) else b"Content-Length: 0\r\n",
    )
    error = await failed(origin.url("/x"), path, retries=0 if status == 206 else 2)
    assert f"status {status}" in error.detail
    assert len(origin.asked) == 1


async def test_a_connection_that_is_refused(path):
    async with serving() as origin:
        pass
    assert (await failed(origin.url("/x"), path, retries=0)).reason == "no_connection"


@pytest.mark.parametrize("body", [b"", b"x" * 100], ids=["promised", "sent"])
async def test_too_large(origin, path, body):
    """Refused by what it says of itself before a byte is asked for, and by what comes."""
    promise = b"Content-Length: 101\r\n\r\n" if not body else b"Transfer-Encoding: chunked\r\n\r\n64\r\n%s\r\n" % body

    async def page(asked, stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\n" + promise)
        await trio.sleep_forever()

    origin.pages["/x"] = page
    error = await failed(origin.url("/x"), path, most_bytes=99)
    assert error.reason == "too_large"
    assert "max_download_size" in error.detail


async def test_the_disk_keeps_its_reserve(origin, path, tmp_path):
    disk = os.statvfs(tmp_path)
    origin.pages["/x"] = reply(200, BODY)
    error = await failed(origin.url("/x"), path, free_bytes=disk.f_bavail * disk.f_frsize + (1 << 40))
    assert error.reason == "no_space"
    assert path.stat().st_size == 0


async def test_a_folder_that_is_not_there(origin, tmp_path):
    origin.pages["/x"] = reply(200, b"x")
    assert (await failed(origin.url("/x"), tmp_path / "nosuch" / "file")).reason == "no_space"


async def test_silence(origin, path):
    async def page(asked, stream):
        await trio.sleep_forever()

    origin.pages["/x"] = page
    error = await failed(origin.url("/x"), path, idle_s=0.05, retries=0)
    assert error.reason == "timeout"
    assert "download_idle_timeout" in error.detail


async def test_a_trickle_ends_with_the_time_for_all(origin, path):
    async def page(asked, stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.01)

    origin.pages["/x"] = page
    error = await failed(origin.url("/x"), path, idle_s=10, total_s=0.3)
    assert error.reason == "timeout"
    assert "download_timeout" in error.detail


async def test_a_listener_that_never_accepts(path):
    with trio.socket.socket() as bound:
        await bound.bind((GOOD, 0))
        bound.listen(0)
        url = f"http://{GOOD}:{bound.getsockname()[1]}/x"
        fillers = [trio.socket.socket() for _ in range(4)]
        for filler in fillers:
            with trio.move_on_after(0.05):
                await filler.connect(bound.getsockname())
        error = await failed(url, path, connect_s=0.2, retries=0, idle_s=0.2)
        for filler in fillers:
            filler.close()
    assert error.reason == "timeout"


async def test_a_head_without_end(origin, path):
    async def page(asked, stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        for number in range(1_000_000):
            await stream.send_all(b"X-%d: y\r\n" % number)

    origin.pages["/x"] = page
    assert (await failed(origin.url("/x"), path, retries=0)).reason == "broken"


async def test_no_http(origin, path):
    origin.pages["/x"] = b"SSH-2.0-OpenSSH_9.9\r\n\r\n"
    assert (await failed(origin.url("/x"), path, retries=0)).reason == "broken"


# -- what is known already


async def test_what_is_known_is_not_fetched_again(origin, path):
    origin.pages["/x"] = b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n'
    assert await transfer(origin.url("/x"), path, known=Validator('"1"', "yesterday")).run() is False
    assert not path.exists()
    (asked,) = origin.asked
    assert (asked.headers["if-none-match"], asked.headers["if-modified-since"]) == ('"1"', "yesterday")


# -- redirects


async def test_redirects(origin, path):
    async with serving() as other:
        origin.pages |= {"/a": redirect("b?c=d"), "/b": redirect(other.url("/x"), 308)}
        other.pages["/x"] = reply(200, b"there")
        await transfer(origin.url("/a"), path).run()
    assert path.read_bytes() == b"there"
    assert [asked.path for asked in origin.asked] == ["/a", "/b?c=d"]


async def test_a_redirect_must_be_allowed_like_the_url(origin, path):
    async with serving() as other:
        origin.pages["/x"] = redirect(other.url("/secret/x?token=1"))
        error = await failed(origin.url("/x"), path, allowed=compile_allowed([origin.url("/.*")]))
        assert other.connections == 0
    assert isinstance(error, NotAllowed)
    assert error.reason == "redirect_not_allowed"
    assert "token" not in error.detail


async def test_redirects_without_end(origin, path):
    origin.pages["/x"] = redirect("/x")
    assert (await failed(origin.url("/x"), path)).reason == "too_many_redirects"
    assert len(origin.asked) == 9


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://h/x", "http://user@h/x", "http://[::1", ""])
async def test_redirects_that_lead_nowhere(origin, path, location):
    origin.pages["/x"] = redirect(location) if location else reply(302)
    assert (await failed(origin.url("/x"), path)).reason in ("bad_url", "bad_redirect", "bad_answer")
    assert len(origin.asked) == 1


# -- TLS


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
async def secure(authority):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(GOOD).configure_cert(tls)
    async with serving(tls=tls) as made:
        yield made


async def test_https(secure, path, authority, tmp_path, monkeypatch):
    """SSL_CERT_FILE names the authorities to trust."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    secure.pages["/x"] = reply(200, b"secret")
    await transfer(secure.url("/x", "https"), path, tls=make_tls()).run()
    assert path.read_bytes() == b"secret"


async def test_a_certificate_of_nobody(secure, path):
    error = await failed(secure.url("/x", "https"), path, tls=ssl.create_default_context())
    assert error.reason == "certificate"
    assert secure.asked == []


async def test_no_way_down_from_https(secure, origin, path, authority):
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    secure.pages["/x"] = redirect(origin.url("/x"))
    assert isinstance(await failed(secure.url("/x", "https"), path, tls=tls), NotAllowed)
    assert origin.connections == 0
