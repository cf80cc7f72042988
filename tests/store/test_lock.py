"""One server per state folder, checked with a real second process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.files import python
from tserve.errors import StateLocked, StateUnusable
from tserve.store.lock import hold_state
from tserve.store.upgrade import DATABASE, open_state

HOLDER = """
from pathlib import Path
from tserve.store.lock import hold_state
with hold_state(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder until its input ends."""
    command = python(HOLDER, state_dir)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_server_is_refused_before_it_touches_the_state(state_dir: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(StateLocked) as raised, open_state(state_dir):
        pass
    assert str(state_dir) in str(raised.value)
    assert f"process {holder.pid}." in str(raised.value)
    assert not (state_dir / DATABASE).exists()


def test_kill_9_gives_the_folder_back(state_dir: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with open_state(state_dir):
        pass


def test_the_folder_is_held_for_the_whole_block_and_no_longer(state_dir: Path) -> None:
    with open_state(state_dir), pytest.raises(StateLocked), open_state(state_dir):
        pass
    with pytest.raises(ZeroDivisionError), open_state(state_dir):
        _ = 1 / 0
    with open_state(state_dir):
        pass


def test_a_holder_that_has_not_said_who_it_is(state_dir: Path) -> None:
    with hold_state(state_dir):
        (state_dir / "lock").write_text("")
        with pytest.raises(StateLocked, match="in use by another process"), hold_state(state_dir):
            pass


def test_a_lock_that_cannot_be_opened(state_dir: Path) -> None:
    (state_dir / "lock").mkdir(parents=True)
    with pytest.raises(StateUnusable, match="Is a directory"), hold_state(state_dir):
        pass


def test_a_child_does_not_inherit_the_lock(state_dir: Path) -> None:
    """Else a worker that outlives a killed server would keep the next one out."""
    with hold_state(state_dir):
        command = ["/bin/sh", "-c", "echo up; read line"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        # The kernel closes descriptors a moment after it lets the parent go on.
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
    try:
        with hold_state(state_dir):
            pass
    finally:
        child.kill()
        child.communicate()
