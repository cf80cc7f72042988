"""A folder of archives and servers over it.  Everything in this folder runs the real program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.e2e.server", "tests.e2e.journal")

from tests.e2e.server import Server  # noqa: E402 - after the line that makes its assertions speak

MakeServer = Callable[..., Server]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def make_server(tmp_path: Path, store: Path) -> Iterator[MakeServer]:
    """`make_server("key=value", …)`: a server that is not started yet, with further lines of configuration."""
    made: list[Server] = []

    def make(*config: str) -> Server:
        server = Server(tmp_path / f"server{len(made)}", store, config)
        made.append(server)
        return server

    yield make
    for server in made:
        server.discard()
