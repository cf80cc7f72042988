import os
from pathlib import Path

import pytest

from tserve.archive.sources import Kind, Remote, Source, compile_allowed, resolve, startup_sources
from tserve.errors import BadConfiguration, DownloadFailed, InvalidModel, ModelNotFound

OPEN = compile_allowed(["file://.*", "http(s)?://.*"])


@pytest.fixture
def filled(store, tmp_path):
    for name in ("noop.mar", "old.model", "flat.tar.gz", "plain", "my model.mar", "é.mar"):
        (store / name).write_bytes(b"x")
    (store / "sub" / "deep").mkdir(parents=True)
    (store / "sub" / "insub.mar").write_bytes(b"x")
    (store / "folder").mkdir()
    (store / "alias.mar").symlink_to(store / "sub" / "insub.mar")
    (store / "linked").symlink_to(store / "sub")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.mar").write_bytes(b"x")
    (store / "leads_out.mar").symlink_to(outside / "secret.mar")
    (store / "leads_out").symlink_to(outside)
    (store / "loop.mar").symlink_to("loop.mar")
    (store / "self").symlink_to(store)
    os.mkfifo(store / "pipe.mar")
    return store


@pytest.mark.parametrize(
    ("url", "path", "kind"),
    [
        ("noop.mar", "noop.mar", Kind.ZIP),
        ("./noop.mar", "noop.mar", Kind.ZIP),
        ("old.model", "old.model", Kind.ZIP),
        ("my model.mar", "my model.mar", Kind.ZIP),
        ("é.mar", "é.mar", Kind.ZIP),
        ("flat.tar.gz", "flat.tar.gz", Kind.TAR),
        ("plain", "plain", Kind.TAR),
        ("folder", "folder", Kind.FOLDER),
        ("sub/deep", "sub/deep", Kind.FOLDER),
        ("linked", "sub", Kind.FOLDER),
        ("alias.mar", "sub/insub.mar", Kind.ZIP),
        ("STORE/noop.mar", "noop.mar", Kind.ZIP),
        ("STORE/folder", "folder", Kind.FOLDER),
        ("STORE/folder/", "folder", Kind.FOLDER),
        ("STORE/sub/deep/", "sub/deep", Kind.FOLDER),
        ("file://STORE/noop.mar", "noop.mar", Kind.ZIP),
        ("FILE://localhostSTORE/my%20model.mar", "my model.mar", Kind.ZIP),
        ("file://STORE/%C3%A9.mar", "é.mar", Kind.ZIP),
    ],
)
def test_what_a_url_names(filled, url, path, kind):
    url = url.replace("STORE", str(filled))
    source = resolve(url, filled, OPEN)
    assert (source.url, source.path, source.kind) == (url, str(filled / path), kind)


@pytest.mark.parametrize(
    "url",
    [
        "sub/insub.mar",
        "sub/noop.mar",
        "linked/insub.mar",
        "/nowhere/noop.mar",
        "/etc/hostname",
        "/etc",
        "/",
        "STORE/sub/insub.mar",
        "STORE/noop.mar/",
        "sub\\noop.mar",
        "noop",
        "NOOP.mar",
        " noop.mar",
        "noop.mar ",
        "noop\0.mar",
        "STORE/noop\0.mar",
        "x" * 5000,
        "leads_out.mar",
        "leads_out",
        "leads_out/secret.mar",
        "loop.mar",
        "pipe.mar",
        "ftp://127.0.0.1/noop.mar",
        "ftp://127.0.0.1/",
        "zzzhttp://127.0.0.1/noop.mar",
        "file:noop.mar",
    ],
)
def test_not_found(filled, url):
    url = url.replace("STORE", str(filled))
    with pytest.raises(ModelNotFound) as caught:
        resolve(url, filled, OPEN)
    assert caught.value.message == f"Model not found at: {url}"


def test_lone_surrogates_are_not_found_and_not_sent_back(filled):
    with pytest.raises(ModelNotFound) as caught:
        resolve("a\ud800.mar", filled, OPEN)
    assert caught.value.message == "Model not found at: a?.mar"


@pytest.mark.parametrize("url", [".", "./", "folder/", "xyz/", "noop.mar/", "self", "STORE", "STORE/", "STORE/."])
def test_the_store_itself_is_refused(filled, url):
    with pytest.raises(InvalidModel) as caught:
        resolve(url.replace("STORE", str(filled)), filled, OPEN)
    assert caught.value.message == "Model name is not defined."
    assert caught.value.cause["reason"] == "names_the_store"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "empty url"),
        ("../x.mar", "Relative path is not allowed in url: ../x.mar"),
        ("a..b.mar", "Relative path is not allowed in url: a..b.mar"),
        ("http://other/../x.mar", "Relative path is not allowed in url: http://other/../x.mar"),
        ("http://other/x.mar", "Given URL http://other/x.mar does not match any allowed URL(s)"),
        ("HTTPS://good/x.mar", "Given URL HTTPS://good/x.mar does not match any allowed URL(s)"),
        ("zhttp://good/x.mar", "Model not found at: zhttp://good/x.mar"),
        ("file:///etc/hostname", "Given URL file:///etc/hostname does not match any allowed URL(s)"),
        ("s3://bucket/x.mar", "Given URL s3://bucket/x.mar does not match any allowed URL(s)"),
    ],
)
def test_policy(store, url, message):
    with pytest.raises(ModelNotFound) as caught:
        resolve(url, store, compile_allowed(["http://good/.*", "file:///allowed/.*"]))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("url", "name", "kind"),
    [
        ("http://good/x.mar", "x.mar", Kind.ZIP),
        ("HTTP://GOOD/a/b/x.model?token=/y.tar.gz", "x.model", Kind.ZIP),
        ("http://good/x.tar.gz#/y.mar", "x.tar.gz", Kind.TAR),
        ("http://good/", "", Kind.TAR),
        ("http://good/a/%2fx.mar", "%2fx.mar", Kind.ZIP),
        ("s3://good/x.mar", "x.mar", Kind.ZIP),
        ("s3://good/a/b?#c.mar", "b?#c.mar", Kind.ZIP),
    ],
)
def test_files_of_other_machines(store, url, name, kind):
    found = resolve(url, store, compile_allowed(["(http|s3)://good/.*"]))
    assert (found, found.kind) == (Remote(url, name), kind)


def test_a_link_to_a_download_counts_as_a_file_of_the_store(store, tmp_path):
    downloads, kept = tmp_path / "downloads", tmp_path / "downloads" / "0f"
    downloads.mkdir()
    kept.write_bytes(b"x")
    (store / "fetched.mar").symlink_to(kept)
    assert resolve("fetched.mar", store, OPEN, downloads) == Source("fetched.mar", str(kept), Kind.ZIP)
    assert resolve(f"file://{store}/fetched.mar", store, OPEN, downloads).path == str(kept)
    with pytest.raises(ModelNotFound):
        resolve("fetched.mar", store, OPEN)
    assert startup_sources(store, Path.is_symlink) == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///nonexistent/zz.mar",
        "file:///etc/hostname",
        "file://",
        "file://STORE",
        "file://STORE/folder",
        "file://STORE/nosuch.mar",
        "file://STORE/leads_out.mar",
        "file://STORE/%2e%2e/outside/secret.mar",
        "file://STORE/noop%00.mar",
        "file://otherhostSTORE/noop.mar",
        "file://[/noop.mar",
    ],
)
def test_a_file_url_names_a_file_in_the_store(filled, url):
    url = url.replace("STORE", str(filled))
    with pytest.raises(DownloadFailed) as caught:
        resolve(url, filled, OPEN)
    assert caught.value.message == f"Failed to download archive from: {url}"


def test_a_store_that_is_a_link(filled, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(filled)
    assert resolve(f"{link}/noop.mar", link, OPEN).path == str(filled / "noop.mar")
    assert resolve("noop.mar", link, OPEN).path == str(filled / "noop.mar")


def test_a_pattern_that_is_none(store):
    with pytest.raises(BadConfiguration, match="allowed_urls"):
        compile_allowed(["(unclosed"])


def test_startup_sources(filled):
    (filled / ".hidden.mar").write_bytes(b"x")
    (filled / ".hidden").mkdir()
    (filled / "notes.txt").write_bytes(b"x")
    (filled / os.fsdecode(b"bad\xff.mar")).write_bytes(b"x")
    files = ["alias.mar", "flat.tar.gz", "leads_out.mar", "my model.mar", "noop.mar", "old.model", "é.mar"]
    folders = ["folder", "leads_out", "linked", "self", "sub"]
    assert startup_sources(filled) == sorted(files + folders)


def test_startup_sources_of_a_store_that_is_not_there(tmp_path):
    assert startup_sources(tmp_path / "nosuch") == []
