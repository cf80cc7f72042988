"""What a worker may use: memory, processes, open files and threads, set in the worker itself before it loads its model.

The kernel's limits hold for each process of the worker by itself; docs/configuration.md says what each one means.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tserve.child.diagnosis import LoadFailed
from tserve.domain.plan import WorkerSpec

# The kernel counts the tasks, threads among them, of the user on the whole host, so that there must be room for others.
OTHER_TASKS = 1024
_THREAD_VARIABLES = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_BLAS_SETTERS = (
    "openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "scipy_openblas_set_num_threads64_",
)


def apply(spec: WorkerSpec) -> None:
    """Set what `spec` limits in this process, for good.  Raises LoadFailed when it is beyond its memory already."""
    if spec.threads is not None:
        _limit_threads(spec.threads)
    if spec.file_limit:
        _limit(resource.RLIMIT_NOFILE, spec.file_limit)
    if spec.process_limit:
        _limit_processes(_tasks_of_user() + spec.process_limit + OTHER_TASKS)
    if spec.memory_limit:
        _limit_memory(spec.memory_limit)


def _limit(what: int, most: int) -> None:
    """Both limits, so that only root can raise it again; never above what the process was given itself."""
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))


def _limit_processes(most: int) -> None:
    """Containers that share a user share the kernel's count and see only their own part of it: if there is no room for
    so much as a thread, the limit goes again.  What the server counts holds all the same."""
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (most if before[1] < 0 else min(most, before[1]), before[1]))
    try:
        probe = threading.Thread(target=int)
        probe.start()
        probe.join()
    except RuntimeError:
        resource.setrlimit(resource.RLIMIT_NPROC, before)
        print("worker_process_limit: this user runs too much elsewhere for the kernel to hold it", file=sys.stderr)
    else:
        _limit(resource.RLIMIT_NPROC, most)


def _limit_memory(most: int) -> None:
    used = _private_memory()
    if used >= most:
        detail = (
            f"worker_memory_limit is {most >> 20} MiB; this worker has {used >> 20} MiB of private memory before it "
            "loads the model"
        )
        raise LoadFailed("out_of_memory", detail, code=507, hopeless=True)
    _limit(resource.RLIMIT_DATA, most)


def _private_memory() -> int:
    """What RLIMIT_DATA counts, in bytes: private writable memory, whether touched or not."""
    found = re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _tasks_of_user() -> int:
    """Processes and threads of this process's user, as far as they can be seen."""
    user, tasks = os.getuid(), 0
    for process in os.scandir("/proc"):
        if process.name.isdecimal():
            try:
                if process.stat().st_uid == user:
                    tasks += len(os.listdir(f"/proc/{process.name}/task"))  # noqa: PTH208 - many, and names only
            except OSError:  # it ended meanwhile
                continue
    return tasks


def _limit_threads(threads: int) -> None:
    """For libraries that are loaded later by their variables, for those that are here by a call."""
    # The server has already decided between OMP_NUM_THREADS of its own environment and its settings.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    unset = [name for name in _THREAD_VARIABLES if not os.environ.get(name)]
    os.environ.update(dict.fromkeys(unset, str(threads)))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    own = os.environ["OPENBLAS_NUM_THREADS"]
    if "numpy" in sys.modules and own.isdecimal():
        _limit_blas_threads(max(1, int(own)))


def _limit_blas_threads(threads: int) -> None:
    """numpy has read its variable when it was imported; its OpenBLAS takes another number at any time."""
    for setter in blas_setters():
        setter(threads)


@functools.cache
def blas_setters() -> tuple[Callable[[int], object], ...]:
    """How to tell each OpenBLAS that is loaded by now.  The zygote looks for its workers: it takes 10 ms."""
    found: list[Callable[[int], object]] = []
    for path in sorted(set(re.findall(r"\S+openblas\S+", Path("/proc/self/maps").read_text()))):
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        except OSError:  # the name of a file that is no library
            continue
        found += filter(None, (getattr(library, name, None) for name in _BLAS_SETTERS))
    return tuple(found)
