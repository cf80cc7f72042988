"""A worker process: loads one model, then answers one batch at a time over an inherited socket.

Blocking throughout, no event loop.  It ends when its socket does, and is killed when the server dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator

from tserve.child.batches import answer
from tserve.child.loader import LoadFailed, Model, load
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import Decoder, Frame, Kind, decode_batch, encode_reply

_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 18


def main(argv: list[str]) -> None:
    """`argv`: the socket's descriptor and the server's pid."""
    descriptor, parent = (int(word) for word in argv)
    _die_with(parent)
    # Ctrl-C in the server's terminal is the server's business: it drains its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        # A worker that is killed must not take its last words with it in a block buffer.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    with socket.socket(fileno=descriptor) as channel:
        _serve(channel)
    # The interpreter's last collection would walk all of torch: 0.7 s of a worker's end without this, 0.15 with it.
    gc.freeze()


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the signal was asked for
        os._exit(1)


def _serve(channel: socket.socket) -> None:
    frames = _frames(channel)
    first = next(frames, None)
    if first is None:
        return
    spec = WorkerSpec(**first.meta)
    try:
        model = load(spec)
    except LoadFailed as e:
        channel.sendall(Frame(Kind.LOADED, first.id, e.report()).encode())
        sys.exit(1)
    channel.sendall(Frame(Kind.LOADED, first.id, {"ok": True}).encode())
    worker = os.getpid()
    for frame in frames:
        reply = _reply(model, spec, frame).encode()
        if os.getpid() != worker:  # a child that the handler forked came back here: it must neither answer nor read
            os._exit(0)
        channel.sendall(reply)


def _reply(model: Model, spec: WorkerSpec, frame: Frame) -> Frame:
    return encode_reply(frame.id, answer(model, spec, decode_batch(frame)))


def _frames(channel: socket.socket) -> Iterator[Frame]:
    decoder = Decoder()
    with contextlib.suppress(ConnectionResetError):  # the server is gone: the same as its hanging up
        while data := channel.recv(_CHUNK):
            yield from decoder.feed(data)
