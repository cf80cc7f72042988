"""What unpacking makes of good, broken and hostile archives: the intake's answer, asked in this process."""

import errno
import gzip
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import tserve
from tserve.archive.intake import answer
from tserve.archive.quota import Quota
from tserve.archive.refusal import Refused
from tserve.archive.tree import Tree

QUOTA = Quota()
EMPTY = hashlib.sha256().hexdigest()


@pytest.fixture
def taken(tmp_path):
    """Take a source in: the answer, and the unpacked files with their contents."""

    def take(source, kind="zip", quota=QUOTA):
        desk = tmp_path / f"desk{sum(1 for _ in tmp_path.iterdir())}"
        result = answer(source, kind, desk, quota)
        model = desk / "model"
        found = sorted(model.rglob("*")) if model.exists() else []
        return result, {str(p.relative_to(model)): p.read_bytes() if p.is_file() else None for p in found}

    return take


def test_the_process_imports_little():
    """It is started for each archive: yaml would double its time, trio has no business in it."""
    program = (
        "import sys; import tserve.archive.intake, tserve.archive.unzip, tserve.archive.untar, tserve.archive.folder; "
        "print(sorted({'trio', 'yaml', 'dataclasses', 'asyncio', 'subprocess'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(tserve.__file__).parents[1])}
    output = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True).stdout
    assert output == b"[]\n"


def refused(result, reason):
    assert (result.get("refused"), result.get("reason")) == ("archive", reason), result
    assert result["detail"]


def test_a_zip(mar, taken):
    source = mar("a.mar", {"code.py": b"code", "data/": b"", "lib/x/y.bin": bytes(3_000_000), "é.txt": b"e"})
    result, files = taken(source)
    content = source.read_bytes()
    assert (result["digest"], result["size"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert files == {
        "code.py": b"code", "data": None, "lib": None, "lib/x": None, "lib/x/y.bin": bytes(3_000_000), "é.txt": b"e",
    }  # fmt: skip
    assert result["warnings"] == []


def test_names_without_the_utf8_flag_are_utf8_all_the_same(mar, taken):
    source = mar("a.mar", {"é": b"e"})
    content = bytearray(source.read_bytes())
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(header) + offset
        assert content[at + 1] & 0x08
        content[at + 1] &= ~0x08
    source.write_bytes(content)
    assert taken(source)[1] == {"é": b"e"}


def test_the_last_of_two_entries_with_one_name_wins(mar, taken):
    source = mar("a.mar", {zipfile.ZipInfo("x"): b"first, longer", zipfile.ZipInfo("./x"): b"second"})
    assert taken(source)[1] == {"x": b"second"}


def test_an_absolute_entry_is_placed_inside(mar, taken):
    assert taken(mar("a.mar", {"/abs/x": b"1", "//y": b"2"}))[1] == {"abs": None, "abs/x": b"1", "y": b"2"}


@pytest.mark.parametrize("content", [b"", b"this is not a zip archive\n" * 10, b"PK\x05\x06" + bytes(18), b"PK"])
def test_what_has_no_entries_is_an_empty_archive(store, taken, content):
    """As recorded (archive.notazip, archive.empty); the digest stands for the content that is kept: none."""
    (store / "a.mar").write_bytes(content)
    result, files = taken(store / "a.mar")
    assert (result["digest"], result["size"], result["manifest"], files) == (EMPTY, 0, {}, {})
    assert result["warnings"] == ["not a zip archive; it counts as an empty one"]


def test_a_truncated_zip(mar, taken):
    source = mar()
    source.write_bytes(source.read_bytes()[:100])
    refused(taken(source)[0], "damaged")


def test_a_zip_with_a_flipped_byte(mar, taken):
    source = mar("a.mar", {zipfile.ZipInfo("x"): b"0123456789"})
    source.write_bytes(source.read_bytes().replace(b"0123456789", b"012345678X"))
    refused(taken(source)[0], "damaged")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a/..", "/../evil"])
def test_parent_paths(mar, tarball, taken, name, tmp_path):
    refused(taken(mar("a.mar", {"good.py": b"", name: b"evil"}))[0], "unsafe_entry")
    refused(taken(tarball("a.tar.gz", {"top/good.py": b"", name: b"evil"}), "tar")[0], "unsafe_entry")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_zip_entries_that_are_no_files(mar, taken, kind):
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    refused(taken(mar("a.mar", {info: b"/etc/passwd"}))[0], "unsafe_entry")


def test_an_encrypted_zip(mar, taken):
    source = mar("a.mar", {"x": b"secret"})
    content = bytearray(source.read_bytes())
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + offset] |= 1
    source.write_bytes(content)
    refused(taken(source)[0], "encrypted")


def test_a_compression_the_recorded_server_does_not_know(store, taken):
    with zipfile.ZipFile(store / "a.mar", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", b"x")
    refused(taken(store / "a.mar")[0], "unknown_compression")


def test_an_entry_that_is_file_and_folder(mar, taken):
    refused(taken(mar("a.mar", {"a": b"file", "a/b": b"below it"}))[0], "unsafe_entry")


@pytest.mark.parametrize("name", ["x" * 300, "/".join("x" * 40), "/".join(["x" * 200] * 6)])
def test_names_past_the_bounds(mar, taken, name):
    refused(taken(mar("a.mar", {name: b""}))[0], "unsafe_entry")


def test_too_many_entries(mar, tarball, taken):
    names = {f"top/{n}": b"" for n in range(4)}
    refused(taken(mar("a.mar", names), quota=Quota(entries=3))[0], "too_many_entries")
    refused(taken(tarball("a.tar", names, "w"), "tar", quota=Quota(entries=3))[0], "too_many_entries")


def test_a_zip_that_says_it_is_too_large(mar, taken):
    """Refused before a byte is written: 100 MB of declared size, times 12, in an archive of a few kilobytes."""
    source = mar("a.mar", {f"{n}": b"0" for n in range(12)})
    content = bytearray(source.read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 24 : at + 28] = (100_000_000).to_bytes(4, "little")
    source.write_bytes(content)
    result, files = taken(source)
    refused(result, "too_large")
    assert files == {}


def test_more_bytes_than_a_tree_may_hold(tmp_path):
    small = Tree(tmp_path / "tree", Quota(size=1), packed=1)
    small.add_file(["a"], io.BytesIO(bytes(1 << 20)), executable=False)
    with pytest.raises(Refused, match="too_large"):
        small.add_file(["b"], io.BytesIO(b"x"), executable=False)
    assert not (tmp_path / "tree" / "b").read_bytes()


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_a_tarball_loses_the_first_part_of_each_name(tarball, taken, mode):
    members = {"top": None, "top/code.py": b"code", "top/lib": None, "top/lib/x": b"x", "./dot": b"d", "/abs/y": b"y"}
    source = tarball("a.tar.gz", members, mode)
    result, files = taken(source, "tar")
    assert files == {"code.py": b"code", "lib": None, "lib/x": b"x", "dot": b"d", "abs": None, "abs/y": b"y"}
    assert result["digest"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_flat_tarball_loses_its_mar_inf(tarball, taken, manifest):
    """spec/management.md section 3.1: it then fails for want of a name."""
    result, files = taken(tarball("a.tar", {"MAR-INF/MANIFEST.json": manifest(modelName="x"), "h.py": b""}, "w"), "tar")
    assert (result["manifest"], sorted(files)) == ({}, ["MANIFEST.json", "h.py"])


def test_executables_stay_executable(mar, tarball, store, tmp_path):
    entry = zipfile.ZipInfo("run")
    entry.external_attr = 0o755 << 16
    member = tarfile.TarInfo("top/run")
    member.mode = 0o750
    folder = store / "folder"
    folder.mkdir()
    (folder / "run").touch(mode=0o700)
    (folder / "data").touch(mode=0o600)
    sources = [(mar("a.mar", {entry: b""}), "zip"), (tarball("a.tar", {member: b""}, "w"), "tar"), (folder, "folder")]
    for source, kind in sources:
        answer(source, kind, tmp_path / kind, QUOTA)
        assert os.access(tmp_path / kind / "model" / "run", os.X_OK), kind
    assert not (tmp_path / "folder" / "model" / "data").stat().st_mode & 0o111


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"?"]
)
def test_tar_members_that_are_no_files(tarball, taken, kind):
    member = tarfile.TarInfo("top/link")
    member.type = kind
    member.linkname = "good.py"
    refused(taken(tarball("a.tar.gz", {"top/good.py": b"", member: b""}), "tar")[0], "unsafe_entry")


@pytest.mark.parametrize(
    "content", [b"", b"text\n" * 200, b"\x1f\x8b not gzip", gzip.compress(b"not a tarball" * 99, mtime=0)]
)
def test_what_is_no_tarball(store, taken, content):
    (store / "x.txt").write_bytes(content)
    refused(taken(store / "x.txt", "tar")[0], "not_an_archive")


def test_a_zip_under_another_name(mar, taken):
    refused(taken(mar("noext"), "tar")[0], "not_an_archive")


def test_damaged_tarballs(tarball, taken):
    """The library takes a broken or cut header for the end; here nothing of the archive may be lost silently."""
    whole = tarball("a.tar", {"top/a": bytes(600), "top/b": b"2", "top/c": b"3"}, "w")
    content = whole.read_bytes()
    second = content.index(b"top/b")
    packed = gzip.compress(content)
    versions = {
        "broken header": content[:second] + b"TOP/B" + content[second + 5 :],
        "cut in a header": content[: second + 100],
        "cut in a member": content[:700],
        "cut gzip": packed[:-20],
        "wrong checksum": packed[:-8] + b"\0\0\0\0" + packed[-4:],
    }
    for name, damaged in versions.items():
        whole.write_bytes(damaged)
        result, _ = taken(whole, "tar")
        assert result.get("reason") == "not_an_archive", name


def test_a_folder(store, taken, manifest):
    folder = store / "folder"
    (folder / "MAR-INF").mkdir(parents=True)
    (folder / "MAR-INF" / "MANIFEST.json").write_bytes(manifest(modelName="x"))
    (folder / "__pycache__").mkdir()
    (folder / "weights").write_bytes(b"w" * 10)
    (folder / "same").symlink_to("weights")
    (folder / "empty").mkdir()
    result, files = taken(folder, "folder")
    assert set(files) == {"MAR-INF", "MAR-INF/MANIFEST.json", "__pycache__", "weights", "same", "empty"}
    assert files["same"] == b"w" * 10
    assert result["manifest"]["model_name"] == "x"
    assert result["size"] == 20 + len(manifest(modelName="x"))


def test_the_digest_of_a_folder_is_that_of_its_content(store, taken):
    def build(name, entries):
        for path, content in entries:
            (store / name / path).parent.mkdir(parents=True, exist_ok=True)
            (store / name / path).write_bytes(content)
        return taken(store / name, "folder")[0]["digest"]

    entries = [("a", b"1"), ("b/c", b"2"), ("d", b"3")]
    assert build("one", entries) == build("two", entries[::-1])
    others = [[("a", b"1"), ("b/c", b"2"), ("d", b"4")], [("a", b"1"), ("b/C", b"2"), ("d", b"3")], entries[:2]]
    assert len({build(f"other{n}", each) for n, each in enumerate([entries, *others])}) == 4


def test_a_folder_with_one_folder_stands_for_the_inner_one(store, taken):
    (store / "outer" / "inner" / "deeper").mkdir(parents=True)
    (store / "outer" / "inner" / "deeper" / "x").write_bytes(b"x")
    assert set(taken(store / "outer", "folder")[1]) == {"deeper", "deeper/x"}


def _link_out(folder: Path) -> None:
    (folder / "x").symlink_to("/etc/hostname")


def _link_to_neighbour(folder: Path) -> None:
    neighbour = folder.with_name("folder2")
    neighbour.mkdir()
    (neighbour / "x").touch()
    (folder / "x").symlink_to(neighbour / "x")


def _link_to_folder(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "x").symlink_to("sub")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "x")


@pytest.mark.parametrize("spoil", [_link_out, _link_to_neighbour, _link_to_folder, _pipe])
def test_unsafe_folders(store, taken, spoil):
    (store / "folder").mkdir()
    (store / "folder" / "good").touch()
    spoil(store / "folder")
    refused(taken(store / "folder", "folder")[0], "unsafe_entry")


def test_a_source_that_is_written_to_meanwhile(mar, taken, monkeypatch):
    source = mar()
    real = hashlib.file_digest

    def digest_then_write(file, name):
        digest = real(file, name)
        with source.open("ab") as out:
            out.write(b"more")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", digest_then_write)
    refused(taken(source)[0], "changed_while_reading")


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "no_space"), (errno.EDQUOT, "no_space"), (errno.EIO, "io_error")]
)
def test_a_disk_that_fails(mar, taken, monkeypatch, number, reason):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    refused(taken(mar())[0], reason)
