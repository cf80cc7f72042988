"""Unary gRPC Predictions of a model that does nothing: tserve, TorchServe 0.12 and a bare grpc.aio server.

All in one run: the peers take turns in every round, and clients of a process of their own load them, one in
Python (grpc.aio) and h2load if it is there.  Both servers have `metrics_mode=prometheus`; `tserve-log` and
`torchserve-log` have the default of both, a line in a file for each metric.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(PROJECT))  # of the checkout, where tserve is not installed
import grpc  # noqa: E402
import server  # noqa: E402

from tserve.grpc.messages import INFERENCE, message  # noqa: E402

METHOD = f"/{INFERENCE}/Predictions"
IN_FLIGHT = (1, 8, 64)
TICK = os.sysconf("SC_CLK_TCK")
START_S, STOP_S, CALL_S = 90.0, 10.0, 10.0
HANDLER = """
def handle(data, context):
    return None if data is None else ["OK" for _ in data]
"""
REGISTER = "/models?url=noop.mar&initial_workers=1&batch_size=1&synchronous=true"


def _inference(name: str, **fields: Any) -> bytes:
    made: bytes = message(f"{INFERENCE.rpartition('.')[0]}.{name}")(**fields).SerializeToString()
    return made


ASKED = _inference("PredictionsRequest", model_name="noop", input={"data": b'{"value": 1}'})
ANSWER = _inference("PredictionResponse", prediction=b"OK")


@dataclass(frozen=True)
class Peer:
    """A server under load; `pid` is the first of its processes."""

    name: str
    address: str
    pid: int


@dataclass(frozen=True)
class Load:
    """What a client does: calls without a pause, `in_flight` of them at a time, over one connection."""

    address: str
    in_flight: int
    seconds: float


@dataclass(frozen=True)
class Cell:
    """What one client saw of one peer; `calls` are those that were answered as they should be."""

    round: int
    client: str
    in_flight: int
    peer: str
    calls: int
    errors: int
    rate: float
    cpu_ms: float
    p50_ms: float | None = None
    p99_ms: float | None = None


# -- the peers


@contextlib.contextmanager
def tserve(folder: Path, config: Sequence[str]) -> Iterator[Peer]:
    """`folder` gives the peer its name."""
    folder.mkdir()
    with server.Server(folder, *config) as running:
        write_archive(folder / "store")
        answer = json.loads(running.call("management", REGISTER, "POST"))
        if "code" in answer:
            raise SystemExit(f"tserve: registering failed: {answer}")
        yield Peer(folder.name, running.urls["grpc_inference"], running.process.pid)


@contextlib.contextmanager
def torchserve(python: Path, folder: Path, config: Sequence[str]) -> Iterator[Peer]:
    """Ended with all that it started, as a group of processes."""
    write_archive(folder / "store")
    inference, management, metrics, calls, manage_calls, worker = free_ports(6)
    (folder / "c.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\nmanagement_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\ngrpc_inference_port={calls}\n"
        f"grpc_management_port={manage_calls}\ninitial_worker_port={worker}\n" + "\n".join([*config, ""])
    )
    words: list[str | Path] = [
        python,
        "-m",
        "ts.model_server",
        "--start",
        "--foreground",
        "--ncs",
        "--disable-token-auth",
    ]
    words += ["--enable-model-api", "--ts-config", folder / "c.properties", "--model-store", folder / "store"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("TS_", "PYTHON"))}
    environ["PATH"] = f"{python.parent}:{environ['PATH']}"
    for name in ("LOG_LOCATION", "METRICS_LOCATION", "TEMP", "TMPDIR"):
        environ[name] = str(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(process, f"http://127.0.0.1:{inference}/ping", folder / "log")
        fetch(f"http://127.0.0.1:{management}{REGISTER}", "POST")
        yield Peer(folder.name, f"127.0.0.1:{calls}", process.pid)
    finally:
        end_group(process)


@contextlib.contextmanager
def bare() -> Iterator[Peer]:
    """A grpc.aio server that answers at once: no bridge, no queue, no worker."""
    process = subprocess.Popen([sys.executable, __file__, "--serve-bare"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Peer("bare", f"127.0.0.1:{int(process.stdout.readline())}", process.pid)
    finally:
        process.kill()
        process.wait()


async def serve_bare() -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return ANSWER

    service, _, method = METHOD[1:].partition("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(answer)})
    running = grpc.aio.server()
    running.add_generic_rpc_handlers((handler,))
    print(running.add_insecure_port("127.0.0.1:0"), flush=True)
    await running.start()
    await running.wait_for_termination()


def write_archive(store: Path) -> None:
    store.mkdir(parents=True, exist_ok=True)
    model = {"modelName": "noop", "modelVersion": "1.0", "handler": "noop.py"}
    with zipfile.ZipFile(store / "noop.mar", "w") as archive:
        archive.writestr("noop.py", HANDLER)
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError):
            fetch(url)
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"TorchServe does not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def fetch(url: str, method: str = "GET") -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=START_S) as answer:
        said: bytes = answer.read()
        return said


def end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to all of a session, SIGKILL to what is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cpu_s(root: int) -> float:
    """Seconds of processor time of a process and all that came of it, also of those that have ended."""
    parents, times = {}, {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)], times[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sum(times[pid] for pid in tree) / TICK


# -- the clients


async def call_on(load: Load) -> dict[str, Any]:
    """The client in Python, without stubs: bytes out, bytes in."""
    seconds: list[float] = []
    failed: list[str] = []
    async with grpc.aio.insecure_channel(load.address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        await channel.channel_ready()
        begun = time.perf_counter()

        async def keep_calling() -> None:
            while (now := time.perf_counter()) < begun + load.seconds:
                try:
                    answer = await call(ASKED, timeout=CALL_S)
                except grpc.aio.AioRpcError as e:
                    failed.append(f"{e.code().name}: {e.details()}")
                else:
                    failed.extend(["another answer"] if answer != ANSWER else [])
                    seconds.append(time.perf_counter() - now)

        await asyncio.gather(*(keep_calling() for _ in range(load.in_flight)))
        took = time.perf_counter() - begun
    seconds.sort()
    good = len(seconds) - failed.count("another answer")
    p50, p99 = (1000 * seconds[int(len(seconds) * share)] if seconds else None for share in (0.5, 0.99))
    return {"calls": good, "errors": len(failed), "rate": good / took, "p50_ms": p50, "p99_ms": p99, "why": failed[:1]}


def aio(load: Load) -> dict[str, Any]:
    words = [sys.executable, __file__, "--call", json.dumps(asdict(load))]
    answer: dict[str, Any] = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    if why := answer.pop("why"):
        print(f"  {load}: {why[0]}", file=sys.stderr)
    return answer


def h2load(load: Load) -> dict[str, Any]:
    """It sees no gRPC statuses: an answer without its bytes counts as an error."""
    frame = b"\0" + len(ASKED).to_bytes(4, "big") + ASKED
    words = ["h2load", "-t1", "-c1", f"-m{load.in_flight}", f"-D{load.seconds * 1000:.0f}ms", "-Hte: trailers"]
    words += ["-Hcontent-type: application/grpc", f"http://{load.address}{METHOD}"]
    with tempfile.NamedTemporaryFile() as body:
        body.write(frame)
        body.flush()
        said = subprocess.run([*words, f"-d{body.name}"], stdout=subprocess.PIPE, text=True, check=True).stdout
    took, done, good, data = (
        float(found[1]) if (found := re.search(pattern, said)) else 0.0
        for pattern in (r"finished in ([\d.]+)s", r"(\d+) done", r"(\d+) succeeded", r"\((\d+)\) data")
    )
    calls = min(good, data // (5 + len(ANSWER)))
    return {"calls": int(calls), "errors": int(done - calls), "rate": calls / took if took else 0.0}


CLIENTS = {"grpc.aio": aio, "h2load": h2load}


# -- the run


def measure(peers: Sequence[Peer], clients: Sequence[str], rounds: int, seconds: float) -> Iterator[Cell]:
    for number in range(rounds):
        for in_flight in IN_FLIGHT:
            for client in clients:
                for peer in peers if number % 2 else peers[::-1]:
                    before = cpu_s(peer.pid)
                    said = CLIENTS[client](Load(peer.address, in_flight, seconds))
                    cpu_ms = 1000 * (cpu_s(peer.pid) - before) / max(said["calls"], 1)
                    yield Cell(number, client, in_flight, peer.name, cpu_ms=cpu_ms, **said)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)


def show(cells: Sequence[Cell], peers: Sequence[str], clients: Sequence[str]) -> None:
    print(
        f"{'client':9}{'calls':>6} {'peer':15}{'calls/s':>8} {'(min-max)':13}{'CPU ms':>7}{'p50 ms':>8}{'p99 ms':>8}",
        end="",
    )
    bases = [peer for peer in ("torchserve", "torchserve-log", "bare") if peer in peers]
    print(f"{'errors':>8}  " + "".join(f"{'x ' + base:20}" for base in bases))
    for client in clients:
        for in_flight in IN_FLIGHT:
            here = [cell for cell in cells if (cell.client, cell.in_flight) == (client, in_flight)]
            rates = {peer: [cell.rate for cell in here if cell.peer == peer] for peer in peers}
            for peer in peers:
                of_peer = [cell for cell in here if cell.peer == peer]
                spread = f"({min(rates[peer]):.0f}-{max(rates[peer]):.0f})"
                line = f"{client:9}{in_flight:6} {peer:15}{statistics.median(rates[peer]):8.0f} {spread:13}"
                line += "".join(_median(of_peer, field) for field in ("cpu_ms", "p50_ms", "p99_ms"))
                line += f"{sum(cell.errors for cell in of_peer):8}  "
                print(line + "".join(f"{_ratio(rates[peer], rates[base]):20}" for base in bases))


def _median(cells: Sequence[Cell], field: str) -> str:
    values = [value for cell in cells if (value := getattr(cell, field)) is not None]
    width = 7 if field == "cpu_ms" else 8
    return f"{statistics.median(values):{width}.2f}" if values else " " * width


def _ratio(rates: Sequence[float], base: Sequence[float]) -> str:
    """Of the two in the same round."""
    ratios = [one / other for one, other in zip(rates, base, strict=True) if other]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "-"


def find_torchserve(given: Path | None) -> Path:
    if given is None:
        raise SystemExit(
            "TorchServe is missing: name the Python of an environment that has torchserve 0.12.0 by "
            "--torchserve-python or TORCHSERVE_PYTHON, or leave TorchServe out by --peers tserve,bare"
        )
    asked = "import importlib.metadata as m; import torch; print(m.version('torchserve'))"
    said = subprocess.run([given, "-c", asked], capture_output=True, text=True) if shutil.which(given) else None
    if said is None or said.stdout.strip() != "0.12.0":
        raise SystemExit(f"{given} is no Python that has torchserve 0.12.0 and torch:\n{said.stderr if said else ''}")
    java = Path(os.environ["JAVA_HOME"], "bin/java") if os.environ.get("JAVA_HOME") else "java"
    if shutil.which(java) is None:
        raise SystemExit("TorchServe needs Java, and there is none here: install one (Debian: default-jre-headless)")
    return given.absolute()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    python = os.environ.get("TORCHSERVE_PYTHON")
    parser.add_argument("--torchserve-python", type=Path, default=Path(python) if python else None, metavar="PATH")
    parser.add_argument(
        "--peers", default="tserve,torchserve,bare", help="default: %(default)s; also tserve-log, torchserve-log"
    )
    parser.add_argument("--clients", default="grpc.aio,h2load", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--warm-up", type=float, default=30.0, help="seconds for each peer; Java needs them")
    parser.add_argument("--config", action="append", default=[], metavar="KEY=VALUE", help="more for both servers")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="append each measurement as a line of JSON")
    parser.add_argument("--serve-bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--call", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def start(name: str, folder: Path, python: Path, config: Sequence[str]) -> contextlib.AbstractContextManager[Peer]:
    kind, _, mode = name.partition("-")
    config = [f"metrics_mode={mode or 'prometheus'}", *config]
    starts = {
        "tserve": lambda: tserve(folder, config),
        "torchserve": lambda: torchserve(python, folder, config),
        "bare": bare,
    }
    return starts[kind]()


def run(asked: argparse.Namespace) -> None:
    names, clients = asked.peers.split(","), asked.clients.split(",")
    if shutil.which("h2load") is None and "h2load" in clients:
        clients.remove("h2load")
        print("without h2load, which is not here (Debian: nghttp2-client)", file=sys.stderr)
    python = find_torchserve(asked.torchserve_python) if any("torchserve" in name for name in names) else Path()
    raw = asked.raw.open("a") if asked.raw else None
    os.chdir(PROJECT)  # where `-m` finds the server, and nothing that has the name of a package
    with server.folder() as path, contextlib.ExitStack() as running:
        peers = [running.enter_context(start(name, Path(path, name), python, asked.config)) for name in names]
        for peer in peers:
            aio(Load(peer.address, 8, asked.warm_up))
        cells = []
        for cell in measure(peers, clients, asked.rounds, asked.seconds):
            cells.append(cell)
            if raw:
                print(json.dumps(asdict(cell)), file=raw, flush=True)
    show(cells, names, clients)


def main() -> None:
    asked = parse()
    if asked.serve_bare:
        asyncio.run(serve_bare())
    elif asked.call:
        print(json.dumps(asyncio.run(call_on(Load(**asked.call)))))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left running
        run(asked)


if __name__ == "__main__":
    main()
