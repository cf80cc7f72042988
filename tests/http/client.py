"""A plain HTTP/1.1 client over h11, which keeps order and spelling of what comes back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11
import trio

PATIENCE_S = 20.0
HOST = ("Host", "localhost")


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """Its only value."""
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1, self.headers
        return values[0] if values else None

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.headers]


class Connection:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)

    async def ask(
        self, method: str, target: str, body: bytes | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> Answer:
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        framing = [] if body is None else [("Content-Length", str(len(body)))]
        await self._send(h11.Request(method=method, target=target, headers=[HOST, *framing, *headers]))
        if body:
            await self.more(body)
        await self.end()
        return await self.answer()

    async def begin(self, method: str, target: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        """A request's head alone."""
        await self._send(h11.Request(method=method, target=target, headers=[HOST, *headers]))

    async def more(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def raw(self, method: str, data: bytes) -> Answer:
        """Bytes as they are; `method` says how the answer is framed."""
        self._h11.send(h11.Request(method=method, target="/", headers=[HOST]))
        self._h11.send(h11.EndOfMessage())
        await self.stream.send_all(data)
        return await self.answer()

    async def answer(self) -> Answer:
        head = await self._event()
        assert isinstance(head, h11.Response), head
        body = b""
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage), event
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers.raw_items()]
        return Answer(head.status_code, head.reason.decode(), headers, body)

    async def ended(self) -> bool:
        """Whether the server closes the connection, without a reset and without another byte."""
        with trio.fail_after(PATIENCE_S):
            return await self.stream.receive_some() == b""

    async def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            await self.stream.send_all(data)

    async def _event(self) -> h11.Event | type:
        with trio.fail_after(PATIENCE_S):
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(await self.stream.receive_some())
            return event


@dataclass(frozen=True)
class Client:
    address: tuple[str, int]

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        async with await trio.open_tcp_stream(*self.address) as stream:
            yield Connection(stream)

    async def ask(
        self, method: str, target: str, body: bytes | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> Answer:
        """One request on a connection of its own."""
        async with self.connect() as connection:
            return await connection.ask(method, target, body, headers)

    async def get(self, target: str) -> Answer:
        return await self.ask("GET", target)

    async def post(self, target: str, body: bytes | None = b"", content_type: str | None = None) -> Answer:
        return await self.ask("POST", target, body, [] if content_type is None else [("Content-Type", content_type)])

    async def put(self, target: str) -> Answer:
        return await self.ask("PUT", target)

    async def delete(self, target: str) -> Answer:
        return await self.ask("DELETE", target)
