"""A server of one's own for a benchmark: ports chosen by the kernel, state and store in a temporary folder."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit


class Server:
    """`with Server(state) as server`: started at entry, stopped at exit; `ready_s` is how long the start took.

    `config` are further lines of the properties file.
    """

    def __init__(self, folder: Path, *config: str) -> None:
        self.folder = folder
        (folder / "store").mkdir(exist_ok=True)
        roles = ("inference", "management", "metrics")
        lines = [
            *(f"{role}_address=http://127.0.0.1:0" for role in roles),
            "grpc_inference_port=0",
            "grpc_management_port=0",
        ]
        lines += config
        (folder / "c.properties").write_text("\n".join([*lines, ""]))

    def __enter__(self) -> Server:
        words = [sys.executable, "-m", "tserve", "start", "--ts-config", self.folder / "c.properties"]
        words += ["--model-store", self.folder / "store", "--state-dir", self.folder / "state"]
        began = time.perf_counter()
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        endpoints = self.folder / "state" / "endpoints.json"
        while not endpoints.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}")
            time.sleep(0.002)
        self.urls = json.loads(endpoints.read_text())
        self.connections: dict[str, http.client.HTTPConnection] = {}
        self.call("inference", "/ping")
        self.ready_s = time.perf_counter() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def call(self, role: str, target: str, method: str = "GET", body: bytes | None = None) -> bytes:
        if role not in self.connections:
            self.connections[role] = http.client.HTTPConnection(urlsplit(self.urls[role]).netloc)
        self.connections[role].request(method, target, body)
        return self.connections[role].getresponse().read()

    def median_ms(self, role: str, target: str, rounds: int = 200) -> float:
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            self.call(role, target)
            times.append(time.perf_counter() - began)
        return sorted(times)[rounds // 2] * 1000

    def pss_mib(self) -> float:
        return pss_mib(self.process.pid)


def pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tserve-bench-")
