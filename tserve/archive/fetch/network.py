"""The one door through which sources are fetched: resolve once, check every address, connect to one that was checked.

httpcore asks this backend for each new connection, at each redirect too; nothing else here opens one.  Environment
variables about proxies are never read: a proxy would resolve the name again, out of our sight.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import certifi
import httpcore
import httpx
import trio

from tserve.archive.fetch.policy import AddressPolicy

_log = logging.getLogger("tserve.archive")
_MOST_ADDRESSES = 4  # tried one after the other


class AddressRefused(Exception):
    """A host whose address the policy forbids; `what` says which kind it is, never the number."""

    def __init__(self, host: str, what: str) -> None:
        super().__init__(f"{host} has an address that may not be connected to: {what}")
        self.host, self.what = host, what


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connections to addresses that the policy does not object to."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._inner = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises AddressRefused, and httpcore's ConnectError and ConnectTimeout."""
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            addresses = await self._addresses(host, port)
            for address in addresses[:-1]:
                try:
                    return await self._inner.connect_tcp(address, port)
                except httpcore.ConnectError:
                    continue
            return await self._inner.connect_tcp(addresses[-1], port)
        raise httpcore.ConnectTimeout(f"no connection to {host} within {timeout:g} s")

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        raise AddressRefused("a Unix socket", "local")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> list[str]:
        """All addresses of a host, numbers as text; one that is forbidden forbids them all."""
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            if (objection := self._policy.objection(address)) is not None:
                _log.warning("not connecting to %s at %s: %s", host, address, objection)
                raise AddressRefused(host, objection)
        if not addresses:
            raise httpcore.ConnectError(f"{host} has no address")
        return addresses[:_MOST_ADDRESSES]


class Body:
    """The bytes of an answer as they come.  May be left at any point, unlike httpcore's own generators."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._chunks: AsyncIterator[bytes] = aiter(stream)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def aclose(self) -> None:
        """Close the connection, then have the generators run into that, so that none is left suspended."""
        await self._stream.aclose()
        with suppress(httpcore.NetworkError, httpcore.ProtocolError):
            async for _ in self._chunks:
                pass


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: httpx.Headers
    body: Body


class Door:
    """HTTP/1.1 through a GuardedBackend; closed by its user.

    No cookies, no redirects of its own, no proxies.  Not httpx's client on top: that reads redirects before anyone can
    judge them, and logs whole URLs, the keys of presigned ones too.
    """

    def __init__(self, policy: AddressPolicy, tls: ssl.SSLContext, *, connect_s: float, idle_s: float) -> None:
        self._pool = httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=GuardedBackend(policy))
        self._timeout = {"connect": connect_s, "read": idle_s, "write": idle_s, "pool": connect_s}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._pool.aclose()

    @asynccontextmanager
    async def get(self, url: httpx.URL, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """Raises AddressRefused and httpcore's errors."""
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent = [(b"Host", url.netloc), *((name.encode(), value.encode()) for name, value in headers.items())]
        request = httpcore.Request("GET", target, headers=sent, extensions={"timeout": self._timeout})
        response = await self._pool.handle_async_request(request)
        body = Body(response.stream)
        try:
            yield Answer(response.status, httpx.Headers(response.headers), body)
        finally:
            await body.aclose()


def make_tls() -> ssl.SSLContext:
    """The system's certificate authorities (SSL_CERT_FILE names others), certifi's on a system without any."""
    paths = ssl.get_default_verify_paths()
    return ssl.create_default_context(cafile=None if paths.cafile or paths.capath else certifi.where())
