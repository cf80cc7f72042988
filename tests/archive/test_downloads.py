"""Who shares a download, what is kept of it and what is left: with real sockets, real intakes and a real folder."""

import io
import json
import logging
import os
import zipfile
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.archive.origin import GOOD, redirect, reply, serving
from tests.archive.test_transfer import ALLOWED, breaking
from tserve.archive.fetch.rules import Rules
from tserve.archive.keep import Keep
from tserve.errors import DownloadFailed, InternalServer, InvalidModel, ModelNotFound


def mar(name="noop", filling=b""):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        manifest = json.dumps({"model": {"modelName": name, "handler": "h.py"}})
        archive.writestr(zipfile.ZipInfo("MAR-INF/MANIFEST.json"), manifest)  # of one and the same time
        archive.writestr(zipfile.ZipInfo("filling"), filling)
    return made.getvalue()


@pytest.fixture
async def origin():
    async with serving() as made:
        made.pages["/noop.mar"] = reply(200, mar())
        yield made


class Registrations:
    """What a registry knows of URLs, and a registration in small."""

    def __init__(self, keep):
        self.keep = keep
        self.versions = []  # URL and digest

    def digests(self, url):
        return {digest for each, digest in self.versions if each == url}

    def referenced(self, digest):
        return any(each == digest for _, digest_ in self.versions for each in [digest_])

    async def register(self, url, *, fails=None, signed=False):
        async with self.keep.admit(url, signed=signed, referenced=self.referenced, digests=self.digests) as archive:
            if fails is not None:
                raise fails
            self.versions.append((url, archive.digest))
        return archive

    async def unregister(self, url):
        (found,) = [each for each in self.versions if each[0] == url]
        self.versions.remove(found)
        await self.keep.release(found[1], referenced=self.referenced)
        await self.keep.forget(url, digests=self.digests)


def make_keep(state, store, **rules):
    rules = Rules(**{"addresses": ALLOWED, "retries": 0, "free_bytes": 0} | rules)
    return Keep(state, store, allowed_urls=["https?://.*", "s3://.*"], rules=rules)


@pytest.fixture
async def keep(state, store):
    made = make_keep(state, store)
    await made.prepare(())
    return made


@pytest.fixture
def registry(keep):
    return Registrations(keep)


@pytest.fixture
def nothing_left(state, store):
    def check():
        assert [str(p) for folder in ("incoming", "archives", "downloads") for p in (state / folder).iterdir()] == []
        assert os.listdir(store) == []

    return check


async def test_a_download_is_kept_shown_in_the_store_and_let_go(registry, origin, state, store, nothing_left):
    url = origin.url("/noop.mar?token=1")
    await registry.register(url)
    assert os.listdir(store) == ["noop.mar"]
    assert (store / "noop.mar").is_symlink()
    assert (store / "noop.mar").read_bytes() == mar()
    assert os.listdir(state / "incoming") == []
    await registry.register("noop.mar")  # by its name in the store, as any other file
    assert registry.keep.startup_sources() == []
    await registry.unregister("noop.mar")
    assert os.listdir(store) == ["noop.mar"]
    await registry.unregister(url)
    nothing_left()


@pytest.mark.parametrize("fails", [InvalidModel("no"), RuntimeError("no")])
async def test_a_registration_that_comes_to_nothing_leaves_nothing(registry, origin, nothing_left, fails):
    with pytest.raises(type(fails)):
        await registry.register(origin.url("/noop.mar"), fails=fails)
    nothing_left()
    await registry.register(origin.url("/noop.mar"))


async def test_what_is_no_archive_leaves_nothing(registry, origin, nothing_left):
    origin.pages["/x.txt"] = reply(200, b"plain")
    with pytest.raises(InternalServer) as caught:
        await registry.register(origin.url("/x.txt"))
    assert caught.value.message == f"Failed to save model: {origin.url('/x.txt')}"
    nothing_left()


async def test_a_download_that_fails(registry, origin, nothing_left, caplog):
    url = origin.url("/nosuch.mar\x1b\r?X-Amz-Signature=secret")
    with caplog.at_level(logging.INFO), pytest.raises(DownloadFailed) as caught:
        await registry.register(url)
    assert caught.value.message == f"Failed to download archive from: {url}"
    assert caught.value.cause["reason"] == "bad_url"
    assert "nosuch.mar??" in caplog.text
    assert "secret" not in caplog.text
    nothing_left()


async def test_a_redirect_that_is_refused(registry, origin, nothing_left):
    origin.pages["/x.mar"] = redirect("http://127.0.0.1:9/x.mar")
    url = origin.url("/x.mar")
    with pytest.raises(ModelNotFound) as caught:
        await registry.register(url)
    assert caught.value.message == f"Given URL {url} does not match any allowed URL(s)"
    assert caught.value.cause["reason"] == "address_not_allowed"
    assert "127.0.0.1" in caught.value.cause["detail"]
    nothing_left()


# -- names


@pytest.mark.parametrize("path", ["/mine.mar", "/sub", "/", "/.", "/a/mine.mar?x", "/dangling"])
async def test_a_name_that_the_store_has(registry, origin, store, path):
    (store / "mine.mar").write_bytes(b"mine")
    (store / "sub").mkdir()
    (store / "dangling").symlink_to("/nowhere")
    before = sorted(os.listdir(store))
    with pytest.raises(InternalServer) as caught:
        await registry.register(origin.url(path))
    name = path.partition("?")[0].rpartition("/")[2]
    assert caught.value.message == f"Model file already exists {name}"
    assert origin.connections == 0
    assert sorted(os.listdir(store)) == before
    assert (store / "mine.mar").read_bytes() == b"mine"


async def test_a_name_that_another_url_has(registry, origin, store):
    await registry.register(origin.url("/noop.mar"))
    with pytest.raises(InternalServer, match=r"Model file already exists noop\.mar"):
        await registry.register(origin.url("/other/noop.mar"))
    assert len(origin.asked) == 1
    assert (store / "noop.mar").exists()


async def test_a_name_that_another_registration_is_about_to_have(registry, origin):
    gate = trio.Event()

    async def page(asked, stream):
        await gate.wait()
        await stream.send_all(reply(200, mar()))

    origin.pages["/noop.mar"] = page
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.register, origin.url("/noop.mar"))
        await until(lambda: origin.asked)
        with pytest.raises(InternalServer, match="already exists"):
            await registry.register(origin.url("/other/noop.mar"))
        gate.set()
    assert [url for url, _ in registry.versions] == [origin.url("/noop.mar")]


async def test_a_name_that_no_folder_can_hold(registry, origin, nothing_left):
    with pytest.raises(DownloadFailed):
        await registry.register(origin.url("/" + "é" * 130 + ".mar"))
    assert origin.connections == 0
    nothing_left()


async def test_a_file_of_the_operators_is_never_removed(registry, origin, store):
    await registry.register(origin.url("/noop.mar"))
    (store / "noop.mar").unlink()
    (store / "noop.mar").write_bytes(b"mine")
    await registry.unregister(origin.url("/noop.mar"))
    assert (store / "noop.mar").read_bytes() == b"mine"


async def test_a_store_that_cannot_be_written_to_costs_the_link_only(registry, origin, store, caplog):
    store.rmdir()  # permissions would not stop root
    await registry.register(origin.url("/noop.mar"))
    assert "no link" in caplog.text
    assert registry.versions


# -- sharing


async def until(holds):
    with trio.fail_after(20):
        while not holds():  # noqa: ASYNC110 - sockets set no events
            await trio.sleep(0.005)


async def test_registrations_at_the_same_time_share_one_download(registry, origin, nothing_left):
    gate = trio.Event()

    async def page(asked, stream):
        await gate.wait()
        await stream.send_all(reply(200, mar()))

    origin.pages["/noop.mar"] = page
    url = origin.url("/noop.mar")
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(registry.register, url)
        await until(lambda: origin.asked)
        (shown,) = registry.keep.downloads()
        assert (shown.url, shown.users, shown.progress.received) == (url, 5, 0)
        gate.set()
    assert len(origin.asked) == 1
    assert len(registry.versions) == 5
    assert registry.keep.downloads() == []
    for _ in range(4):
        registry.versions.pop()
    await registry.unregister(url)
    nothing_left()


async def test_they_share_its_failure_too(registry, origin, nothing_left):
    gate = trio.Event()

    async def page(asked, stream):
        await gate.wait()
        await stream.send_all(reply(403))

    origin.pages["/noop.mar"] = page
    failures = []

    async def one():
        with pytest.raises(DownloadFailed) as caught:
            await registry.register(origin.url("/noop.mar"))
        failures.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
        await until(lambda: origin.asked)
        await wait_all_tasks_blocked(0.02)
        gate.set()
    assert len(failures) == 3
    assert len(origin.asked) == 1
    nothing_left()


async def test_when_the_first_leaves_the_next_goes_on(registry, origin, store):
    """From where the first was, and not anew."""
    body, reached = mar(filling=os.urandom(3_000_000)), trio.Event()

    async def page(asked, stream):
        if "range" in asked.headers:
            await breaking(body=body, breaks=0)(asked, stream)
            return
        await stream.send_all(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %d\r\n\r\n' % len(body))
        await stream.send_all(body[:2_000_000])
        reached.set()
        await trio.sleep_forever()

    origin.pages["/noop.mar"] = page
    url = origin.url("/noop.mar")
    async with trio.open_nursery() as nursery:
        first = await nursery.start(self_cancelling, registry, url)
        await reached.wait()
        await until(lambda: registry.keep.downloads()[0].progress.received >= 1 << 20)
        nursery.start_soon(registry.register, url)
        await until(lambda: registry.keep.downloads()[0].users == 2)
        first.cancel()
    first, second = origin.asked
    assert 1 << 20 <= int(second.headers["range"][6:-1]) <= 2_000_000
    assert (store / "noop.mar").read_bytes() == body


async def self_cancelling(registry, url, *, task_status):
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await registry.register(url)


async def test_when_all_leave_nothing_is_left(registry, origin, nothing_left):
    async def page(asked, stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + bytes(2_000_000))
        await trio.sleep_forever()

    origin.pages["/noop.mar"] = page
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(registry.register, origin.url("/noop.mar"))
        await until(lambda: any(each.progress.received for each in registry.keep.downloads()))
        nursery.cancel_scope.cancel()
    nothing_left()


async def test_the_same_content_is_fetched_once(registry, origin, store):
    async def page(asked, stream):
        known = asked.headers.get("if-none-match") == '"1"'
        await stream.send_all(b"HTTP/1.1 304 X\r\n\r\n" if known else reply(200, mar(), ("ETag", '"1"')))

    origin.pages["/noop.mar"] = page
    url = origin.url("/noop.mar")
    for _ in range(2):
        await registry.register(url)
    assert [asked.headers.get("if-none-match") for asked in origin.asked] == [None, '"1"']
    assert len({digest for _, digest in registry.versions}) == 1
    assert (store / "noop.mar").read_bytes() == mar()


async def test_new_content_of_a_url_takes_the_place_of_the_old(registry, origin, store, nothing_left):
    url = origin.url("/noop.mar")
    await registry.register(url)
    origin.pages["/noop.mar"] = reply(200, mar("newer"))
    await registry.register(url)
    assert len({digest for _, digest in registry.versions}) == 2
    assert (store / "noop.mar").read_bytes() == mar("newer")
    origin.pages["/noop.mar"] = reply(200, b"PK\3\4 broken")
    with pytest.raises(InternalServer):
        await registry.register(url)
    assert (store / "noop.mar").read_bytes() == mar("newer")
    registry.versions.pop(0)
    await registry.unregister(url)
    assert os.listdir(store) == []


async def test_what_was_kept_may_have_gone(registry, origin, state, store):
    origin.pages["/noop.mar"] = reply(200, mar(), ("ETag", '"1"'))
    for _ in range(2):
        await registry.register(origin.url("/noop.mar"))
        for kept in (state / "downloads").iterdir():
            kept.unlink()
    assert "if-none-match" not in origin.asked[1].headers


async def test_a_version_that_leaves_while_its_url_is_registered_again(registry, origin, nothing_left):
    url = origin.url("/noop.mar")
    await registry.register(url)
    gate = trio.Event()

    async def page(asked, stream):
        await gate.wait()
        await stream.send_all(reply(404))

    origin.pages["/noop.mar"] = page

    async def again():
        with pytest.raises(DownloadFailed):
            await registry.register(url)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(again)
        await until(lambda: len(origin.asked) == 2)
        await registry.unregister(url)
        gate.set()
    nothing_left()


async def test_signed_and_unsigned_are_not_shared(registry, origin, monkeypatch):
    """Whoever asks without credentials must not get what others get with theirs, then or later."""
    for name, value in (
        ("ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("SECRET_ACCESS_KEY", "secret"),
        ("DEFAULT_REGION", "here-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)

    gate = trio.Event()

    async def page(asked, stream):
        if "authorization" in asked.headers:
            await gate.wait()
        await stream.send_all(reply(200, mar()) if "authorization" in asked.headers else reply(403))

    origin.pages["/noop.mar"] = page
    url = origin.url("/noop.mar")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(registry.register, url, signed=True))
        await until(lambda: origin.asked)
        with trio.fail_after(20), pytest.raises(DownloadFailed):
            await registry.register(url)
        gate.set()
    with pytest.raises(DownloadFailed):
        await registry.register(url)


# -- proxies and starts


async def test_proxies_of_the_environment_are_not_asked(registry, origin, monkeypatch):
    async with serving() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url())
        await registry.register(origin.url("/noop.mar"))
        assert proxy.connections == 0
    assert origin.connections == 1


async def test_the_next_start_removes_what_nobody_needs(registry, origin, state, store):
    url, other = origin.url("/noop.mar"), origin.url("/other.mar")
    origin.pages["/other.mar"] = reply(200, mar("other"))
    for each in (url, other):
        await registry.register(each)
    (state / "incoming" / "half").write_bytes(b"x")
    (store / "mine.mar").symlink_to(store / "nowhere")
    await make_keep(state, store).prepare({registry.versions[0][1]}, {url, "mine.mar"})
    assert sorted(os.listdir(store)) == ["mine.mar", "noop.mar"]
    assert len(os.listdir(state / "downloads")) == 1
    assert os.listdir(state / "incoming") == []
    (store / "noop.mar").unlink()
    await make_keep(state, store).prepare({registry.versions[0][1]}, {url})
    assert (store / "noop.mar").read_bytes() == mar()


async def test_bounds(state, store, origin, nothing_left):
    keep = make_keep(state, store, most_bytes=100)
    await keep.prepare(())
    with pytest.raises(DownloadFailed) as caught:
        await Registrations(keep).register(origin.url("/noop.mar"))
    assert caught.value.cause["reason"] == "too_large"
    nothing_left()


def test_the_good_address_is_no_public_one():
    """Else these tests would show nothing."""
    assert GOOD.startswith("127.")
