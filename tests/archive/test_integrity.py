"""Digests and signatures: what is asked of an archive, with real intake processes (docs/integrity.md)."""

import hashlib
import os
import shutil
import subprocess
from base64 import urlsafe_b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from tserve.archive.folder import digest_of_folder
from tserve.archive.integrity import Claim, Integrity
from tserve.archive.keep import Keep
from tserve.archive.quota import Quota
from tserve.archive.signatures import key_id, lines_of, signature_line, signed_bytes
from tserve.archive.vouching import Demand
from tserve.errors import BadConfiguration, IntegrityFailed

OTHER = "0" * 64
KEY = Ed25519PrivateKey.generate()
STRANGER = Ed25519PrivateKey.generate()


def pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def damaged(line):
    """A line of the same key whose signature is another one."""
    head, signature = line.rsplit(":", 1)
    return f"{head}:{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


@pytest.fixture
def keys(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "release.pub").write_bytes(pem(KEY))
    (folder / "read.me").write_text("not a key")
    return folder


@pytest.fixture
def made(state, store):
    """A Keep with a policy."""

    async def make(**policy):
        keep = Keep(state, store, allowed_urls=["file://.*"], integrity=Integrity(**policy))
        await keep.prepare(())
        return keep

    return make


async def refusal(keep, url, claim=None):
    with pytest.raises(IntegrityFailed) as refused:
        async with keep.admit(url, claim=claim, referenced=lambda _: False):
            pass
    assert refused.value.status == 400
    assert refused.value.message == f"Integrity of the archive could not be established: {url}"
    return refused.value.cause


async def admitted(keep, url, claim=None):
    async with keep.admit(url, claim=claim, referenced=lambda _: False) as archive:
        return archive


async def test_the_digest_that_was_said(made, mar, left):
    keep, digest = await made(), sha256(mar())
    assert (await admitted(keep, "noop.mar", Claim(digest))).digest == digest
    cause = await refusal(keep, "noop.mar", Claim(OTHER))
    assert cause == {
        "reason": "digest_mismatch",
        "detail": f"the archive is sha256:{digest}, sha256:{OTHER} was asked for",
        "expected": f"sha256:{OTHER}",
        "actual": f"sha256:{digest}",
    }
    assert left() == []


async def test_nothing_is_unpacked_of_another_archive(made, store, left):
    """A bomb, and what is no archive at all, end at their digest."""
    (store / "noise.tar.gz").write_bytes(b"no archive")
    assert (await refusal(await made(), "noise.tar.gz", Claim(OTHER)))["reason"] == "digest_mismatch"
    assert left() == []


async def test_a_zip_that_is_none_has_the_digest_of_its_file(made, store):
    """It counts as an empty archive, as recorded, kept under the digest of nothing; asked for are the file's bytes."""
    (store / "noise.mar").write_bytes(b"no archive")
    keep = await made()
    assert (await refusal(keep, "noise.mar", Claim(hashlib.sha256().hexdigest())))["reason"] == "digest_mismatch"
    await admitted(keep, "noise.mar", Claim(sha256(store / "noise.mar")))


@pytest.mark.parametrize("kind", ["folder", "tarball"])
async def test_the_digest_of_other_sources(made, store, tarball, kind):
    if kind == "folder":
        (store / "model" / "sub").mkdir(parents=True)
        (store / "model" / "handler.py").write_text("code")
        (store / "model" / "sub" / "run.sh").touch(0o755)
        name, digest = "model", digest_of_folder(store / "model")
    else:
        path = tarball("a.tar.gz", {"top/handler.py": b"code"})
        name, digest = path.name, sha256(path)
    keep = await made(digest_required=True)
    assert (await admitted(keep, name, Claim(digest))).digest == digest
    assert (await refusal(keep, name, Claim(OTHER)))["actual"] == f"sha256:{digest}"


@pytest.mark.parametrize("change", ["content", "name", "mode", "one more"])
def test_a_folder_has_another_digest_when_anything_of_it_is_another(tmp_path, change):
    folder = tmp_path / "model"
    (folder / "lib").mkdir(parents=True)
    (folder / "handler.py").write_text("code")
    (folder / "lib" / "a.py").write_text("a")
    before = digest_of_folder(folder)
    if change == "content":
        (folder / "lib" / "a.py").write_text("b")
    elif change == "name":
        (folder / "lib" / "a.py").rename(folder / "lib" / "b.py")
    elif change == "mode":
        (folder / "lib" / "a.py").chmod(0o755)
    else:
        (folder / "lib" / "more").mkdir()
    assert digest_of_folder(folder) != before


async def test_a_digest_is_required(made, mar):
    keep, digest = await made(digest_required=True), sha256(mar())
    cause = await refusal(keep, "noop.mar")
    assert (cause["reason"], cause["field"]) == ("digest_required", "sha256")
    await admitted(keep, "noop.mar", Claim(digest))


async def test_of_pinned_digests_any_will_do_until_the_name_is_known(made, mar):
    """The registration compares the one of its name and version (services.desired.check_pin)."""
    digest = sha256(mar())
    await admitted(await made(digest_required=True, pinned={OTHER, digest}), "noop.mar")
    for pinned in ({OTHER}, {OTHER, "1" * 64}):
        keep = await made(digest_required=True, pinned=pinned)
        assert (await refusal(keep, "noop.mar"))["reason"] == "digest_mismatch"
    await admitted(await made(pinned={OTHER}), "noop.mar")


async def test_a_signature_in_the_call(made, mar, keys):
    keep, digest = await made(signature_required=True, trusted_keys=keys), sha256(mar())
    line, stranger = signature_line(KEY, digest), signature_line(STRANGER, digest)
    assert (await admitted(keep, "noop.mar", Claim(signature=line))).signature == line
    assert (await admitted(keep, "noop.mar", Claim(signature=f"{stranger}\n\n {line} \n"))).signature == line
    assert (await refusal(keep, "noop.mar"))["reason"] == "not_signed"
    for wrong, reason in [
        (stranger, "untrusted_key"),
        (signature_line(KEY, OTHER), "bad_signature"),
        (damaged(line), "bad_signature"),
        (f"{line}\nmore", "bad_signature"),
        ("", "not_signed"),
        (" \n", "bad_signature"),
        ("\n".join([line] * 17), "bad_signature"),
        (line.replace("ed25519", "rsa"), "bad_signature"),
    ]:
        assert (await refusal(keep, "noop.mar", Claim(signature=wrong)))["reason"] == reason, wrong


@pytest.mark.parametrize("place", ["beside", "top of the store"])
async def test_a_signature_in_a_file(made, mar, store, keys, place):
    line = signature_line(KEY, sha256(mar()))
    if place == "beside":
        (store / "noop.mar.sig").write_text(f"{line}\n")
        source = "noop.mar"
    else:
        shutil.copytree(store / "..", store / "folder", ignore=lambda *_: ["store", "keys", "state"])
        source = "folder"
        (store / "folder.sig").write_text(signature_line(KEY, digest_of_folder(store / "folder")))
    keep = await made(signature_required=True, trusted_keys=keys)
    assert (await admitted(keep, source)).signature is not None
    (store / f"{source}.sig").write_text(signature_line(KEY, OTHER))
    assert (await refusal(keep, source))["reason"] == "bad_signature"
    (store / f"{source}.sig").unlink()
    assert (await refusal(keep, source))["reason"] == "not_signed"


async def test_a_file_of_signatures_leads_nowhere(made, mar, store, keys, tmp_path):
    """A link to what the caller may not read is not followed."""
    mar()
    (tmp_path / "outside").write_text(signature_line(KEY, sha256(store / "noop.mar")))
    (store / "noop.mar.sig").symlink_to(tmp_path / "outside")
    cause = await refusal(await made(signature_required=True, trusted_keys=keys), "noop.mar")
    assert (cause["reason"], "noop.mar.sig cannot be read" in cause["detail"]) == ("bad_signature", True)


async def test_signatures_that_are_not_required(made, mar, store, keys):
    """Keys are there, the policy is not: what nobody signed is served, what a trusted key signed must be that."""
    keep, digest = await made(trusted_keys=keys), sha256(mar())
    assert (await admitted(keep, "noop.mar")).signature is None
    (store / "noop.mar.sig").write_text(signature_line(STRANGER, digest))
    assert (await admitted(keep, "noop.mar")).signature is None
    (store / "noop.mar.sig").write_text(signature_line(KEY, OTHER))
    assert (await refusal(keep, "noop.mar"))["reason"] == "bad_signature"
    assert (await refusal(keep, "noop.mar", Claim(signature=signature_line(STRANGER, digest))))["reason"] == (
        "untrusted_key"
    )


async def test_without_keys_a_signature_says_nothing(made, mar):
    line = signature_line(KEY, sha256(mar()))
    assert (await refusal(await made(), "noop.mar", Claim(signature=line)))["reason"] == "untrusted_key"


async def test_the_keys_are_read_for_each_archive(made, mar, keys):
    keep = await made(signature_required=True, trusted_keys=keys)
    claim = Claim(signature=signature_line(STRANGER, sha256(mar())))
    assert (await refusal(keep, "noop.mar", claim))["reason"] == "untrusted_key"
    (keys / "new.pub").write_bytes(pem(STRANGER))
    assert (await admitted(keep, "noop.mar", claim)).signature == claim.signature
    (keys / "broken.pub").write_bytes(b"noise")
    assert (await refusal(keep, "noop.mar", claim))["reason"] == "bad_trusted_key"


@pytest.mark.parametrize(
    "content", [b"", b"noise", pem(generate_private_key(65537, 2048)), pem(KEY)[:60]], ids=range(4)
)
def test_a_policy_with_bad_keys_does_not_start(keys, content):
    Integrity(signature_required=True, trusted_keys=keys).check()
    (keys / "bad.pub").write_bytes(content)
    with pytest.raises(BadConfiguration, match=r"bad\.pub"):
        Integrity(trusted_keys=keys).check()


def test_a_policy_without_keys_does_not_start():
    with pytest.raises(BadConfiguration, match="trusted_keys"):
        Integrity(signature_required=True).check()


def test_what_is_checked_is_what_is_unpacked(mar, tmp_path, keys):
    """Who can write to the store changes the file after it was hashed: a private copy is read."""
    path = mar()
    content = path.read_bytes()
    (tmp_path / "desk").mkdir()
    for demand, private in [
        ({}, False),
        ({"digests": [OTHER]}, True),
        ({"trusted_keys": str(keys)}, True),
        ({"digests": [OTHER], "private": True}, False),
    ]:
        with path.open("rb") as given, Demand(demand).private(given, tmp_path / "desk", Quota()) as file:
            path.write_bytes(b"EVIL" * 100)
            assert (os.pread(file.fileno(), len(content), 0) == content) is private
            path.write_bytes(content)
        assert list((tmp_path / "desk").iterdir()) == []


def test_signatures_as_openssl_makes_them(tmp_path, keys):
    """The form that docs/integrity.md gives for other programs."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    digest = hashlib.sha256(b"archive").hexdigest()
    (tmp_path / "bytes").write_bytes(b"tserve archive 1\nsha256:" + digest.encode() + b"\n")
    assert (tmp_path / "bytes").read_bytes() == signed_bytes(digest)
    run = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", "own.key"]
    subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
    run = ["openssl", "pkey", "-in", "own.key", "-pubout", "-out", str(keys / "own.pub")]
    subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
    run = ["openssl", "pkeyutl", "-sign", "-rawin", "-in", "bytes", "-inkey", "own.key", "-out", "signature"]
    subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
    text = urlsafe_b64encode((tmp_path / "signature").read_bytes()).decode().rstrip("=")
    line = f"ed25519:{key_id(load_pem_public_key((keys / 'own.pub').read_bytes()))}:{text}"
    demand = Demand({"signature": line, "trusted_keys": str(keys), "must_be_signed": True})
    assert demand.check(digest) == line


def test_lines_of_a_text():
    line = signature_line(KEY, OTHER)
    assert lines_of(f"\n {line}\r\n{line}\n") == [line, line]


def test_a_key_that_cannot_be_read(keys):
    (keys / "other.pub").mkdir()
    with pytest.raises(BadConfiguration, match="cannot be read"):
        Integrity(trusted_keys=keys).check()
