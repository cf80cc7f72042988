"""Fuzzing, a process for each target and two at a time: `python -m tests.fuzz.run` (tox run -e fuzz).

`--inputs` in all, `--seed`, `--target NAME` (more than once), `--replay NAME FILE` takes one input again.  Every input
has ten seconds of processor time and each process 4 GiB; the first input that crashes a parser or takes longer is
written to a file beside the report, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.mutation import MOST_BYTES, mutated
from tests.fuzz.targets import TARGETS, Target

INPUTS = int(os.environ.get("TSERVE_FUZZ_INPUTS", "3000000"))
MOST_SECONDS = 10  # of the processor, for an input
MOST_MEMORY = 4 << 30
MOST_KEPT = 2000  # inputs that said something new
_LENGTH = struct.Struct("=I")


class Hang(BaseException):
    """An input takes too long; no parser may catch it."""


def _hang(signum: int, frame: object) -> None:
    raise Hang(f"more than {MOST_SECONDS} s")


def scratch() -> str | None:
    """Where files cost least."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def fuzz(target: Target, inputs: int, seed: int, *, note: Callable[[bytes], object] = len) -> dict[str, float]:
    """Figures of a run in this process.  Raises what an input made the target raise, with the input as a note."""
    dice = random.Random(f"{seed} {target.name}")
    corpus, words = [each[: target.most] for each in target.seeds], set[str]()
    began, slowest = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory(dir=scratch()) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = target.make(Path(folder))
        for number in range(inputs):
            data = (
                corpus[number] if number < len(target.seeds) else mutated(dice, corpus, target.words, most=target.most)
            )
            note(data)
            start = time.perf_counter()
            try:
                word = run(data)
            except BaseException as error:
                error.add_note(f"input of {target.name}: {data.hex()}")
                raise
            slowest = max(slowest, time.perf_counter() - start)
            if word not in words:
                words.add(word)
                if len(corpus) < MOST_KEPT:
                    corpus.append(data)
    took = time.perf_counter() - began
    return {"inputs": inputs, "seconds": round(took, 1), "outcomes": len(words), "slowest_ms": round(slowest * 1e3, 1)}


def _child(name: str, inputs: int, seed: int, place: Path) -> None:
    """One target; the input in hand stands in `place`, for when the process itself dies."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    signal.signal(signal.SIGPROF, _hang)
    (target,) = (each for each in TARGETS if each.name == name)
    with place.open("r+b") as file, mmap.mmap(file.fileno(), _LENGTH.size + MOST_BYTES) as shown:

        def note(data: bytes) -> None:
            shown[: _LENGTH.size] = _LENGTH.pack(len(data))
            shown[_LENGTH.size : _LENGTH.size + len(data)] = data
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)

        print(json.dumps(fuzz(target, inputs, seed, note=note)))


def _supervised(target: Target, inputs: int, seed: int) -> bool:
    with tempfile.NamedTemporaryFile(dir=scratch()) as file:
        file.truncate(_LENGTH.size + MOST_BYTES)
        words = [sys.executable, "-m", "tests.fuzz.run", "--child", target.name, str(inputs), str(seed), file.name]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found = json.loads(done.stdout)
            rate = found["inputs"] / max(found["seconds"], 0.1)
            print(f"{target.name:11} {found['inputs']:8,} inputs {rate:8,.0f}/s  {found['outcomes']:5,} outcomes  "
                  f"slowest {found['slowest_ms']:7.1f} ms", flush=True)  # fmt: skip
            return True
        content = Path(file.name).read_bytes()
    data = content[_LENGTH.size : _LENGTH.size + _LENGTH.unpack(content[: _LENGTH.size])[0]]
    kept = Path(tempfile.gettempdir()) / f"tserve-fuzz-{target.name}-{seed}"
    kept.write_bytes(data)
    said = done.stderr[-3000:]
    print(f"{target.name}: ended with {done.returncode} on the input in {kept}\n{said}", flush=True)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--target", action="append", choices=[each.name for each in TARGETS])
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, inputs, seed, place = args.child
        _child(name, int(inputs), int(seed), Path(place))
        return 0
    if args.replay:
        (target,) = (each for each in TARGETS if each.name == args.replay[0])
        with tempfile.TemporaryDirectory(dir=scratch()) as folder:
            try:
                print(target.make(Path(folder))(Path(args.replay[1]).read_bytes()))
            except Exception:
                traceback.print_exc()
                return 1
        return 0
    chosen = [each for each in TARGETS if args.target is None or each.name in args.target]
    shares = sum(each.share for each in chosen)
    print(f"{args.inputs:,} inputs, seed {args.seed}", flush=True)
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda each: _supervised(each, max(1, args.inputs * each.share // shares), args.seed), chosen)
        return 0 if all(list(done)) else 1


if __name__ == "__main__":
    sys.exit(main())
