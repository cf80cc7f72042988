"""One call: its messages in, its answer out, and every way in which it may end before."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import trio
from google.protobuf.message import DecodeError

from tserve.errors import BadRequest, TserveError
from tserve.grpc.codes import Code
from tserve.grpc.headers import ANSWER, DONE, Head, trailers
from tserve.grpc.http2 import STREAM_WINDOW, Connection, Stream
from tserve.grpc.inbox import Inbox, Message, unpacked
from tserve.grpc.methods import Call, Leave, Method, Refusal, Service, Tell, server_stops
from tserve.net.timers import Timer, Timers
from tserve.net.told import told

_log = logging.getLogger("tserve.grpc")
Answered = Callable[[str, str, float], None]
Admit = Callable[[Call], None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A method where it is served: how to read what it is sent, and whom it is open to."""

    name: str
    service: Service
    method: Method
    read: Callable[[bytes], Any]
    admit: Admit
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all calls of the server share."""

    calls: trio.Nursery
    timers: Timers
    stopping: trio.Event
    answered: Answered
    running: set[Exchange]
    fewer: trio.lowlevel.ParkingLot


class Client(Protocol):
    """The connection that a call came over."""

    http2: Connection
    address: str

    def touch(self) -> None:
        """There is something to be sent."""
        ...


class Exchange:
    """`take` is to be called for each bit that comes, the end of a call that has none included."""

    def __init__(self, endpoint: Endpoint, head: Head, stream: Stream, client: Client, around: Surroundings) -> None:
        self.done = False
        self._at, self._head, self._stream, self._client, self._around = endpoint, head, stream, client, around
        self._inbox = Inbox(endpoint.most_bytes)
        self._messages: deque[Message] = deque()
        self._waiting_bytes = 0
        self._arrived = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._begun_at = trio.current_time()
        self._admitted = self._started = self._answering = False
        self._leave: Leave | None = None
        self._scope: trio.CancelScope | None = None
        self._call = Call(endpoint.name, client.address, str(uuid.uuid4()), head.metadata, around.stopping)
        around.running.add(self)
        self._timer: Timer | None = None
        if head.timeout_s is not None:
            self._timer = around.timers.after(head.timeout_s, self._expire)

    @property
    def held(self) -> int:
        """Bytes of messages that nobody has taken yet."""
        return self._inbox.held + self._waiting_bytes

    # -- the client's side

    def take(self, data: bytes) -> None:
        """More of what the client says; `stream.ended` when that was the last of it."""
        if self.done:
            return
        try:
            if not self._admitted:  # nothing is kept for a client that may not ask
                self._at.admit(self._call)
                self._admitted = True
            for message in self._inbox.feed(data):
                self._messages.append(message)
                self._waiting_bytes += len(message[1])
            if not self._started and (self._at.method.streams_requests or self._stream.ended):
                self._start()
        except (TserveError, Refusal) as e:
            self.refuse(e)
        if not self.done:
            self._ask_for_more()
            self._arrived.unpark_all()

    def _ask_for_more(self) -> None:
        """As much as completes a message that has begun, else a little; nothing while messages wait to be taken."""
        if self._waiting_bytes < STREAM_WINDOW and not self._stream.ended:
            http2 = self._client.http2
            http2.widen(self._stream, max(self._inbox.missing, STREAM_WINDOW if self._is_low() else 0))
            self._client.touch()

    def _is_low(self) -> bool:
        return self._stream.window < STREAM_WINDOW // 2

    def gave_up(self) -> None:
        """The client did."""
        self._settle(Code.CANCELLED)
        self._stop()

    def room(self) -> None:
        """What was sent is on its way."""
        self._room.unpark_all()

    # -- its end

    def cut(self) -> None:
        """The server ends, and with it what runs for the call."""
        self.refuse(server_stops())

    def refuse(self, why: TserveError | Refusal) -> None:
        """For a reason that its method has no part in."""
        self._end(why)
        self._stop()

    def _expire(self) -> None:
        self.refuse(Refusal(Code.DEADLINE_EXCEEDED, "Deadline Exceeded", {}))

    def _stop(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        if self._scope is not None:
            self._scope.cancel()
        self._arrived.unpark_all()
        self._room.unpark_all()

    def _settle(self, code: Code) -> None:
        """Nothing that comes later counts."""
        if self.done:
            return
        self.done = True
        if self._timer is not None:
            self._timer.cancel()
        self._messages.clear()
        self._waiting_bytes = 0
        self._inbox = Inbox(0)
        self._around.answered(self._at.name, code.name, trio.current_time() - self._begun_at)
        if self._scope is None:
            self._gone()

    def _gone(self) -> None:
        self._stream.user = None  # no circle of references: nothing shall wait for the garbage collector
        self._around.running.discard(self)
        self._around.fewer.unpark_all()

    def _end(self, outcome: Any) -> None:
        """Answer with a message, with None behind a stream of them, or with what went wrong."""
        if self.done:
            return
        code, http2 = Code.OK, self._client.http2
        if isinstance(outcome, TserveError):
            outcome = self._at.service.refuse(outcome)
        if isinstance(outcome, Refusal):
            code = outcome.code
            block = trailers(code, outcome.text, outcome.trailing)
            http2.headers(self._stream, block if self._answering else ANSWER + block, end=True)
        else:
            if outcome is not None:
                self._put(outcome)
            http2.headers(self._stream, DONE if self._answering else ANSWER + DONE, end=True)
        self._settle(code)
        self._client.touch()

    def _put(self, message: Any) -> None:
        if not self._answering:
            self._answering = True
            self._client.http2.headers(self._stream, ANSWER)
        data = message.SerializeToString()
        self._client.http2.body(self._stream, b"\0" + len(data).to_bytes(4, "big") + data)

    # -- serving it

    def _start(self) -> None:
        """Raises TserveError, Refusal."""
        method = self._at.method
        self._started = True
        if method.streams_requests:
            self._spawn(self._readable())
            return
        if len(self._messages) != 1:
            count = "no message" if not self._messages else f"{len(self._messages)} messages"
            raise Refusal(Code.INTERNAL, f"A unary call has one message, this has {count}.", {})
        if method.begin is None or self._messages[0][0]:
            self._spawn(None)
            return
        request = _read(self._at.read, self._messages.popleft()[1])
        self._waiting_bytes = 0
        leave = self._begin(request, self._tell)
        if not self.done:
            self._leave = leave

    def _tell(self, outcome: Any) -> None:
        """What was begun has come to its end: there is nothing to leave any more."""
        self._leave = None
        self._end(outcome)

    def _begin(self, request: Any, tell: Tell) -> Leave:
        """Raises TserveError, Refusal."""
        assert self._at.method.begin is not None
        try:
            return self._at.method.begin(request, self._call, tell)
        except (TserveError, Refusal):
            raise
        except Exception as e:  # a bug costs its own call
            raise self._bug(e) from e

    def _spawn(self, requests: AsyncIterator[Any] | None) -> None:
        self._scope = trio.CancelScope()
        self._around.calls.start_soon(self._run, self._scope, requests)

    async def _run(self, scope: trio.CancelScope, requests: AsyncIterator[Any] | None) -> None:
        outcome: Any = server_stops()
        try:
            with scope:
                if not self.done:  # else the client has left already
                    outcome = await self._serve(requests)
        except Exception as e:  # a bug costs its own call
            outcome = self._bug(e)
        finally:
            self._end(outcome)
            self._gone()

    async def _serve(self, requests: AsyncIterator[Any] | None) -> Any:
        """The outcome."""
        method = self._at.method
        try:
            request = requests
            if request is None:
                request = _read(self._at.read, await unpacked(self._messages.popleft(), self._at.most_bytes))
                self._waiting_bytes = 0
            if method.serve is None:
                return await told(partial(self._begin, request))
            return await method.serve(request, self._call, *([self._send] if method.streams_replies else ()))
        except (TserveError, Refusal) as e:
            return e

    def _bug(self, error: Exception) -> Refusal:
        """One of ours, told as one."""
        _log.error("%s failed", self._at.name, exc_info=error)
        return Refusal(Code.INTERNAL, f"Internal server error: {type(error).__name__}", {"reason": "bug"})

    async def _send(self, message: Any) -> None:
        """Waits while what was sent before has not gone out."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._put(message)
        self._client.touch()
        while self._stream.unsent and not self.done:
            await self._room.park()

    async def _readable(self) -> AsyncIterator[Any]:
        while True:
            while self._messages:
                message = self._messages.popleft()
                self._waiting_bytes -= len(message[1])
                self._ask_for_more()
                yield _read(self._at.read, await unpacked(message, self._at.most_bytes))
            if self._stream.ended or self.done:
                return
            await self._arrived.park()


def _read(read: Callable[[bytes], Any], data: bytes) -> Any:
    """The message.  Raises BadRequest."""
    try:
        return read(data)
    except DecodeError:
        raise BadRequest("The request is not a message of its type.", cause={"reason": "undecodable"}) from None
