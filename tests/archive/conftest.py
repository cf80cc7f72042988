"""A model store, a Keep over it, and builders of archives."""

import io
import json
import tarfile
import zipfile

import pytest

from tserve.archive.keep import Keep


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
async def keep(state, store):
    made = Keep(state, store, allowed_urls=["file://.*", "http(s)?://.*"])
    await made.prepare(())
    return made


@pytest.fixture
def left(state):
    """Everything that stands in the state folder's two places."""

    def names():
        return sorted(p.name for folder in ("incoming", "archives") for p in (state / folder).iterdir())

    return names


@pytest.fixture
def manifest():
    def build(runtime="python", **model):
        return json.dumps({"runtime": runtime, "model": model}).encode()

    return build


@pytest.fixture
def mar(store, manifest):
    """`mar("noop.mar")` is a good archive; `mar(name, entries)` holds what it is given (names or ZipInfo to bytes)."""

    def build(name="noop.mar", entries=None, *, model="noop"):
        if entries is None:
            entries = {"handler.py": b"code", "MAR-INF/MANIFEST.json": manifest(modelName=model, handler="handler.py")}
        with zipfile.ZipFile(store / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
        return store / name

    return build


@pytest.fixture
def tarball(store):
    """`tarball(name, members)`: name to bytes, to None (a folder), or a TarInfo to bytes."""

    def build(name, members, mode="w:gz"):
        with tarfile.open(store / name, mode) as archive:
            for member, content in members.items():
                info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
                if content is None:
                    info.type = tarfile.DIRTYPE
                else:
                    info.size = len(content)
                archive.addfile(info, io.BytesIO(content or b""))
        return store / name

    return build
