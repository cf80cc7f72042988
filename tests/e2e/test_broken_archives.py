"""The answer of a synchronous registration names the true cause and the file, and nothing is left of the archive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.archives import write
from tests.e2e.broken_archives import BROKEN, REFUSED, Broken, Refused
from tests.e2e.server import Server, eventually, processes_of, running

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("broken")
    store = folder / "store"
    store.mkdir()
    write(store, "good.mar", name="good")
    with running(Server(folder / "server", store)) as server:
        yield server


@pytest.fixture(scope="module")
def residents(server: Server) -> set[int]:
    """The processes of a server without a worker, once it has had one."""
    assert server.register("good.mar", initial_workers=1, synchronous=True).status == 200
    (worker,) = server.ready_workers("good")
    assert server.unregister("good").status == 200
    eventually("the worker is gone", lambda: worker not in processes_of(server.mark))
    return set(processes_of(server.mark))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_the_cause_is_named(server: Server, residents: set[int], broken: Broken) -> None:
    file = broken.write(server.store)
    answer = server.register(file, initial_workers=1, synchronous=True, startup_timeout=broken.startup_timeout)
    assert answer.status == broken.status, answer.body
    assert answer.text == f"Failed to start workers for model {broken.name} version: 1.0"
    cause = answer.json["tserve"]
    assert (cause["reason"], cause.get("file")) == (broken.reason, broken.where), cause
    assert broken.says in cause["detail"]
    assert broken.prints in cause.get("log_tail", "")
    assert cause.get("exit") == broken.exit or broken.exit is None
    assert server.models() == {}


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_the_cause_of_a_refusal_is_named(server: Server, residents: set[int], refused: Refused) -> None:
    (server.store / f"{refused.name}.mar").write_bytes(refused.content())
    answer = server.register(f"{refused.name}.mar", initial_workers=1, synchronous=True)
    assert (answer.status, answer.text) == (refused.status, refused.sentence.format(name=refused.name)), answer.body
    cause = answer.json["tserve"]
    assert cause["reason"] == refused.reason
    assert refused.says in cause.get("detail", "")
    assert server.models() == {}


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("misspelt-function", False),
        ("missing-requirement", False),
        ("null-bytes", False),
        ("raises-in-initialize", True),
    ],
)
def test_what_cannot_heal_is_not_tried_again(server: Server, residents: set[int], name: str, again: bool) -> None:
    """An asynchronous registration stays, so that its workers can be looked at."""
    (broken,) = (broken for broken in BROKEN if broken.name == name)
    assert server.register(broken.write(server.store), initial_workers=1).status == 202

    def phase() -> str:
        (worker,) = server.describe(name)[0]["workers"]
        return str(worker["tserve"]["phase"])

    expected = "backing off" if again else "failed"
    eventually(f"the worker is {expected}", lambda: phase() == expected)
    assert server.unregister(name).status == 200


def test_nothing_is_left(server: Server, residents: set[int]) -> None:
    """After all of the above; and the server is as well as before."""
    eventually("the workers are gone", lambda: set(processes_of(server.mark)) == residents)
    eventually("the archives are gone", lambda: not server.kept())
    server.check_whole()
    assert server.models() == {}
    assert server.call("GET", "/ping", role="inference").json == {"status": "Healthy"}
    assert server.register("good.mar", initial_workers=1, synchronous=True).status == 200
    assert server.predict("good").body == b"good 1.0 of 1"
