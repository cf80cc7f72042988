"""StreamPredictions2: requests and answers of sequences in one call (spec/inference.md section 8.3)."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import trio

from tserve.errors import BadRequest, TserveError
from tserve.grpc.asking import Asking, pass_on
from tserve.grpc.messages import INFERENCE, message, message_of
from tserve.grpc.methods import Refusal, Send, cancel_at, server_stops

AT_ONCE = 16  # requests in the hand of one call: no more are read before some are answered
ERROR_DOMAIN = "tserve"
_Prediction = message_of(INFERENCE, "PredictionResponse")
_Status = message("google.rpc.Status")
_ErrorInfo = message("google.rpc.ErrorInfo")


class Conversation:
    """Requests of one sequence are answered in their order, as are those of stateless models; sequences side by side.

    What fails is told in an answer, and the conversation goes on.
    """

    def __init__(self, asking: Asking, send: Send, refuse: Callable[[TserveError], Refusal]) -> None:
        self._asking = asking
        self._send = send
        self._refuse = refuse
        self._room = trio.Semaphore(AT_ONCE)
        self._last: dict[str, trio.Event] = {}  # of each sequence: set when its latest request is over
        self._named: tuple[str, str, str] = ("", "", "")  # model, version and sequence of the latest request

    async def run(self, requests: AsyncIterator[Any], stopping: trio.Event) -> None:
        """Until the client has said that it sends no more, and all is answered.

        When the server stops, what is in hand is answered, and the rest of the conversation UNAVAILABLE.
        """
        unreadable: TserveError | None = None
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as reading:
                nursery.start_soon(cancel_at, stopping, reading)
                try:
                    async for request in requests:
                        await self._room.acquire()
                        self._begin(nursery, request)
                except TserveError as error:
                    unreadable = error
            for over in list(self._last.values()):
                await over.wait()
            nursery.cancel_scope.cancel()
        if unreadable is not None:
            raise unreadable
        if reading.cancelled_caught:
            raise server_stops()

    def _begin(self, nursery: trio.Nursery, request: Any) -> None:
        sequence, error = "", None
        try:
            sequence = self._sequence_of(request)
        except TserveError as e:
            sequence, error = request.sequence_id, e
        before, over = self._last.get(sequence), trio.Event()
        self._last[sequence] = over
        nursery.start_soon(self._take_turn, request, sequence, error, before, over)

    async def _take_turn(
        self, request: Any, sequence: str, error: TserveError | None, before: trio.Event | None, over: trio.Event
    ) -> None:
        try:
            if before is not None:
                await before.wait()
            try:
                if error is not None:
                    raise error
                await pass_on(await self._asking.begun(request, str(uuid.uuid4()), sequence=sequence), self._send)
            except TserveError as e:
                await self._send(self._in_band(e, sequence))
        finally:
            if self._last.get(sequence) is over:
                del self._last[sequence]
            over.set()
            self._room.release()

    def _sequence_of(self, request: Any) -> str:
        """The id of its sequence, empty for a stateless model.

        A request without an id begins a sequence or goes on with the one before it.  Raises TserveError.
        """
        stateful, starts = self._asking.is_stateful(request), self._asking.starts(request)
        if not stateful:
            if request.sequence_id or starts:
                raise BadRequest(
                    f"Model {request.model_name} is not stateful: it knows no sequences.",
                    cause={"field": "sequence_id", "allowed": "a model with sequenceBatching in its YAML"},
                )
            return ""
        sequence = request.sequence_id
        if not sequence and starts:
            sequence = f"ts-seq-{uuid.uuid4()}"
        elif not sequence and self._named[:2] == (request.model_name, request.model_version):
            sequence = self._named[2]
        if not sequence:
            raise BadRequest(
                "The first request of a sequence needs a sequence_id, or the input that says that it is the first.",
                cause={"field": "sequence_id"},
            )
        self._named = (request.model_name, request.model_version, sequence)
        return str(sequence)

    def _in_band(self, error: TserveError, sequence: str) -> Any:
        """As the status of a call would say it; its second line, the class, is the reason in the details."""
        refusal = self._refuse(error)
        text, _, reason = refusal.details.rpartition("\n")
        info = _ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=dict(refusal.trailing))
        status = _Status(code=refusal.code, message=text)
        status.details.add(type_url=f"type.googleapis.com/{info.DESCRIPTOR.full_name}", value=info.SerializeToString())
        return _Prediction(sequence_id=sequence or None, status=status)
