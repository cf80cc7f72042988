"""Workers come and go, models come and go: no process, descriptor, file or memory stays behind.

TSERVE_CYCLES sets the number of cycles of each kind (30).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.archives import write
from tests.e2e.conftest import MakeServer
from tests.e2e.processes import children, open_files, pss_mib, rss_mib, tree, zombies
from tests.e2e.server import Server, eventually

pytestmark = pytest.mark.e2e

CYCLES = int(os.environ.get("TSERVE_CYCLES", "30"))
WARM_UP = 500 if CYCLES >= 1000 else 5  # the allocator takes some hundred cycles to come to rest
SETTLED_S = 5.0
GROWTH_MIB = 1.0  # of the server, in 1,000 cycles
COARSE_MIB = 4.0  # what few cycles may add: the allocator's steps, the events kept of each worker
WEIGHT_MIB = 200
HOLDS_MEMORY = f"""
weights = None

def handle(data, context):
    global weights
    if data is None:
        weights = b"x" * ({WEIGHT_MIB} << 20)
        return None
    return [str(len(weights)) for _ in data]
"""


@dataclass(frozen=True)
class Held:
    """What a server holds of the machine."""

    open_files: Counter[str]
    children: int
    zombies: int
    temporary: tuple[str, ...]
    state: tuple[str, ...]

    @classmethod
    def by(cls, server: Server, temporary: Path) -> Held:
        # The database's journal is written and cut as it likes; the compiled handlers belong to what is kept.
        state = (path for path in files(server.state) if "__pycache__" not in path and not path.startswith("state.db"))
        pid = server.pid
        return cls(
            open_files(pid), len(children(pid)), len(zombies(pid)), tuple(files(temporary)), tuple(sorted(state))
        )


def files(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's and its workers' folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def server(make_server: MakeServer, store: Path, temporary: Path) -> Server:
    """With its zygote, which is worth waiting for: it is what the cycles are about."""
    write(store, "echo.mar")
    server = make_server()
    server.start()
    eventually("the zygote is ready", lambda: "the zygote is ready" in server.log())
    return server


def check_same(server: Server, temporary: Path, before: Held) -> None:
    """Nothing more than before, once what was under way has ended."""

    def same() -> bool:
        now = Held.by(server, temporary)
        return now.open_files <= before.open_files and (now.children, now.zombies) == (before.children, 0)

    try:
        eventually("the server holds no more than before", same, within_s=SETTLED_S)
    except AssertionError:
        pytest.fail(f"before: {before}\nafter: {Held.by(server, temporary)}")
    after = Held.by(server, temporary)
    assert (after.temporary, after.state) == (before.temporary, before.state)


def up_and_down(server: Server) -> None:
    assert server.scale("echo", min_worker=1, max_worker=1, synchronous=True).status == 200
    assert server.scale("echo", min_worker=0, max_worker=0, synchronous=True).status == 200


def come_and_go(server: Server) -> None:
    assert server.register("echo.mar").status == 200
    assert server.unregister("echo").status == 200


def test_workers_come_and_go(server: Server, temporary: Path) -> None:
    assert server.register("echo.mar").status == 200
    for _ in range(WARM_UP):
        up_and_down(server)
    before, rss_before = Held.by(server, temporary), rss_mib(server.pid)
    for _ in range(CYCLES):
        up_and_down(server)
    check_same(server, temporary, before)
    print(f"{CYCLES} up/down cycles: RSS of the server {rss_before:.1f} -> {rss_mib(server.pid):.1f} MiB")
    assert server.describe("echo")[0]["workers"] == []


def test_models_come_and_go(server: Server, temporary: Path) -> None:
    """The server's memory grows by no more than 1 MiB in 1,000 cycles; a few cycles tell of that only roughly."""
    for _ in range(WARM_UP):
        come_and_go(server)
    before, rss_before = Held.by(server, temporary), rss_mib(server.pid)
    for number in range(CYCLES):
        come_and_go(server)
        if number % 500 == 499:
            print(f"after {number + 1} register/unregister cycles: RSS {rss_mib(server.pid):.2f} MiB", flush=True)
    check_same(server, temporary, before)
    growth = rss_mib(server.pid) - rss_before
    print(f"{CYCLES} register/unregister cycles: RSS of the server {rss_before:.2f} MiB, grown by {growth:.2f} MiB")
    assert growth <= (COARSE_MIB if CYCLES < 1000 else GROWTH_MIB * CYCLES / 1000)


@pytest.mark.parametrize("how", ["unregister", "scale"])
def test_unloading_gives_the_memory_back(server: Server, store: Path, how: str) -> None:
    write(store, "heavy.mar", HOLDS_MEMORY, name="heavy")
    assert server.register("echo.mar", initial_workers=1, synchronous=True).status == 200
    without = pss_mib(tree(server.pid))
    assert server.register("heavy.mar", initial_workers=2, synchronous=True).status == 200
    loaded = pss_mib(tree(server.pid))
    assert loaded - without > 2 * WEIGHT_MIB
    if how == "unregister":
        assert server.unregister("heavy").status == 200
    else:
        assert server.scale("heavy", min_worker=0, synchronous=True).status == 200
    eventually("the memory is free again", lambda: pss_mib(tree(server.pid)) < without + COARSE_MIB, within_s=SETTLED_S)
    print(f"{without:.0f} MiB -> {loaded:.0f} MiB -> {pss_mib(tree(server.pid)):.0f} MiB")
