"""Workers are killed, stopped and misbehave at random under load: only what they had in hand is lost, nothing stays.

TSERVE_CHAOS_S sets how long (15), TSERVE_CHAOS_SEED the choices.  What is lost is accounted for request by request, see
`Account`.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.archives import write
from tests.e2e.chaos import BATCH, KINDS, WORKERS, Chaos, Client, Loss, Orders, Pinger, Seen
from tests.e2e.conftest import MakeServer
from tests.e2e.processes import open_files, state, zombies
from tests.e2e.server import Server, eventually, processes_of

pytestmark = pytest.mark.e2e

SECONDS = float(os.environ.get("TSERVE_CHAOS_S", "15"))
SEED = os.environ.get("TSERVE_CHAOS_SEED") or str(random.SystemRandom().randrange(10**6))
CLIENTS = 12
RESPONSE_TIMEOUT_S = 2
CLIENT_TIMEOUT_S = 60.0  # a request that waits so long has been forgotten
NOTICED_S = RESPONSE_TIMEOUT_S + 5.0  # from a misdeed to the end of its worker
BACK_S = 2.0  # from the end of the last misdeed to four workers, besides the back-off that is due
HARMLESS = frozenset({"flood"})  # costs no request
LIVES_ON = frozenset({"flood", "memory"})  # the worker does
CONFIG = ("worker_memory_limit=1536", "worker_process_limit=12", "max_worker_restarts=1000000")
YAML = f"""
minWorkers: {WORKERS}
maxWorkers: {WORKERS}
batchSize: {BATCH}
maxBatchDelay: 5
responseTimeout: {RESPONSE_TIMEOUT_S}
folder: {{folder}}
"""


class Account:
    """What the misdeeds may have cost, and what was lost.

    A worker that is brought to an end loses one batch: the last that it was given, which it has written down unless it
    was killed or stopped before it looked at it.  One that finds no memory may live, and loses no more than that.
    """

    def __init__(self, orders: Orders, struck: list[str], failed: dict[str, Loss]) -> None:
        claims = [claim for claim in orders.claims() if claim[0] not in HARMLESS]
        self.orders, self.failed = orders, failed
        self.kills = len(struck) + len(claims)
        self.victims = {worker for _, worker, _ in claims} | set(struck)
        self.obeyed = {request for _, _, requests in claims for request in requests}
        without_memory = {request for kind, _, requests in claims if kind == "memory" for request in requests}
        self.lost: dict[str, set[str]] = {}
        for request, loss in failed.items():
            if loss.worker or request not in without_memory:
                self.lost.setdefault(loss.worker, set()).add(request)

    def check(self) -> None:
        assert len(self.failed) <= self.kills * BATCH
        strange = {worker: requests for worker, requests in self.lost.items() if worker not in self.victims}
        assert strange == {}, [self.failed[request] for requests in strange.values() for request in requests]
        for worker, requests in self.lost.items():
            last = self.orders.last_batch(worker)
            assert requests == last or (len(requests) <= BATCH and requests.isdisjoint(last)), (worker, requests, last)
        # A misdeed takes its batch with it: what came of that cannot have been an answer.
        assert self.obeyed <= self.failed.keys()


def check_back(server: Server, orders: Orders, struck: list[str]) -> float:
    """All workers are up, in time; how long that took."""
    victims = {worker for kind, worker, _ in orders.claims() if kind not in LIVES_ON} | set(struck)

    def workers() -> list[dict[str, object]]:
        described: list[dict[str, object]] = server.describe("chaos")[0]["workers"]
        return described

    def noticed() -> bool:
        return victims.isdisjoint(orders.worker(int(str(worker["pid"]))) for worker in workers())

    eventually("each misdeed has been noticed", noticed, within_s=NOTICED_S)
    began = time.monotonic()
    due = max((float(worker["tserve"].get("nextTrySeconds", 0)) for worker in workers()), default=0.0)  # type: ignore[attr-defined]
    eventually(
        f"{WORKERS} workers, one after a back-off of {due:g} s",
        lambda: len(server.ready_workers("chaos")) == WORKERS,
        within_s=due + BACK_S,
    )
    return time.monotonic() - began


def check_nothing_left(server: Server) -> None:
    """The server, its zygote and four workers, each of them alive and well; nothing else, and no zombie."""

    def only_these() -> bool:
        there = processes_of(server.mark)
        rest = there.keys() - {server.pid, *server.ready_workers("chaos")}
        return len(there) == WORKERS + 2 and len(rest) == 1 and "zygote" in there[rest.pop()]

    try:
        eventually("nothing but server, zygote and workers", only_these, within_s=BACK_S)
    except AssertionError:
        pytest.fail(f"processes: {processes_of(server.mark)}, workers: {server.ready_workers('chaos')}")
    eventually("no zombies", lambda: not zombies(server.pid), within_s=BACK_S)
    assert [state(pid) for pid in processes_of(server.mark)].count("T") == 0


@contextmanager
def load_on(server: Server, seen: Seen) -> Iterator[None]:
    over = threading.Event()
    threads = [Pinger(server, seen, over), *(Client(server, i, seen, over) for i in range(CLIENTS))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(CLIENT_TIMEOUT_S + 10)
            assert not thread.is_alive()


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(tmp_path / "chaos")


@pytest.fixture
def server(make_server: MakeServer, store: Path, orders: Orders) -> Server:
    handler = Path(__file__).with_name("chaos_handler.py").read_text()
    write(store, "chaos.mar", handler, name="chaos", config=YAML.format(folder=orders.folder))
    server = make_server(*CONFIG)
    server.timeout_s = CLIENT_TIMEOUT_S
    server.start()
    assert server.register("chaos.mar", synchronous=True).status == 200
    return server


def open_when_idle(server: Server) -> Counter[str]:
    """Open descriptors once connections of clients are closed: the count is to hold for a moment."""
    counts: list[Counter[str]] = []

    def steady() -> bool:
        counts.append(open_files(server.pid))
        return len(counts) > 20 and counts[-20:] == [counts[-1]] * 20

    eventually("no descriptors come and go", steady)
    return counts[-1]


def report(chaos: Chaos, seen: Seen, account: Account, back_s: float) -> str:
    lines = [
        f"{sum(seen.asked.values())} requests, {len(seen.failed)} failed, {account.kills} misdeeds that cost some",
        f"{len(account.victims)} workers ended, {len(account.lost)} of them with requests in hand",
        f"slowest answer {seen.slowest_answer_s:.2f} s, slowest ping {seen.slowest_ping_s:.3f} s, {dict(seen.pings)}",
        f"all workers back {back_s:.2f} s after the last misdeed was noticed",
        *(f"{count:7} {what}" for what, count in sorted(chaos.done.items())),
        *(
            f"{count:7} answered {what}"
            for what, count in sorted(Counter(loss.what for loss in seen.failed.values()).items())
        ),
    ]
    return "\n".join(lines)


def test_only_what_is_in_hand_is_lost(server: Server, orders: Orders) -> None:
    print(f"TSERVE_CHAOS_SEED={SEED}", flush=True)
    seen, chaos = Seen(), Chaos(server, orders, random.Random(SEED))
    with load_on(server, seen):  # connections to the database and the like are there from here on
        eventually("requests are answered", lambda: sum(seen.asked.values()) > 10 * CLIENTS)
    assert seen.failed == {}
    before = open_when_idle(server)
    with load_on(server, seen):
        chaos.run(SECONDS)
        back_s = check_back(server, orders, chaos.struck)
    account = Account(orders, chaos.struck, seen.failed)
    print(report(chaos, seen, account, back_s), flush=True)
    assert seen.wrong == []
    account.check()
    check_nothing_left(server)
    after = open_when_idle(server)
    assert after <= before, f"before: {before}, after: {after}"
    assert set(chaos.done) == set(KINDS)
    mark = server.mark
    assert server.stop() == 0
    eventually("every process is gone", lambda: not processes_of(mark), within_s=BACK_S)
