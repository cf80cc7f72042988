"""How metrics leave a worker: with the next frame, or in one of their own when none is due."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tserve.child import outbox as outbox_module
from tserve.child.outbox import Outbox
from tserve.domain.wire import METRICS, METRICS_LOST, Frame, Kind


class Sent:
    """An outbox that sends into a list, as a worker's loads each frame that it sends."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.arrived = threading.Semaphore(0)
        self.outbox = Outbox(self.send)

    def send(self, frame: Frame) -> None:
        self.outbox.load(frame)
        self.frames.append(frame)
        self.arrived.release()

    def wait(self) -> Frame:
        assert self.arrived.acquire(timeout=30)
        return self.frames[-1]

    def lines(self) -> list[Any]:
        return [line for frame in self.frames for line in frame.meta.get(METRICS, [])]


@pytest.fixture
def sent() -> Iterator[Sent]:
    made = Sent()
    yield made
    if made.outbox._timer is not None:
        made.outbox._timer.join()


def test_they_travel_with_the_frame_that_is_due(sent: Sent) -> None:
    """Loading, a batch: neither needs a thread."""
    for number in range(2):
        sent.outbox.begin()
        assert sent.outbox.put(f"a{number}")
        assert sent.outbox.put(f"b{number}")
        assert sent.outbox._timer is None
        sent.outbox.end()
        sent.send(Frame(Kind.REPLY, number, {}))
    sent.send(Frame(Kind.REPLY, 2, {}))
    assert [frame.meta for frame in sent.frames] == [{METRICS: ["a0", "b0"]}, {METRICS: ["a1", "b1"]}, {}]


def test_without_a_frame_they_get_one(sent: Sent) -> None:
    """A few of them one for all, after a pause."""
    sent.outbox.end()
    for number in range(5):
        assert sent.outbox.put(str(number))
    assert sent.wait() == Frame(Kind.METRICS, 0, {METRICS: ["0", "1", "2", "3", "4"]})
    sent.outbox.put("later")
    assert sent.wait().meta == {METRICS: ["later"]}


def test_a_long_batch_does_not_hold_them(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "LONG_S", -1.0)
    sent.outbox.begin()
    sent.outbox.put("amid")
    assert sent.wait().meta == {METRICS: ["amid"]}


def test_what_waits_is_bounded_by_number(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MOST_LINES", 3)
    for round_ in range(2):
        for number in range(5):
            assert sent.outbox.put(f"{round_}{number}")
        sent.send(Frame(Kind.REPLY, 1, {}))
    assert [frame.meta for frame in sent.frames] == [
        {METRICS: ["00", "01", "02"], METRICS_LOST: 2},
        {METRICS: ["10", "11", "12"], METRICS_LOST: 2},
    ]


def test_what_waits_is_bounded_by_size(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MOST_CHARACTERS", 10)
    for text in ("x" * 11, "1234", "5678", "too much", "90"):
        assert sent.outbox.put(text)
    sent.send(Frame(Kind.REPLY, 1, {}))
    assert sent.outbox.put("x" * 10)
    sent.send(Frame(Kind.REPLY, 2, {}))
    assert sent.frames[0].meta == {METRICS: ["1234", "5678", "90"], METRICS_LOST: 2}
    assert sent.frames[1].meta == {METRICS: ["x" * 10]}


def test_threads(sent: Sent) -> None:
    """Nothing is lost between those who emit and those who send."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            threading.Thread(target=lambda t=t: [sent.outbox.put(f"{t}.{n}") for n in range(300)]) for t in range(6)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            sent.send(Frame(Kind.REPLY, 1, {}))
        sent.send(Frame(Kind.REPLY, 1, {}))
    finally:
        sys.setswitchinterval(interval)
    assert sorted(sent.lines()) == sorted(f"{t}.{n}" for t in range(6) for n in range(300))
    assert sent.outbox._characters == 0


def test_without_another_thread_they_wait(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    sent.outbox.end()
    assert sent.outbox.put("patient")
    monkeypatch.undo()
    sent.send(Frame(Kind.REPLY, 1, {}))
    assert sent.lines() == ["patient"]


def test_emitting_amid_emitting(sent: Sent) -> None:
    """A signal's handler, or what the garbage collector ends, may emit while a frame is being sent."""

    class Nosy(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            sent.outbox.put("amid")

    sent.outbox.put("first")
    sent.send(Frame(Kind.REPLY, 1, Nosy()))
    sent.send(Frame(Kind.REPLY, 2, {}))
    assert sent.lines() == ["first", "amid"]


def test_a_forked_child_has_no_outbox(sent: Sent) -> None:
    """It would write into its parent's socket."""
    sent.outbox.put("the parent's")
    pid = os.fork()
    if pid == 0:
        taken = sent.outbox.put("the child's")
        sent.outbox.flush()
        os._exit(10 + taken + len(sent.frames))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10
    sent.outbox.flush()
    assert sent.lines() == ["the parent's"]


def test_the_server_is_gone() -> None:
    def fail(frame: Frame) -> None:
        raise BrokenPipeError

    outbox = Outbox(fail)
    outbox.put("for nobody")
    outbox.flush()
