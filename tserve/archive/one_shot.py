"""Processes that answer one question and end: JSON on standard input, JSON on standard output.

A process and not a thread: hashing, unpacking and the AWS SDK would fight the event loop for the interpreter
(DESIGN.md section 6), and what is imported for them leaves with them.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import trio

_log = logging.getLogger("tserve.archive")
_ROOT = str(Path(__file__).resolve().parents[2])
# The package is found by its root whatever the working folder; the root is then taken off the path again, so that
# what lies beside the package cannot stand before the standard library.
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import tserve; del sys.path[0]; "
    "from tserve.archive.{module} import main; main()"
)
_MAX_ANSWER = 4 << 20  # a manifest of the largest size allowed, escaped, and some warnings
_REAP_S = 5.0  # a killed process that is still there after this hangs in the kernel


async def ask(module: str, request: bytes) -> tuple[bytes, int | None]:
    """Standard output and exit status of a process that runs `main` of this module of tserve.archive.

    Raises OSError when it cannot be started.  When cancelled, it is killed and reaped first.
    """
    command = [sys.executable, "-I", "-c", _BOOT.format(module=module), _ROOT, str(os.getpid())]
    # From this thread: the kernel ties the parent-death signal to the thread that forks, and Trio's own process
    # opening forks in a pooled thread, which ends after some seconds and would take the process with it.
    process = subprocess.Popen(  # noqa: ASYNC220
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/", process_group=0
    )
    try:
        ended = os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
    try:
        output = await _talk(process, request)
        await trio.lowlevel.wait_readable(ended)
        return output, process.poll()
    finally:
        await _end(process, ended)


async def _talk(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    output = bytearray()
    async with _stream(process.stdin) as to_child, _stream(process.stdout) as from_child:
        with suppress(trio.BrokenResourceError):  # it died; its exit status says so
            await to_child.send_all(request)
        await to_child.aclose()
        async for piece in from_child:
            output += piece
            if len(output) > _MAX_ANSWER:
                break
    return bytes(output)


def _stream(pipe: IO[bytes]) -> trio.lowlevel.FdStream:
    with pipe:
        return trio.lowlevel.FdStream(os.dup(pipe.fileno()))


async def _end(process: subprocess.Popen[bytes], ended: int) -> None:
    """Kill and reap the process if it still runs."""
    if process.poll() is None:
        process.kill()
        with trio.CancelScope(shield=True), trio.move_on_after(_REAP_S):
            await trio.lowlevel.wait_readable(ended)
        if process.poll() is None:
            _log.error("the process %d does not end after SIGKILL", process.pid)
    os.close(ended)
