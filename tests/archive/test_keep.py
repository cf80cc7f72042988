"""The whole way with real intake processes: url in, kept content out, nothing left when it fails."""

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
import trio.testing

import tserve
from tserve.archive.keep import Keep
from tserve.domain.model_config import ModelConfig
from tserve.domain.versions import Archive, Manifest
from tserve.errors import InternalServer, InvalidModel, ModelNotFound, StateUnusable, TserveError

SLOW_BYTES = 64 << 30  # a file of one hole: takes its reader many seconds, and no disk


@pytest.fixture
def slow_source(store):
    """A source that keeps an intake busy until something ends it."""
    (store / "slow.tar").touch()
    os.truncate(store / "slow.tar", SLOW_BYTES)
    return "slow.tar"


def intakes_of(parent=None):
    """Ids of the running intake processes under a parent (this process by default)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text() if entry.name.isdigit() else ""
            state, ppid = stat.rpartition(")")[2].split()[:2] if stat else ("", "")
            if ppid == str(parent or os.getpid()) and state != "Z" and b"intake" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def until(condition):
    with trio.fail_after(20):
        while not (found := condition()):  # noqa: ASYNC110 - processes and folders set no events
            await trio.sleep(0.01)
    return found


async def test_admit(keep, mar, left, manifest):
    content = mar().read_bytes()
    async with keep.admit("noop.mar") as archive:
        digest = hashlib.sha256(content).hexdigest()
        raw = {"runtime": "python", "model": {"modelName": "noop", "handler": "handler.py"}}
        assert archive == Archive(digest, len(content), Manifest("noop", "1.0", "handler.py", raw=raw))
        folder = keep.model_dir(digest)
        assert folder.is_absolute()
        assert (folder / "handler.py").read_bytes() == b"code"
        assert left() == [digest]
    assert left() == [digest]


async def test_admit_with_a_config(keep, mar, manifest, caplog):
    entries = {
        "MAR-INF/MANIFEST.json": manifest(modelName="c", modelVersion="2.0", configFile="model-config.yaml"),
        "model-config.yaml": b"batchSize: 4\ndeviceIds: [0]\nmaxBatchDelay: often\n",
    }
    mar("c.mar", entries)
    with caplog.at_level(logging.WARNING, "tserve.archive"):
        async with keep.admit("c.mar") as archive:
            given = frozenset({"batch_size", "device_ids"})
            assert archive.config == ModelConfig(batch_size=4, device_ids=(0,), given=given)
            assert (archive.manifest.model_version, archive.manifest.config_file) == ("2.0", "model-config.yaml")
    assert "maxBatchDelay" in caplog.text
    assert "c.mar" in caplog.text


async def test_a_broken_config_registers_as_none(keep, mar, manifest, caplog):
    mar("c.mar", {"MAR-INF/MANIFEST.json": manifest(configFile="x.yaml"), "x.yaml": b"[1"})
    async with keep.admit("c.mar") as archive:
        assert archive.config is None
    assert "x.yaml" in caplog.text


async def test_an_unknown_runtime_is_left_to_the_caller(keep, mar, manifest):
    mar("r.mar", {"MAR-INF/MANIFEST.json": manifest(runtime="ruby", modelName="r")})
    async with keep.admit("r.mar") as archive:
        assert archive.manifest.runtime is None


async def test_an_empty_archive(keep, store):
    (store / "empty.mar").touch()
    async with keep.admit("empty.mar") as archive:
        assert archive == Archive(hashlib.sha256().hexdigest(), 0)
        assert list(keep.model_dir(archive.digest).iterdir()) == []


async def test_one_file_read_as_nothing_and_as_a_tarball(keep, tarball, store, manifest):
    """A tarball misnamed .mar counts as empty; under its right name it must not get the empty content."""
    shutil.copy(tarball("t.tar.gz", {"t/MAR-INF/MANIFEST.json": manifest(modelName="t")}), store / "t.mar")
    async with keep.admit("t.mar") as misnamed, keep.admit("t.tar.gz") as archive:
        assert misnamed.manifest == Manifest()
        assert archive.manifest.model_name == "t"
        assert (keep.model_dir(archive.digest) / "MAR-INF").is_dir()


async def test_a_folder_is_a_copy(keep, store):
    (store / "folder").mkdir()
    (store / "folder" / "x").write_text("as registered")
    async with keep.admit(f"{store}/folder/") as archive:
        (store / "folder" / "x").write_text("edited later")
        assert (keep.model_dir(archive.digest) / "x").read_text() == "as registered"


@pytest.mark.parametrize(
    ("entries", "error", "message", "reason"),
    [
        ({"../x": b"x"}, InternalServer, "Failed to save model: ./bad.mar", "unsafe_entry"),
        ({"MAR-INF/MANIFEST.json": b"{"}, InvalidModel, "Failed to parse signature.json.", "bad_manifest"),
        (
            {"MAR-INF/MANIFEST.json": b'{"model": null}'},
            InvalidModel,
            "Failed to parse signature.json.",
            "bad_manifest",
        ),
    ],
)
async def test_refusals_leave_nothing(keep, mar, left, entries, error, message, reason):
    mar("bad.mar", {"good.py": b"", **entries})
    with pytest.raises(error) as caught:
        async with keep.admit("./bad.mar"):
            pytest.fail("taken in")
    assert caught.value.message == message
    assert caught.value.cause["reason"] == reason
    assert caught.value.cause["detail"]
    assert left() == []


async def test_a_truncated_archive_then_a_good_one(keep, mar, left):
    """Recorded: archive.truncated, archive.failed-register-then-good."""
    whole = mar()
    (whole.parent / "truncated.mar").write_bytes(whole.read_bytes()[:120])
    with pytest.raises(InternalServer, match=r"^Failed to save model: truncated\.mar$") as caught:
        async with keep.admit("truncated.mar"):
            pytest.fail("taken in")
    assert caught.value.code == 500
    async with keep.admit("noop.mar") as archive:
        assert left() == [archive.digest]


async def test_urls_are_checked(keep, left):
    with pytest.raises(ModelNotFound, match=r"^Model not found at: nosuch\.mar$"):
        async with keep.admit("nosuch.mar"):
            pytest.fail("taken in")
    assert left() == []


async def test_the_working_folder_does_not_matter(keep, mar, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mar()
    async with keep.admit("noop.mar") as archive:
        assert archive.manifest.model_name == "noop"


async def test_many_at_once_of_the_same_content(keep, mar, left):
    path = mar()
    shutil.copy(path, path.with_name("copy.mar"))
    digests = []

    async def one(url):
        async with keep.admit(url) as archive:
            assert (keep.model_dir(archive.digest) / "handler.py").exists()
            digests.append(archive.digest)

    async with trio.open_nursery() as nursery:
        for url in ("noop.mar", "copy.mar") * 4:
            nursery.start_soon(one, url)
    assert len(digests) == 8
    assert left() == [digests[0]]


async def test_content_that_is_kept_stays_in_its_place(keep, mar):
    """Workers stand in the folder: a second admit must not put another one there."""
    mar()
    async with keep.admit("noop.mar") as archive:
        before = keep.model_dir(archive.digest).stat()
    async with keep.admit("noop.mar"):
        assert keep.model_dir(archive.digest).stat().st_ino == before.st_ino


async def test_release(keep, mar, left):
    mar()
    async with keep.admit("noop.mar") as archive:
        await keep.release(archive.digest, referenced=lambda digest: False)
        assert left() == [archive.digest], "pinned inside the block"
        async with keep.admit("noop.mar"):
            pass
        await keep.release(archive.digest, referenced=lambda digest: False)
        assert left() == [archive.digest], "the inner block's end must not take the outer one's pin"
    await keep.release(archive.digest, referenced=lambda digest: digest == archive.digest)
    assert left() == [archive.digest]
    await keep.release(archive.digest, referenced=lambda digest: False)
    assert left() == []
    await keep.release(archive.digest, referenced=lambda digest: False)


async def test_a_registration_that_comes_to_nothing(keep, mar, left):
    mar()
    with pytest.raises(InvalidModel):
        async with keep.admit("noop.mar", referenced=lambda digest: False):
            raise InvalidModel("Model name is not defined.")
    assert left() == []


async def test_a_registration_that_is_cancelled_in_the_block(keep, mar, left):
    mar()
    with trio.CancelScope() as scope:
        async with keep.admit("noop.mar", referenced=lambda digest: False):
            scope.cancel()
            await trio.sleep_forever()
    assert left() == []


async def test_a_registration_that_worked(keep, mar, left):
    mar()
    async with keep.admit("noop.mar", referenced=lambda digest: True) as archive:
        pass
    assert left() == [archive.digest]


async def test_admits_and_releases_at_the_same_time(keep, mar):
    """However they meet, inside a block the content is there."""
    mar()

    async def one():
        for _ in range(4):
            async with keep.admit("noop.mar", referenced=lambda digest: False) as archive:
                await trio.lowlevel.checkpoint()
                assert (keep.model_dir(archive.digest) / "handler.py").exists()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)


async def test_cancelled_in_the_middle(keep, slow_source, left):
    async def admit():
        async with keep.admit(slow_source):
            pytest.fail("taken in")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(admit)
        await until(left)
        assert intakes_of()
        nursery.cancel_scope.cancel()
    assert intakes_of() == []
    assert left() == []


async def test_at_most_two_intakes(keep, slow_source, left):
    async def admit():
        async with keep.admit(slow_source):
            pytest.fail("taken in")

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(admit)
        await until(lambda: len(left()) == 2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(intakes_of()) == 2
        nursery.cancel_scope.cancel()
    assert left() == []


async def test_an_intake_that_is_killed(keep, slow_source, left):
    errors = []

    async def admit():
        try:
            async with keep.admit(slow_source):
                pytest.fail("taken in")
        except TserveError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(admit)
        await until(left)
        os.kill(intakes_of()[0], signal.SIGKILL)
    assert errors[0].message == "Failed to save model: slow.tar"
    assert errors[0].cause == {"reason": "intake_died", "detail": "the intake process ended with status -9"}
    assert left() == []


async def test_an_intake_that_cannot_start(keep, mar, left, monkeypatch, tmp_path):
    mar()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nosuch"))
    with pytest.raises(InternalServer) as caught:
        async with keep.admit("noop.mar"):
            pytest.fail("taken in")
    assert caught.value.cause["reason"] == "intake_died"
    assert left() == []


async def test_an_intake_that_talks_nonsense(keep, mar, left, monkeypatch, tmp_path):
    mar()
    for number, output in enumerate(
        ["", "nonsense", "[]", "{}", '{"digest": 1}', '{"refused": "archive"}', "x" * (5 << 20)]
    ):
        fake = tmp_path / f"fake{number}"
        (tmp_path / f"out{number}").write_text(output)
        fake.write_text(f"#!/bin/sh\nexec cat {tmp_path}/out{number}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(fake))
        with pytest.raises(InternalServer) as caught:
            async with keep.admit("noop.mar"):
                pytest.fail("taken in")
        assert caught.value.cause["reason"] == "intake_died", output[:40]
    assert left() == []


async def test_killed_server_in_the_middle(keep, store, state, slow_source, left):
    """The intake dies with the server; the next start removes what it left."""
    program = textwrap.dedent(
        """
        import sys, trio
        from pathlib import Path
        from tserve.archive.keep import Keep
        async def main():
            async with Keep(Path(sys.argv[1]), Path(sys.argv[2]), allowed_urls=[]).admit(sys.argv[3]):
                pass
        trio.run(main)
        """
    )
    environment = os.environ | {"PYTHONPATH": str(Path(tserve.__file__).parents[1])}
    command = [sys.executable, "-c", program, str(state), str(store), slow_source]
    with subprocess.Popen(command, env=environment) as server:  # noqa: ASYNC220
        await until(left)
        (intake,) = await until(lambda: intakes_of(server.pid))
        server.kill()
    await until(lambda: _is_gone(intake))
    assert left() != []
    await keep.prepare(())
    assert left() == []


def _is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_prepare_removes_what_nobody_stands_on(keep, mar, state, left, caplog):
    mar()
    mar("other.mar", model="other")
    async with keep.admit("noop.mar") as noop, keep.admit("other.mar"):
        pass
    (state / "incoming" / "half" / "model").mkdir(parents=True)
    (state / "incoming" / "half" / "model" / "x").touch()
    (state / "incoming" / "file").touch()
    (state / "archives" / "README").touch()
    await keep.prepare({noop.digest})
    assert left() == sorted([noop.digest, "README"])
    assert not caplog.records
    await keep.prepare({"f" * 64})
    assert left() == ["README"]
    assert "f" * 64 in caplog.text


@pytest.mark.parametrize("place", ["", "archives", "incoming"])
async def test_folders_that_cannot_be_made(store, tmp_path, place):
    state = tmp_path / "here"
    if place:
        state.mkdir()
    (state / place if place else state).touch()
    with pytest.raises(StateUnusable, match=str(state)):
        await Keep(state, store, allowed_urls=[]).prepare(())


async def test_relative_folders_become_absolute(tmp_path, monkeypatch, mar):
    mar()
    monkeypatch.chdir(tmp_path)
    keep = Keep(Path("here"), Path("store"), allowed_urls=[])
    await keep.prepare(())
    async with keep.admit("noop.mar") as archive:
        assert keep.model_dir(archive.digest).is_absolute()
        assert keep.model_dir(archive.digest).is_dir()
    assert keep.startup_sources() == ["noop.mar"]
