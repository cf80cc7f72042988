"""Management by gRPC against the real server: beside REST, under kills, by clients that leave, with odd names."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.archives import FAILS_TO_LOAD, SLOW_LOAD, write
from tests.e2e.conftest import MakeServer
from tests.e2e.expected import Expected
from tests.e2e.server import Server, eventually, running
from tests.e2e.skins import Grpc, Rest, Skin
from tests.grpc.management_client import ManagementClient

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

VERSIONS = {"1.0": "one.mar", "2.0": "two.mar", "v 3+ü": "odd.mar"}
SHOWS_ITSELF = """
def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") != "True":
        return ["predicted" for _ in data]
    if context.get_request_header(0, "x-of-the-client") is not None:
        raise ValueError("metadata of a client came through")
    return [{"of": "the handler", "nothing": None}]
"""
FAILS_TO_SHOW = """
def handle(data, context):
    if data is not None:
        raise ValueError("cannot be described")
"""


def fill(store: Path) -> None:
    for version, file in VERSIONS.items():
        write(store, file, version=version)
    write(store, "slow.mar", SLOW_LOAD.format(seconds=1), name="slow")
    write(store, "broken.mar", FAILS_TO_LOAD, name="broken")
    write(store, "shows.mar", SHOWS_ITSELF, name="shows")
    write(store, "fails.mar", FAILS_TO_SHOW, name="fails")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("grpc-management")
    (folder / "store").mkdir()
    fill(folder / "store")
    with running(Server(folder / "server", folder / "store", ["worker_start=fresh"], grpc=True)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[ManagementClient]:
    with closing(ManagementClient(server.urls["grpc_management"])) as client:
        yield client


# ---- one call


def test_a_life(server: Server, client: ManagementClient) -> None:
    registered = client.call("RegisterModel", url="one.mar", model_name="life", initial_workers=1, synchronous=True)
    assert registered.text == 'Model "life" Version: 1.0 registered with 1 initial workers'
    assert server.predict("life").body == b"echo 1.0 of 1"
    scaled = client.call("ScaleWorker", model_name="life", to_zero=True, at_once=True, synchronous=True)
    assert scaled.text == "Workers scaled to 0 for model: life"
    assert server.ready_workers("life") == []
    events = server.call("GET", "/tserve/models/life/events").json["events"]
    assert {event["actor"] for event in events if event["kind"] in ("register", "scale")} == {"127.0.0.1"}
    assert client.call("UnregisterModel", model_name="life").text == 'Model "life" unregistered'


def test_what_a_handler_says_of_itself(server: Server, client: ManagementClient) -> None:
    for name in ("shows", "fails"):
        ask = {"url": f"{name}.mar", "initial_workers": 1, "synchronous": True}
        assert client.call("RegisterModel", **ask).code == "OK"
    (described,) = client.call("DescribeModel", model_name="shows", customized=True).json
    assert described["customizedMetadata"] == {"of": "the handler"}
    by_rest = server.call("GET", "/models/shows", customized=True).json[0]
    assert list(described) == list(by_rest)
    failed = client.call("DescribeModel", model_name="fails", customized=True)
    assert (failed.code, failed.sentence, failed.kind) == (
        "UNAVAILABLE",
        "Prediction failed",
        "InternalServerException",
    )
    for name in ("shows", "fails"):
        assert client.call("UnregisterModel", model_name=name).code == "OK"


def test_a_worker_that_cannot_load(server: Server, client: ManagementClient) -> None:
    """Rolled back; its last words stand in the trailing metadata."""
    failed = client.call("RegisterModel", url="broken.mar", initial_workers=1, synchronous=True)
    assert failed.code == "INTERNAL"
    assert failed.sentence == "Failed to start workers for model broken version: 1.0"
    assert "this model cannot be loaded" in failed.cause["log_tail"]
    assert "broken" not in server.models()


@pytest.mark.parametrize("leaves", ["cancels", "deadline"])
def test_a_client_that_leaves_leaves_the_work(server: Server, client: ManagementClient, leaves: str) -> None:
    within_s = 60.0 if leaves == "cancels" else 0.5
    call = client.begin("RegisterModel", url="slow.mar", initial_workers=1, synchronous=True, within_s=within_s)
    eventually("it loads", lambda: "slow" in server.models() and server.describe("slow")[0]["workers"])
    if leaves == "cancels":
        call.cancel()
    assert client.end(call).code == ("CANCELLED" if leaves == "cancels" else "DEADLINE_EXCEEDED")
    eventually("its worker", lambda: server.ready_workers("slow"))
    assert client.call("UnregisterModel", model_name="slow").code == "OK"


NAMES = ["a\0b", "\n", "../../../etc/passwd", "a/b", "\u202e模型\U0001f600", "\x7f\x1b[2J", "%00 \\ \" '", "x" * 3000]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_odd_names(server: Server, client: ManagementClient, name: str) -> None:
    ask = {"model_name": name, "synchronous": True}
    registered = client.call("RegisterModel", url="one.mar", initial_workers=1, **ask)
    assert registered.text == f'Model "{name}" Version: 1.0 registered with 1 initial workers'
    assert server.models() == {name: "one.mar"}
    assert client.call("DescribeModel", model_name=name).json[0]["workers"][0]["status"] == "READY"
    assert client.call("ScaleWorker", to_zero=True, **ask).text == f"Workers scaled to 0 for model: {name}"
    assert client.call("UnregisterModel", model_name=name).code == "OK"
    assert client.call("ListModels").json == {"models": []}


def test_many_registrations_of_one_version(server: Server) -> None:
    skins: list[Skin] = [Rest(server), Grpc(server)]
    with ThreadPoolExecutor(50) as clients:
        said = list(clients.map(lambda i: skins[i % 2].register("two.mar", model_name="one"), range(50)))
    skins[1].close()  # type: ignore[attr-defined]
    assert Counter(each.refusal for each in said) == {"": 1, "ConflictStatusException": 49}
    assert server.unregister("one").status == 200
    server.check_whole()


# ---- both skins at once


class Clients:
    """Threads that call through either skin at random until each has made its calls, or the server is gone."""

    def __init__(self, server: Server, step: Callable[[random.Random, Skin, int], None], *, calls: int) -> None:
        self._server = server
        self._step = step
        self._calls = calls
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(8)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        rng, grpc = random.Random(number), Grpc(self._server)
        skins: list[Skin] = [Rest(self._server), grpc]
        try:
            with closing(grpc):
                for i in range(self._calls):
                    self._step(rng, rng.choice(skins), number * self._calls + i)
        except Exception as error:
            self.failures.append(error)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def test_both_skins_on_one_model(make_server: MakeServer, store: Path) -> None:
    """Each call is answered as the contract has it, what was acknowledged is what the record and the state hold."""
    fill(store)
    server = make_server()
    server.grpc = True
    server.start()
    done: Counter[str] = Counter()

    def step(rng: random.Random, skin: Skin, _: int) -> None:
        version = rng.choice(list(VERSIONS))
        kind = rng.choice(["add_version", "add_version", "remove_version", "set_default", "replace_version", "looks"])
        if kind == "add_version":
            said = skin.register(VERSIONS[version], model_name="m")
        elif kind == "remove_version":
            said = skin.unregister("m", rng.choice([version, None]))
        elif kind == "set_default":
            said = skin.set_default("m", version)
        elif kind == "replace_version":
            said = skin.scale("m", version, rng.choice([0, 0, 1]), None, synchronous=False)
        else:
            skin.list(limit=1)
            said = skin.describe("m", rng.choice([version, None, "all"]))
        done[kind] += not said.refusal

    clients = Clients(server, step, calls=25)
    clients.join()
    assert clients.failures == []
    registry = server.registry()
    rows = server.rows("SELECT kind, model, version FROM changes ORDER BY number")
    recorded = Counter(kind for kind, *_ in rows)
    for kind in ("add_version", "remove_version"):
        assert recorded[kind] == done[kind]
    assert recorded["set_default"] <= done["set_default"]  # to what it is already changes nothing
    state = Expected.described(registry)
    replayed: dict[str, None] = {}
    for kind, _, version in rows:
        if kind == "add_version":
            replayed[version] = None
        elif kind == "remove_version":
            del replayed[version]
    assert list(state.versions.get("m", {})) == list(replayed)
    server.restart("kill")
    server.check_whole()
    assert Expected.described(server.registry()) == state


def test_killed_amid_registrations(make_server: MakeServer, store: Path) -> None:
    """What was acknowledged is there, what was not is there or not, whole either way."""
    fill(store)
    server = make_server()
    server.grpc = True
    server.start()
    state = Expected()
    for kill in range(2):
        asked: set[str] = set()
        told: list[str] = []

        def step(rng: random.Random, skin: Skin, number: int, kill: int = kill) -> None:
            name = f"{kill}-{number}"
            asked.add(name)  # noqa: B023 - of this round, whose threads end with it
            if not skin.register(rng.choice(list(VERSIONS.values())), model_name=name).refusal:
                told.append(name)  # noqa: B023

        clients = Clients(server, step, calls=1000)
        eventually("some are registered", lambda: len(told) > 20 or clients.failures)  # noqa: B023
        assert clients.failures == []
        server.kill()
        clients.join()
        server.start()
        server.check_whole()
        seen = Expected.described(server.registry())
        new = seen.versions.keys() - state.versions.keys()
        assert set(told) <= new <= asked
        assert seen.only(state.versions) == state
        state = seen
