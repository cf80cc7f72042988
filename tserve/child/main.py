"""A worker process: loads one model, then answers one batch at a time over an inherited socket.

Blocking throughout, no event loop.  It ends when its socket does, and is killed when the server dies.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from tserve.child.batches import ClientsLeft, answer
from tserve.child.diagnosis import LoadFailed
from tserve.child.limits import apply as apply_limits
from tserve.child.loader import load
from tserve.child.outbox import Outbox
from tserve.child.surroundings import Surroundings
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import Answers, Decoder, Frame, Kind, decode_batch, encode_reply

if TYPE_CHECKING:
    from tserve.child.coroutines import Coroutines

_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 18


def main(argv: list[str]) -> None:
    """`argv`: the socket's descriptor and the server's pid."""
    end = End()
    descriptor, server = (int(word) for word in argv)
    die_with(server)
    # Ctrl-C in the server's terminal is the server's business: it drains its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line_buffered()
    work(socket.socket(fileno=descriptor), end)


def die_with(server: int) -> None:
    """Be killed when the server dies; the end of this process if it is dead by now."""
    if not outlived_by(server, signal.SIGKILL):
        os._exit(1)


def outlived_by(server: int, number: int) -> bool:
    """Ask for a signal when the server dies; whether it still lived then."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    return os.getppid() == server


def line_buffered() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A worker that is killed must not take its last words with it in a block buffer.  Whole lines, though: with
        # PYTHONUNBUFFERED the parts of one print go out singly, and another thread's metric amid them.
        stream.reconfigure(line_buffering=True, write_through=False, errors="backslashreplace")  # type: ignore[union-attr]


class _Output(logging.StreamHandler[TextIO]):
    """To what is the standard output at that moment: a handler may replace it, or have it put back."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


def work(channel: socket.socket, end: End) -> None:
    """Serve one model over a connected socket, to the end of the process."""
    # What handlers log from INFO on is in the model log, as the contract has it (spec/inference.md section 17).
    logging.basicConfig(level=logging.INFO, handlers=[_Output()])
    # A worker's folder is the archive that is kept: no place for the core of a crash, or of a late worker's SIGABRT.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    del sys.argv[1:]  # nothing that a handler should take for its own
    channel.set_inheritable(False)
    faulthandler.enable()  # a crash in native code, or SIGABRT for a worker that does not answer, says where
    with channel, end:
        _serve(channel)


class End:
    """The end of a worker once all exit hooks have run, without taking the interpreter apart: with torch in it that
    would take a quarter of a second.

    To be made before any other hook is registered: the first one is called last.
    """

    def __init__(self) -> None:
        self._code = 0
        self._process = -1
        atexit.register(self._leave)

    def __enter__(self) -> None:
        """This process is the worker."""
        self._process = os.getpid()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SystemExit):
            code = error.code
            self._code = 0 if code is None else code & 0xFF if isinstance(code, int) else 1
        elif error is not None:
            self._code = 1

    def _leave(self) -> None:
        """A process that a handler forked ends as it likes."""
        if os.getpid() == self._process:
            logging.shutdown()  # whose own hook is older than this one, and so would be called later
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):  # a handler may have closed it
                    stream.flush()
            os._exit(self._code)


def _serve(channel: socket.socket) -> None:
    frames = _frames(channel)
    first = next(frames, None)
    if first is None:
        return
    spec, worker = WorkerSpec(**first.meta), os.getpid()
    sending = threading.Lock()  # a piece may come from a thread of the handler's

    def send(frame: Frame) -> None:
        outbox.load(frame)
        data = frame.encode()
        _leave_unless(worker)
        with sending:
            channel.sendall(data)

    outbox = Outbox(send)
    _emit_to(outbox)
    try:
        _load_and_serve(spec, first.id, _Talk(channel, frames, send), outbox)
    finally:
        outbox.flush()  # a handler that calls sys.exit may have emitted why


def _load_and_serve(spec: WorkerSpec, number: int, talk: _Talk, outbox: Outbox) -> None:
    coroutines = _coroutines(spec, talk.send)
    try:
        apply_limits(spec)
        model = coroutines.load() if coroutines is not None else load(spec)
    except LoadFailed as e:
        talk.send(Frame(Kind.LOADED, number, e.report()))
        sys.exit(1)
    outbox.end()
    talk.send(Frame(Kind.LOADED, number, {"ok": True}))
    surroundings = Surroundings()
    if coroutines is not None:
        coroutines.serve(model, talk.frames, surroundings.restore)
        return
    for frame in talk.frames:
        if frame.kind is Kind.BATCH:
            outbox.begin()
            requests, began = decode_batch(frame), time.perf_counter()
            answers = answer(model, spec, requests, talk.pieces_of(frame.id))
            took_s = time.perf_counter() - began
            outbox.end()
            talk.send(encode_reply(frame.id, answers, took_s=took_s))
            surroundings.restore()


def _emit_to(outbox: Outbox) -> None:
    """Have the metrics of handlers go to the server without a detour through the output."""
    from ts.metrics import emission  # imported by every handler that has a context

    emission.sink = outbox.put


class _Talk:
    """What is said of a batch while it is in hand: pieces of it, and back that nobody waits for them any more."""

    def __init__(self, channel: socket.socket, frames: Iterator[Frame], send: Callable[[Frame], None]) -> None:
        self._channel, self.frames, self.send = channel, frames, send
        self._worker = os.getpid()
        self._gone = -1

    def pieces_of(self, number: int) -> Callable[[Answers], None]:
        def send_pieces(pieces: Answers) -> None:
            self._listen()
            if self._gone == number:
                raise ClientsLeft
            self.send(encode_reply(number, pieces, kind=Kind.PIECE))

        return send_pieces

    def _listen(self) -> None:
        """No batch comes before this one is answered."""
        _leave_unless(self._worker)
        while select.select([self._channel], [], [], 0)[0]:
            frame = next(self.frames, None)
            if frame is None:
                raise ClientsLeft  # the server included
            self._gone = frame.id


def _coroutines(spec: WorkerSpec, send: Callable[[Frame], None]) -> Coroutines | None:
    if not spec.asynchronous:
        return None
    from tserve.child.coroutines import Coroutines  # asyncio is not everybody's

    return Coroutines(spec, send)


def _leave_unless(worker: int) -> None:
    """A child that the model's code forked may come back from there: it must neither answer nor read."""
    if os.getpid() != worker:
        os._exit(0)


def _frames(channel: socket.socket) -> Iterator[Frame]:
    decoder = Decoder()
    with contextlib.suppress(ConnectionResetError):  # the server is gone: the same as its hanging up
        while data := channel.recv(_CHUNK):
            yield from decoder.feed(data)
