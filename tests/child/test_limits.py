"""Limits of a worker, each in a real process: they cannot be taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tserve.child import limits

ROOT = str(Path(__file__).parents[2])
APPLY = """
import json, os, resource, sys
from tserve.child.limits import apply
from tserve.domain.plan import WorkerSpec

def limited(**limits):
    apply(WorkerSpec("m", "/", "h", 1, **limits))
"""
MIB = 1 << 20
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def run(code: str, **environ: str) -> Any:
    """What a fresh Python prints, as JSON."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", APPLY + code],
        env={**clean, "PYTHONPATH": ROOT, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- memory


ALLOCATE = """
def fits(mib):
    try:
        return len(bytearray(mib << 20)) == mib << 20
    except MemoryError:
        return False

print(json.dumps([fits(100), fits(1500), fits(100)]))
"""


@pytest.mark.parametrize("imports", ["", "import torch", "import torch; torch.ones(64, 64) @ torch.ones(64, 64)"])
def test_memory(imports: str) -> None:
    """Within the limit all is well, beyond it Python says so, and goes on; with torch and without."""
    assert run(f"{imports}\nlimited(memory_limit=1024 << 20)\n{ALLOCATE}") == [True, False, True]


def test_torch_within_a_limit() -> None:
    """It is imported after the limit is set, as in a fresh interpreter, and says so when there is no more."""
    code = """
limited(memory_limit=1024 << 20)
import torch
small = torch.ones(10 << 20, dtype=torch.uint8)
try:
    torch.ones(1500 << 20, dtype=torch.uint8)
    print("null")
except RuntimeError as e:
    print(json.dumps("allocate" in str(e)))
"""
    assert run(code) is True


def test_the_memory_of_what_a_worker_starts() -> None:
    code = """
limited(memory_limit=512 << 20)
import subprocess
done = subprocess.run([sys.executable, "-c", "bytearray(600 << 20)"], capture_output=True, text=True)
print(json.dumps(done.stderr.strip().splitlines()[-1]))
"""
    assert run(code) == "MemoryError"


def test_memory_that_is_too_little_to_begin_with() -> None:
    code = """
from tserve.child.diagnosis import LoadFailed
held = bytearray(200 << 20)
try:
    limited(memory_limit=100 << 20)
except LoadFailed as e:
    print(json.dumps([e.report(), resource.getrlimit(resource.RLIMIT_DATA)]))
"""
    report, kept = run(code)
    assert (report["reason"], report["code"], report["hopeless"]) == ("out_of_memory", 507, True)
    assert report["detail"].startswith("worker_memory_limit is 100 MiB; this worker has 2")
    assert kept == [-1, -1]


# ---- files and processes


def test_files() -> None:
    code = """
limited(file_limit=40)
opened = []
try:
    while True:
        opened.append(open("/dev/null"))
except OSError as e:
    error = e.strerror
print(json.dumps([len(opened), error, resource.getrlimit(resource.RLIMIT_NOFILE)]))
"""
    opened, error, both = run(code)
    assert 20 <= opened <= 40
    assert (error, both) == ("Too many open files", [40, 40])


def test_a_limit_is_never_raised() -> None:
    code = """
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
limited(file_limit=60)
print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))
"""
    assert run(code) == [50, 50]


@pytest.mark.skipif(os.getuid() != 0, reason="to become a user without other processes takes root")
def test_processes() -> None:
    """The kernel does not hold root to it."""
    code = f"""
import tserve.child.limits as limits, signal
limits.OTHER_TASKS = 5
root = limits._tasks_of_user()
os.setuid({61_000 + os.getpid() % 1000})
mine = limits._tasks_of_user()
limited(process_limit=3)
children = []
try:
    while len(children) < 50:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError as e:
    error = e.strerror
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(json.dumps([root > 1, mine, len(children), error]))
"""
    assert run(code) == [True, 1, 1 + 3 + 5 - 1, "Resource temporarily unavailable"]


@pytest.mark.skipif(os.getuid() != 0, reason="to become a user without other processes takes root")
def test_processes_of_a_user_that_runs_more_elsewhere() -> None:
    """The tasks of other containers count and are not to be seen; a worker must be able to start."""
    code = f"""
import tserve.child.limits as limits, threading
limits.OTHER_TASKS = -3
os.setuid({61_000 + os.getpid() % 1000})
before = resource.getrlimit(resource.RLIMIT_NPROC)
limited(process_limit=3)
threading.Thread(target=int).start()
print(json.dumps(list(resource.getrlimit(resource.RLIMIT_NPROC)) == list(before)))
"""
    assert run(code) is True


def test_nothing_is_limited_unless_asked_for() -> None:
    code = f"""
def all_of_them():
    return [resource.getrlimit(n) for n in range(resource.RLIM_NLIMITS if hasattr(resource, "RLIM_NLIMITS") else 16)]
before = all_of_them()
limited()
print(json.dumps([all_of_them() == before, [os.environ.get(name) for name in {VARIABLES}], "torch" in sys.modules]))
"""
    assert run(code) == [True, [None] * 4, False]


# ---- threads


def variables(threads: int, **environ: str) -> list[str]:
    code = f"limited(threads={threads})\nprint(json.dumps([os.environ[name] for name in {VARIABLES}]))"
    found: list[str] = run(code, **environ)
    return found


def test_threads_are_told_to_libraries_to_come() -> None:
    assert variables(3) == ["3"] * 4


def test_what_the_operator_set_stays() -> None:
    """But for OMP_NUM_THREADS, about which the server has decided before."""
    assert variables(3, OMP_NUM_THREADS="7", MKL_NUM_THREADS="5", OPENBLAS_NUM_THREADS="6") == ["3", "5", "6", "3"]


@pytest.mark.parametrize("first", ["import torch", "limited(threads=1); import torch"])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_torch(first: str, threads: int) -> None:
    """Imported before, as in a worker that was forked, and after."""
    after = "" if "limited" in first else f"limited(threads={threads})"
    expected = 1 if "limited" in first else threads
    assert run(f"{first}\n{after}\nprint(json.dumps(torch.get_num_threads()))") == expected


def test_threads_of_a_numpy_that_was_imported_before() -> None:
    pytest.importorskip("threadpoolctl")
    code = """
import numpy
limited(threads=1)
import threadpoolctl
print(json.dumps([each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"]))
"""
    assert run(code) == [1]
    assert run(code, OPENBLAS_NUM_THREADS="x") in ([1], [os.cpu_count()]), "nonsense is OpenBLAS's to judge"
    as_in_a_zygote = "import os; os.environ['OPENBLAS_NUM_THREADS'] = '1'; import numpy; "
    as_in_a_zygote += "os.environ['OPENBLAS_NUM_THREADS'] = '2'"
    assert run(as_in_a_zygote + code) == [min(2, os.cpu_count() or 1)]


def test_torch_is_not_imported_for_it() -> None:
    code = "limited(threads=2)\nprint(json.dumps([name for name in ('torch', 'numpy') if name in sys.modules]))"
    assert run(code) == []


def test_what_is_counted_is_what_the_kernel_limits() -> None:
    before = limits._private_memory()
    held = bytearray(64 * MIB)
    assert limits._private_memory() - before >= len(held)
