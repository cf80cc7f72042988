"""The parts of the chaos run: orders for its handler, clients that keep asking, and what does the misdeeds."""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.server import Server, eventually, exchange, names_in

WORKERS, BATCH = 4, 4
PING_TIMEOUT_S = 5.0
PAUSE_S = 0.6  # the longest between two misdeeds
KINDS = ("kill", "stop", "load", "rescale", "exit", "flood", "hangup", "garbage", "deaf", "memory", "bomb")
FROM_OUTSIDE = ("kill", "stop")


class Orders:
    """The folder over which the workers are told what to do; they are named by pid and time of loading."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("orders", "claims", "batches"):
            (folder / name).mkdir(parents=True)
        self._number = 0

    def give(self, when: str, kind: str) -> None:
        self._number += 1
        (self.folder / "orders" / f"{self._number:06}-{when}-{kind}").touch()

    def waiting(self) -> list[str]:
        """What nobody has taken yet."""
        return names_in(self.folder / "orders")

    def claims(self) -> Iterator[tuple[str, str, set[str]]]:
        """Orders that were obeyed in a batch: kind, worker, the requests that it had in hand."""
        for name in names_in(self.folder / "claims"):
            _, when, kind = name.split("-")
            words = (self.folder / "claims" / name).read_text().split()
            if when == "batch" and words:  # one that was killed in the act had no time to write
                yield kind, words[0], set(words[1:])

    def worker(self, pid: int) -> str | None:
        """The last one with this pid."""
        mine = [name for name in names_in(self.folder / "batches") if name.startswith(f"{pid}-")]
        return max(mine, key=lambda name: int(name.partition("-")[2]), default=None)

    def last_batch(self, worker: str) -> set[str]:
        """The requests that it was given last."""
        return set((self.folder / "batches" / worker).read_text().split("\n")[-2].split())


@dataclass(frozen=True)
class Loss:
    """A request that failed: with what, and the worker that the error speaks of."""

    what: str
    worker: str = ""


@dataclass
class Seen:
    """What the clients saw; appending to a list and adding to a set are safe between threads."""

    asked: Counter[int] = field(default_factory=Counter)  # by client
    failed: dict[str, Loss] = field(default_factory=dict)  # by request
    wrong: list[str] = field(default_factory=list)  # what must not be seen at all
    pings: Counter[str] = field(default_factory=Counter)
    slowest_ping_s: float = 0.0
    slowest_answer_s: float = 0.0


class Client(threading.Thread):
    """Asks one thing after another until told to stop."""

    def __init__(self, server: Server, number: int, seen: Seen, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.server, self.number, self.seen, self.over = server, number, seen, over

    def run(self) -> None:
        with closing(self.server.connect("inference")) as connection:
            while not self.over.is_set():
                self.seen.asked[self.number] += 1
                began = time.monotonic()
                self._ask(connection, f"c{self.number}.{self.seen.asked[self.number]}")
                self.seen.slowest_answer_s = max(self.seen.slowest_answer_s, time.monotonic() - began)

    def _ask(self, connection: http.client.HTTPConnection, request: str) -> None:
        try:
            answer = exchange(connection, "POST", "/predictions/chaos", body=request.encode())
        except (http.client.RemoteDisconnected, ConnectionResetError):
            self.seen.failed[request] = Loss("connection ended")
            connection.close()
        except (OSError, http.client.HTTPException) as e:
            self.seen.wrong.append(f"{request}: {e!r}")
            connection.close()
        else:
            if answer.status in (500, 507):
                cause = answer.json.get("tserve", {})
                workers = re.findall(r"^worker (\S+)", cause.get("log_tail", ""), re.MULTILINE)
                self.seen.failed[request] = Loss(f"{answer.status} {cause.get('reason')}", *workers[-1:])
            elif answer.status != 200 or answer.body != f"of {request}".encode():
                self.seen.wrong.append(f"{request}: {answer}")


class Pinger(threading.Thread):
    """/ping may say that a version is not well; not answering, and any other word of livez, is a fault."""

    def __init__(self, server: Server, seen: Seen, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.server, self.seen, self.over = server, seen, over

    def run(self) -> None:
        while not self.over.wait(0.05):
            for path, allowed in (("/ping", (200, 500)), ("/tserve/livez", (200,))):
                began = time.monotonic()
                try:
                    with closing(self.server.connect("inference")) as connection:
                        connection.timeout = PING_TIMEOUT_S
                        status = exchange(connection, "GET", path).status
                except (OSError, http.client.HTTPException) as e:
                    self.seen.wrong.append(f"{path}: {e!r}")
                    continue
                self.seen.slowest_ping_s = max(self.seen.slowest_ping_s, time.monotonic() - began)
                self.seen.pings[f"{path} {status}"] += 1
                if status not in allowed:
                    self.seen.wrong.append(f"{path}: {status}")


@contextmanager
def pidfd_of(pid: int) -> Iterator[int]:
    """Raises ProcessLookupError."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


class Chaos:
    """Does one misdeed after another, each kind as often as the others."""

    def __init__(self, server: Server, orders: Orders, rng: random.Random) -> None:
        self.server, self.orders, self.rng = server, orders, rng
        self.done: Counter[str] = Counter()
        self.struck: list[str] = []  # workers killed or stopped from outside, one entry each time

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for kind in self.rng.sample(KINDS, len(KINDS)):
                if kind in FROM_OUTSIDE:
                    self._strike(kind)
                elif kind == "load":
                    self.orders.give("load", "exit")
                    self._strike("kill")
                elif kind == "rescale":
                    self._rescale()
                else:
                    self.orders.give("batch", kind)
                self.done[kind] += 1
                # A pause between loads, not a wait for something.
                time.sleep(self.rng.uniform(0, PAUSE_S))
        if any("-load-" in order for order in self.orders.waiting()):  # more loads were ended than had begun
            self._strike("kill")
        eventually("the orders are taken", lambda: not self.orders.waiting())

    def _strike(self, kind: str) -> None:
        number = signal.SIGKILL if kind == "kill" else signal.SIGSTOP

        def one_of_them() -> bool:
            pids = [pid for pid in self._up() if pid > 0]
            return bool(pids) and self._struck(self.rng.choice(pids), number)

        eventually("a worker is struck", one_of_them)

    def _struck(self, pid: int, number: int) -> bool:
        """Only a worker that is up, and no other process that has its number meanwhile."""
        with suppress(ProcessLookupError), pidfd_of(pid) as pidfd:
            worker = self.orders.worker(pid)
            if worker is not None and pid in self._up():
                signal.pidfd_send_signal(pidfd, number)
                self.struck.append(worker)
                return True
        return False

    def _up(self) -> list[int]:
        return self.server.ready_workers("chaos")

    def _rescale(self) -> None:
        """One worker leaves, some of them only when they are killed, and another comes."""
        assert self.server.scale("chaos", min_worker=WORKERS - 1, max_worker=WORKERS - 1).status == 202
        eventually("a worker fewer", lambda: len(self._described()) == WORKERS - 1)
        assert self.server.scale("chaos", min_worker=WORKERS, max_worker=WORKERS).status == 202

    def _described(self) -> list[dict[str, object]]:
        workers: list[dict[str, object]] = self.server.describe("chaos")[0]["workers"]
        return workers
