"""The key file: written whole, private from its first byte, and in step with what is in force."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tserve.domain.access import Scope
from tserve.errors import BadConfiguration, InternalServer
from tserve.services.authorization import Authorization
from tserve.services.keys import KeyFile, new_keys, shown, write_private


@pytest.fixture
def no_umask() -> Iterator[None]:
    """So that only what the code asks for keeps others out."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_nobody_else_can_read_it_at_any_instant_and_readers_see_it_whole(tmp_path: Path) -> None:
    path, stop = tmp_path / "keys.json", threading.Event()
    seen: set[int] = set()
    broken: list[str] = []

    def watch() -> None:
        while not stop.is_set():
            for entry in os.scandir(tmp_path):
                with suppress(FileNotFoundError):
                    seen.add(stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode))
            with suppress(FileNotFoundError):
                text = path.read_text()
                if not (text.startswith("<") and text.endswith(">\n")):
                    broken.append(text)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(200):
        write_private(path, f"<{str(number) * 5000}>\n")
    stop.set()
    watcher.join()
    assert seen == {0o600}
    assert broken == []
    assert os.listdir(tmp_path) == ["keys.json"]


@pytest.mark.usefixtures("no_umask")
def test_a_file_or_link_in_its_place_is_replaced_not_written_into(tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "keys.json"
    elsewhere.write_text("untouched")
    path.symlink_to(elsewhere)
    write_private(path, "secret")
    assert (elsewhere.read_text(), path.read_text(), path.is_symlink()) == ("untouched", "secret", False)
    path.chmod(0o644)
    write_private(path, "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_private(tmp_path / "folder", "secret")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_place_that_is_none_refuses_the_start(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "nowhere" / "keys.json", Authorization(new_keys(60)), 60)
    with pytest.raises(BadConfiguration, match=r"key_file=.*No such file"), file.kept():
        pass


async def test_a_key_that_cannot_be_written_is_not_renewed(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    check = Authorization(new_keys(60))
    file = KeyFile(folder / "keys.json", check, 60)
    with file.kept():
        before = check.keys
        (folder / "keys.json").unlink()
        folder.rmdir()
        with pytest.raises(InternalServer, match="could not be written"):
            await file.renew(Scope.MANAGEMENT)
        assert check.keys is before


async def test_renewing_changes_one_key_in_the_file_and_in_force(tmp_path: Path) -> None:
    check = Authorization(new_keys(60))
    file = KeyFile(tmp_path / "keys.json", check, 60)
    with file.kept():
        before = json.loads((tmp_path / "keys.json").read_text())
        await file.renew(Scope.INFERENCE)
        after = json.loads((tmp_path / "keys.json").read_text())
        assert check.keys is not None
        assert (tmp_path / "keys.json").read_text() == shown(check.keys)
    assert before["inference"] != after["inference"]
    assert {**before, "inference": None} == {**after, "inference": None}
    assert os.listdir(tmp_path) == []


def test_the_file_of_a_server_started_since_stays(tmp_path: Path) -> None:
    first, second = (KeyFile(tmp_path / "keys.json", Authorization(new_keys(60)), 60) for _ in range(2))
    ending = ExitStack()
    with first.kept():
        ending.enter_context(second.kept())
    with ending:
        assert (tmp_path / "keys.json").exists()
    assert not (tmp_path / "keys.json").exists()
