"""One download: redirects one by one, every step checked; continued where it broke off; bounded in size and time."""

from __future__ import annotations

import logging
import os
import random
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

import httpcore
import httpx
import trio

from tserve import __version__
from tserve.archive.fetch.network import AddressRefused, Answer, Door
from tserve.archive.fetch.rules import (
    NotAllowed,
    Passing,
    Progress,
    Rules,
    TransferFailed,
    Validator,
    matches,
    without_query,
)
from tserve.archive.fetch.signing import sign
from tserve.archive.fetch.urls import checked_url, same_origin

_log = logging.getLogger("tserve.archive")
_REDIRECTS: Final = 8
_PIECE: Final = 1 << 20  # bytes collected for each write, which takes a thread
_LOG_EVERY_S: Final = 10.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_PART: Final = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
_REDIRECT: Final = (301, 302, 303, 307, 308)
_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)
_BROKEN: Final = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError, EOFError)
_HEADERS: Final = {"User-Agent": f"tserve/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
_WRITERS: Final = trio.CapacityLimiter(4)


class Transfer:
    """Gets `url` into the file `path`; made for one use.

    `progress` moves while it runs.  `known` is what a copy that the caller has is; the transfer then may come to
    nothing new.
    """

    def __init__(
        self,
        url: str,
        path: Path,
        *,
        rules: Rules,
        allowed: Sequence[re.Pattern[str]],
        tls: ssl.SSLContext,
        progress: Progress,
        signed: bool = False,
        known: Validator | None = None,
    ) -> None:
        self._url = url
        self._path = path
        self._rules = rules
        self._allowed = allowed
        self._tls = tls
        self._progress = progress
        self._is_object = url.lower().startswith("s3://")
        self._signed = signed or self._is_object
        self._known = known or Validator()
        self._region: str | None = None
        self._logged = 0.0
        self.validator = Validator()

    async def run(self) -> bool:
        """True when the file is there, False when the content is still the known one.

        Raises TransferFailed, NotAllowed.  After a failure or a cancel it can be run again and goes on from what the
        file holds.
        """
        with trio.move_on_after(self._rules.total_s):
            return await self._tries()
        raise TransferFailed("timeout", f"not done within download_timeout, {self._rules.total_s:g} s")

    async def _tries(self) -> bool:
        failures, furthest = 0, self._progress.received
        while True:
            self._progress.tries += 1
            try:
                return await self._try()
            except Passing as error:
                if self._progress.received > furthest:
                    failures, furthest = 0, self._progress.received
                failures += 1
                if failures > self._rules.retries:
                    raise
                wait_s = max(error.wait_s, _FIRST_WAIT_S * 2 ** (failures - 1) * random.uniform(0.5, 1.0))
                wait_s = min(wait_s, _LONGEST_WAIT_S)
                shown = without_query(self._url)
                _log.info("download of %s broke off (%s); on again in %.1f s", shown, error.detail, wait_s)
            await trio.sleep(wait_s)

    async def _try(self) -> bool:
        rules = self._rules
        url, origin = self._url, None
        async with Door(rules.addresses, self._tls, connect_s=rules.connect_s, idle_s=rules.idle_s) as door:
            for _ in range(_REDIRECTS + 1):
                target, headers = await self._request(url, origin)
                origin = origin or target
                async with self._answer(door, target, headers) as answer:
                    if (again := self._redirect(answer, target)) is None:
                        return await self._take(answer)
                    url = again
        raise TransferFailed("too_many_redirects", f"more than {_REDIRECTS} redirects")

    # -- asking

    async def _request(self, url: str, origin: httpx.URL | None) -> tuple[httpx.URL, dict[str, str]]:
        """Where to send it, and with which headers.  Credentials stay with the origin that the client named."""
        headers = dict(_HEADERS)
        if self._is_object:
            signed = await sign(url, endpoint=self._rules.s3_endpoint, region=self._region)
            target = checked_url(signed.url)
            self._region = signed.region
            headers |= signed.headers
        else:
            target = checked_url(url)
            if self._signed and (origin is None or same_origin(origin, target)):
                headers |= (await sign(str(target))).headers
        if self._progress.received and (validator := self.validator.for_range):
            headers |= {"Range": f"bytes={self._progress.received}-", "If-Range": validator}
        elif not self._progress.received:
            headers |= self._known.condition
        return target, headers

    @asynccontextmanager
    async def _answer(self, door: Door, url: httpx.URL, headers: dict[str, str]) -> AsyncIterator[Answer]:
        """The answer to one request; what breaks while it is read becomes Passing or TransferFailed."""
        try:
            async with door.get(url, headers) as answer:
                yield answer
        except AddressRefused as error:
            detail = f"{error.host} has an address that is not public ({error.what}); see allow_private_addresses"
            raise NotAllowed("address_not_allowed", detail) from error
        except _BROKEN as error:
            if (distrust := _distrust(error)) is not None:
                raise TransferFailed("certificate", f"the certificate is not trusted: {distrust}") from error
            raise Passing(*_told(error, self._rules)) from error

    def _redirect(self, answer: Answer, asked: httpx.URL) -> str | None:
        """The next URL to ask, checked like the first; None for an answer that is no redirect."""
        if self._is_object:
            return self._other_region(answer)
        if answer.status not in _REDIRECT:
            return None
        try:
            target = asked.join(answer.headers["location"])
        except (KeyError, httpx.InvalidURL, ValueError, UnicodeError) as error:
            raise TransferFailed("bad_redirect", "a redirect that leads nowhere") from error
        url = str(checked_url(str(target)))
        if asked.scheme == "https" and target.scheme != "https":
            raise NotAllowed("bad_redirect", "a redirect from https to http")
        if not matches(url, self._allowed):
            raise NotAllowed("redirect_not_allowed", f"redirects to {without_query(url)}, which is not allowed")
        return url

    def _other_region(self, answer: Answer) -> str | None:
        """S3 names the region of a bucket that is not where it was looked for: sign for that one, once."""
        region = answer.headers.get("x-amz-bucket-region")
        if answer.status in (*_REDIRECT, 400) and region and region != self._region:
            if re.fullmatch(r"[a-z0-9-]{1,40}", region) is None:
                raise TransferFailed("bad_redirect", "a region that is none")
            self._region = region
            return self._url
        if answer.status in _REDIRECT:
            raise TransferFailed("bad_redirect", "a redirect that names no region")
        return None

    # -- taking

    async def _take(self, answer: Answer) -> bool:
        status, progress = answer.status, self._progress
        if status == 304 and self._known.condition and not progress.received:
            return False
        if status == 206 and progress.received and self._goes_on(answer):
            pass
        elif status in (200, 203):
            progress.received = 0
            headers = answer.headers
            self.validator = Validator(headers.get("etag"), headers.get("last-modified"))
        elif status in (206, 416):
            progress.received = 0
            raise Passing("bad_answer", f"status {status} for another part than was asked for")
        elif status in _PASSING:
            raise Passing("status", f"status {status}", wait_s=_retry_after(answer))
        else:
            raise TransferFailed("status", f"status {status}")
        length = _length(answer)
        progress.expected = None if length is None else progress.received + length
        self._check_size(max(progress.received, progress.expected or 0))
        await self._write(answer)
        if progress.expected not in (None, progress.received):
            raise Passing("cut_short", f"{progress.received} of {progress.expected} bytes came")
        _log.info("downloaded %s, %d bytes", without_query(self._url), progress.received)
        return True

    def _goes_on(self, answer: Answer) -> bool:
        """Whether a partial answer is the rest of the very content that the file has the beginning of."""
        part = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", answer.headers.get("content-range", "")
        )
        known, etag = self._progress.expected, answer.headers.get("etag")
        return (
            part is not None
            and int(part[1]) == self._progress.received
            and (known is None or part[2] in ("*", str(known)))
            and etag in (None, self.validator.etag)
        )

    async def _write(self, answer: Answer) -> None:
        """Append the body; whatever ends it, what was read is in the file, and `received` says how much that is."""
        pending = bytearray()
        with self._opened() as file:
            try:
                async for chunk in answer.body:
                    pending += chunk
                    self._check_size(self._progress.received + len(pending))
                    if len(pending) >= _PIECE:
                        await self._flush(file, pending)
            finally:
                with trio.CancelScope(shield=True):
                    await self._flush(file, pending)

    def _opened(self) -> IO[bytes]:
        try:
            file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb")
            file.truncate(self._progress.received)
        except OSError as error:
            raise _not_written(error) from error
        return file

    async def _flush(self, file: IO[bytes], pending: bytearray) -> None:
        try:
            await trio.to_thread.run_sync(self._write_out, file.fileno(), bytes(pending), limiter=_WRITERS)
        except OSError as error:
            raise _not_written(error) from error
        self._progress.received += len(pending)
        pending.clear()
        if (now := trio.current_time()) >= self._logged + _LOG_EVERY_S:
            self._logged = now
            of = "" if self._progress.expected is None else f" of {self._progress.expected}"
            _log.info("downloading %s: %d%s bytes", without_query(self._url), self._progress.received, of)

    def _write_out(self, file: int, piece: bytes) -> None:
        disk = os.fstatvfs(file)
        expected = (self._progress.expected or 0) - self._progress.received
        if disk.f_bavail * disk.f_frsize - max(expected, len(piece)) < self._rules.free_bytes:
            detail = f"it would leave less than min_free_space, {self._rules.free_bytes} bytes, on the disk"
            raise TransferFailed("no_space", detail)
        written = 0
        while written < len(piece):
            written += os.pwrite(file, piece[written:], self._progress.received + written)

    def _check_size(self, size: int) -> None:
        if size > self._rules.most_bytes:
            raise TransferFailed("too_large", f"more than max_download_size, {self._rules.most_bytes} bytes")


def _not_written(error: OSError) -> TransferFailed:
    return TransferFailed("no_space", f"the download cannot be written: {error.strerror}")


def _distrust(error: BaseException | None) -> str | None:
    """What speaks against the server's certificate, if that is what an error comes from."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return None if error is None else error.verify_message


def _length(answer: Answer) -> int | None:
    """What the answer says of its own length."""
    text = answer.headers.get("content-length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _retry_after(answer: Answer) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0.0


def _told(error: BaseException, rules: Rules) -> tuple[str, str]:
    """Reason and detail of a connection that failed or broke."""
    if isinstance(error, httpcore.ConnectTimeout):
        return "timeout", f"no connection within download_connect_timeout, {rules.connect_s:g} s"
    if isinstance(error, httpcore.TimeoutException):
        return "timeout", f"no byte within download_idle_timeout, {rules.idle_s:g} s"
    if isinstance(error, httpcore.ConnectError):
        return "no_connection", "no connection could be made"
    return "broken", f"the connection broke ({type(error).__name__})"
