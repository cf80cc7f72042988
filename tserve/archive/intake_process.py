"""Starts the intake process for one archive, waits for it and turns its answer into an Archive or an error.

A subprocess and not a thread: hashing and unpacking would fight the event loop for the interpreter
(DESIGN.md section 6).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import trio

from tserve.archive.sources import Source
from tserve.domain.model_config import ModelConfig
from tserve.domain.versions import Archive, Manifest
from tserve.errors import InternalServer, InvalidModel, TserveError

_log = logging.getLogger("tserve.archive")
_ROOT = str(Path(__file__).resolve().parents[2])
# The package is found by its root whatever the working folder; the root is then taken off the path again, so that
# what lies beside the package cannot stand before the standard library.
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import tserve; del sys.path[0]; "
    "from tserve.archive.intake import main; main()"
)
_MAX_ANSWER = 4 << 20  # a manifest of the largest size allowed, escaped, and some warnings
_REAP_S = 5.0  # a killed process that is still there after this hangs in the kernel


async def take_in(source: Source, desk: Path) -> Archive:
    """Have `source` unpacked into `desk`/model.  Whatever the end, `desk` is the caller's to remove.

    Raises InternalServer ("Failed to save model: …") or InvalidModel with the cause.  When cancelled, the process is
    killed and reaped first.
    """
    request = {"source": source.path, "kind": source.kind, "desk": str(desk)}
    try:
        output, status = await _run(json.dumps(request).encode())
    except OSError as error:
        raise not_saved(source, "intake_died", f"the intake process cannot be started: {error}") from error
    try:
        if status != 0:
            raise ValueError("no clean end")
        answer = json.loads(output)
        archive = _refusal(source, answer) if "refused" in answer else _archive(answer)
        warnings = answer.get("warnings", [])
    except (ValueError, LookupError, TypeError) as error:
        raise not_saved(source, "intake_died", f"the intake process ended with status {status}") from error
    if isinstance(archive, TserveError):
        raise archive
    for warning in warnings:
        _log.warning("archive %r: %s", source.url, warning)
    return archive


def not_saved(source: Source, reason: str, detail: str) -> InternalServer:
    """The recorded sentence for everything that cannot be unpacked or kept (spec/management.md section 1.4)."""
    return InternalServer(f"Failed to save model: {source.url}", cause={"reason": reason, "detail": detail})


def _refusal(source: Source, answer: dict[str, Any]) -> TserveError:
    if answer["refused"] == "manifest":  # the sentence names another file than the one that is broken: recorded
        cause = {"reason": answer["reason"], "detail": answer["detail"]}
        return InvalidModel("Failed to parse signature.json.", cause=cause)
    return not_saved(source, answer["reason"], answer["detail"])


def _archive(answer: dict[str, Any]) -> Archive:
    fields = answer["config"]
    config = None
    if fields is not None:
        written: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        config = ModelConfig(**written, given=frozenset(fields))
    return Archive(answer["digest"], answer["size"], Manifest(**answer["manifest"]), config)


async def _run(request: bytes) -> tuple[bytes, int | None]:
    """Standard output and exit status of one intake process.  Raises OSError when it cannot be started."""
    command = [sys.executable, "-I", "-c", _BOOT, _ROOT, str(os.getpid())]
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
    async with _stream(process.stdin) as to_intake, _stream(process.stdout) as from_intake:
        with suppress(trio.BrokenResourceError):  # it died; its exit status says so
            await to_intake.send_all(request)
        await to_intake.aclose()
        async for piece in from_intake:
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
            _log.error("the intake process %d does not end after SIGKILL", process.pid)
    os.close(ended)
