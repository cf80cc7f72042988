"""A folder of archives and servers over it.  Everything in this folder runs the real program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.e2e.server", "tests.e2e.expected", "tests.e2e.skins", "tests.e2e.tables", "tests.e2e.writers"
)

from tests.e2e.archives import write  # noqa: E402 - after the line that makes their assertions speak
from tests.e2e.server import Server, running  # noqa: E402
from tests.e2e.tables import MAX_REQUEST  # noqa: E402

MakeServer = Callable[..., Server]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def make_server(request: pytest.FixtureRequest, tmp_path: Path, store: Path) -> Iterator[MakeServer]:
    """`make_server("key=value", …)`: a server that is not started yet, with further lines of configuration."""
    made: list[Server] = []
    first = ["worker_start=fresh"] if request.node.get_closest_marker("fresh") is not None else []

    def make(*config: str, grpc: bool = False) -> Server:
        server = Server(tmp_path / f"server{len(made)}", store, [*first, *config], grpc=grpc)
        made.append(server)
        return server

    yield make
    for server in made:
        server.discard()
        print(server.log()[-4000:])  # shown when the test has failed


@pytest.fixture(scope="session")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests that leave it as it is.  Version 1.0 of `echo` has a worker; the other one has none."""
    folder = tmp_path_factory.mktemp("steady")
    store = folder / "store"
    store.mkdir()
    write(store, "echo.mar")
    write(store, "echo2.mar", version="other")
    write(store, "unnamed.mar", name=None)
    write(store, "big.mar", name="big", padding_mb=6)
    (store / "noise.txt").write_bytes(b"no archive")
    (store / "noise.mar").write_bytes(b"PK\3\4 no archive")
    with running(Server(folder / "server", store, [f"max_request_size={MAX_REQUEST}", "worker_start=fresh"])) as server:
        assert server.register("echo.mar", initial_workers=1, synchronous=True).status == 200
        assert server.register("echo2.mar").status == 200
        assert server.register("echo2.mar", model_name="模型 a+b").status == 200
        yield server
