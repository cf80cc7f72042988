"""Workers of the digits model, forked from the zygote against fresh interpreters: start, restart, memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import server

ROUNDS = 15
WORKERS = 5
PROJECT = Path(__file__).resolve().parents[1]
PICTURE = (PROJECT / "examples/digits/samples/7.png").read_bytes()


@dataclass
class Figures:
    """Medians in ms, memory in MiB; `zygote` is the zygote's own share, 0 without one."""

    scale: float
    restart: float
    loaded: float
    served: float
    zygote: float


class Bench:
    def __init__(self, running: server.Server) -> None:
        self.running = running

    def manage(self, method: str, target: str) -> Any:
        return json.loads(self.running.call("management", target, method))

    def scale(self, workers: int) -> None:
        answer = self.manage("PUT", f"/models/digits?min_worker={workers}&max_worker={workers}&synchronous=true")
        if answer.get("code") is not None:
            raise SystemExit(f"scaling failed: {answer}")

    def ready(self) -> list[int]:
        (described,) = self.manage("GET", "/models/digits")
        return [worker["pid"] for worker in described["workers"] if worker["status"] == "READY"]

    def predict(self) -> None:
        answer = json.loads(self.running.call("inference", "/predictions/digits", "POST", PICTURE))
        if "7" not in answer:
            raise SystemExit(f"no prediction: {answer}")

    def one_more(self) -> float:
        began = time.perf_counter()
        self.scale(2)
        took = time.perf_counter() - began
        self.scale(1)
        return took

    def killed(self) -> float:
        """From the kill of the only worker to the next; it had answered, so that the restart is at once."""
        self.predict()
        (worker,) = self.ready()
        began = time.perf_counter()
        os.kill(worker, signal.SIGKILL)
        while (ready := self.ready()) in ([], [worker]):
            time.sleep(0.002)
        took = time.perf_counter() - began
        assert len(ready) == 1
        return took

    def measure(self) -> Figures:
        self.manage("POST", "/models?url=digits.mar&initial_workers=1&synchronous=true")
        scale, restart = median_ms(self.one_more), median_ms(self.killed)
        self.scale(WORKERS)
        workers = self.ready()
        loaded, zygote = sum(map(server.pss_mib, workers)), sum(map(server.pss_mib, self.zygotes(workers)))
        for _ in range(20 * WORKERS):  # they take turns
            self.predict()
        return Figures(scale, restart, loaded, sum(map(server.pss_mib, workers)), zygote)

    def zygotes(self, workers: list[int]) -> list[int]:
        process = self.running.process.pid
        pids = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
        return [pid for pid in pids if pid not in workers and "zygote" in Path(f"/proc/{pid}/cmdline").read_text()]


def median_ms(act: Callable[[], float]) -> float:
    return sorted(act() for _ in range(ROUNDS))[ROUNDS // 2] * 1000


def measure(start: str) -> Figures:
    with server.folder() as path, server.Server(Path(path), f"worker_start={start}") as running:
        shutil.copy(PROJECT / "model_store/digits.mar", Path(path) / "store")
        return Bench(running).measure()


def main() -> None:
    zygote, fresh = measure("zygote"), measure("fresh")
    both = zygote.loaded + zygote.zygote
    rows = (
        ("scale +1, synchronous, ms", zygote.scale, fresh.scale, "<= 100 ms"),
        ("SIGKILL to READY, ms", zygote.restart, fresh.restart, "<= 250 ms"),
        (f"PSS of {WORKERS} loaded workers, MiB", zygote.loaded, fresh.loaded, "ratio <= 0.33"),
        ("the same and the zygote, MiB", both, fresh.loaded, ""),
        ("PSS once they have served, MiB", zygote.served, fresh.served, ""),
    )
    print(f"{'':36}{'zygote':>9}{'fresh':>9}{'ratio':>7}  target")
    for what, forked, unforked, target in rows:
        print(f"{what:36}{forked:9.0f}{unforked:9.0f}{forked / unforked:7.2f}  {target}")


if __name__ == "__main__":
    main()
