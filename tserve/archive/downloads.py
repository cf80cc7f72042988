"""Files of other machines at hand: fetched once for all who ask, kept while a version stands on them.

`<state>/downloads/<sha-256 of the url>` holds the file of a registered version's URL; a link in the model store has the
file's own name and leads to it (DESIGN.md section 11).  Work in progress lies in `<state>/incoming/`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tserve.archive.fetch.rules import NotAllowed, Progress, Rules, TransferFailed, Validator, without_query
from tserve.archive.sources import Remote, Source, remote
from tserve.errors import DownloadFailed, InternalServer, ModelNotFound, TserveError

if TYPE_CHECKING:
    import ssl

    from tserve.archive.fetch.transfer import Transfer

_log = logging.getLogger("tserve.archive")
_TRANSFERS = 8  # at once
_LONGEST_NAME = 255  # bytes, of most file systems
_KEY = re.compile(r"[0-9a-f]{64}")

Digests = Callable[[str], Collection[str]]  # of the archives of versions that are registered from a URL


@dataclass(slots=True)
class AtHand:
    """A file to take in; whoever did says what archive it was."""

    source: Source
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A download that somebody waits for; `users` is how many do."""

    url: str
    users: int
    progress: Progress


@dataclass(slots=True)
class _Flight:
    """One download and all who wait for it: the first carries it out, the next goes on if the first leaves."""

    path: Path
    progress: Progress = field(default_factory=Progress)
    lock: trio.Lock = field(default_factory=trio.Lock)
    users: int = 0
    transfer: Transfer | None = None
    fresh: bool | None = None  # whether `path` holds something new; None while it is under way
    error: TransferFailed | None = None


class Downloads:
    """One per state folder; `sweep` comes first.  All methods but `sweep` are called from the Trio thread."""

    def __init__(
        self, folder: Path, incoming: Path, store: Path, *, allowed: Sequence[re.Pattern[str]], rules: Rules
    ) -> None:
        self.folder = folder
        self._incoming = incoming
        self._store = store
        self._allowed = allowed
        self._rules = rules
        self._transfers = trio.CapacityLimiter(_TRANSFERS)
        self._threads = trio.CapacityLimiter(2)
        self._changes = trio.Lock()  # between looking who stands on a file and moving it
        self._flights: dict[tuple[str, bool], _Flight] = {}
        self._claims: dict[str, list[str]] = {}  # file name to the URLs that are being registered under it
        self._validators: dict[str, Validator] = {}  # of kept files
        self._tls: ssl.SSLContext | None = None

    # -- at start

    def sweep(self, registered: Collection[str]) -> None:
        """Make the folder, remove what no registered URL stands for, mend the links.  Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {self._kept(url): remote(url) for url in registered if "://" in url}
        for path in self.folder.iterdir():
            if path not in wanted:
                self._remove(path)
        for entry in self._in_store():
            kept = self._target(entry)
            if kept is not None and (kept not in wanted or wanted[kept].name != entry.name or not kept.exists()):
                self._remove(entry)
        for kept, source in wanted.items():
            if kept.exists():
                self._link(source)

    def _in_store(self) -> list[Path]:
        try:
            return list(self._store.iterdir())
        except OSError as error:
            _log.warning("cannot look for links to downloads in %s: %s", self._store, error)
            return []

    def is_link(self, path: Path) -> bool:
        """Whether this entry of the store is a link of ours."""
        return self._target(path) is not None

    def under_way(self) -> Iterator[UnderWay]:
        for (url, _), flight in self._flights.items():
            if flight.fresh is None:
                yield UnderWay(url, flight.users, flight.progress)

    # -- while registering

    @asynccontextmanager
    async def at_hand(self, source: Remote, *, signed: bool, digests: Digests) -> AsyncIterator[AtHand]:
        """The file of `source`, for the block to take in.

        Behind the block it is kept and linked into the store if a version with the digest that the block found is
        registered from this URL, else nothing is left of it.  Raises ModelNotFound (not allowed), InternalServer (the
        store has a file of that name) and DownloadFailed.
        """
        self._claim(source)
        key = (source.url, signed)
        flight = self._flights.setdefault(key, _Flight(self._incoming / uuid.uuid4().hex))
        flight.users += 1
        at_hand = AtHand(Source(source.url, str(flight.path), source.kind))
        try:
            await self._see_down(source, flight, signed)
            if not flight.fresh:
                at_hand.source = Source(source.url, str(self._kept(source.url)), source.kind)
            yield at_hand
        finally:
            with trio.CancelScope(shield=True):
                await self._settle(source, key, at_hand.digest, digests)

    async def forget(self, url: str, *, digests: Digests) -> None:
        """Remove the file and the link of a URL that no version is registered from any more."""
        if "://" not in url:
            return
        source = remote(url)
        with trio.CancelScope(shield=True):
            async with self._changes:
                if url not in self._claims.get(source.name, ()):  # else that registration looks when it ends
                    await self._drop_unused(source, digests)

    def _claim(self, source: Remote) -> None:
        """Reserve the file's name: whoever comes second with another URL is told at once.  Raises InternalServer."""
        if len(os.fsencode(source.name)) > _LONGEST_NAME:
            raise _failed(source, TransferFailed("name_too_long", "the name of the file is too long"))
        entry = self._store / source.name
        held = os.path.lexists(entry) and (self._target(entry) != self._kept(source.url))
        if held or any(url != source.url for url in self._claims.get(source.name, ())):
            cause = {"reason": "file_exists", "detail": "the model store has a file of that name, from elsewhere"}
            raise InternalServer(f"Model file already exists {source.name}", cause=cause)
        self._claims.setdefault(source.name, []).append(source.url)

    async def _see_down(self, source: Remote, flight: _Flight, signed: bool) -> None:
        """Have the file fetched, by us or by someone who was here before; all share one end."""
        async with flight.lock:
            if flight.fresh is None and flight.error is None:
                try:
                    if flight.transfer is None:
                        flight.transfer = await self._prepared(source, flight, signed)
                    async with self._transfers:
                        flight.fresh = await flight.transfer.run()
                except TransferFailed as error:
                    flight.error = error
            if flight.error is not None:
                _log.warning("download of %s failed: %s", without_query(source.url), flight.error.detail)
                raise _failed(source, flight.error) from flight.error

    async def _prepared(self, source: Remote, flight: _Flight, signed: bool) -> Transfer:
        """The transfer's modules are big: they come when they are first needed, out of the loop's way."""
        make = await trio.to_thread.run_sync(_import_transfer, limiter=self._threads)
        if self._tls is None:
            self._tls = await trio.to_thread.run_sync(_make_tls, limiter=self._threads)
        kept = self._kept(source.url).exists()
        return make(
            source.url,
            flight.path,
            rules=self._rules,
            allowed=self._allowed,
            tls=self._tls,
            progress=flight.progress,
            signed=signed,
            known=self._validators.get(source.url) if kept else None,
        )

    # -- afterwards

    async def _settle(self, source: Remote, key: tuple[str, bool], digest: str | None, digests: Digests) -> None:
        flight = self._flights[key]
        async with self._changes:
            flight.users -= 1
            if not flight.users:
                del self._flights[key]
            self._claims[source.name].remove(source.url)
            if not self._claims[source.name]:
                del self._claims[source.name]
            if digest is not None and digest in digests(source.url):
                if flight.fresh and flight.transfer is not None:
                    await trio.to_thread.run_sync(self._keep, source, flight.path, limiter=self._threads)
                    self._validators[source.url] = flight.transfer.validator
                await trio.to_thread.run_sync(self._link, source, limiter=self._threads)
            elif source.url not in self._claims.get(source.name, ()):
                await self._drop_unused(source, digests)
            if not flight.users:
                await trio.to_thread.run_sync(self._remove, flight.path, limiter=self._threads)

    async def _drop_unused(self, source: Remote, digests: Digests) -> None:
        if digests(source.url):
            return
        self._validators.pop(source.url, None)
        kept, entry = self._kept(source.url), self._store / source.name
        if self._target(entry) == kept:
            await trio.to_thread.run_sync(self._remove, entry, limiter=self._threads)
        await trio.to_thread.run_sync(self._remove, kept, limiter=self._threads)

    def _keep(self, source: Remote, path: Path) -> None:
        """Others may still read the file under its first name, so it gets a second one."""
        kept, made = self._kept(source.url), path.with_suffix(".kept")
        try:
            try:
                os.link(path, made)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, made)
            _fsync(made)
            made.replace(kept)
        except OSError as error:
            made.unlink(missing_ok=True)
            _log.warning("the download of %s cannot be kept: %s", without_query(source.url), error)

    def _link(self, source: Remote) -> None:
        """The version does not need the link: a store that cannot be written to is no reason to refuse it."""
        entry, kept = self._store / source.name, self._kept(source.url)
        try:
            if kept.exists() and not os.path.lexists(entry):
                entry.symlink_to(kept)
        except OSError as error:
            _log.warning("no link %s to the download: %s", entry, error)

    def _remove(self, path: Path) -> None:
        """What cannot be removed now is tried again at the next start."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot remove %s: %s", path, error)

    def _kept(self, url: str) -> Path:
        return self.folder / hashlib.sha256(url.encode()).hexdigest()

    def _target(self, entry: Path) -> Path | None:
        """Which kept file an entry of the store is our link to; None for everything else."""
        try:
            target = entry.readlink()
        except (OSError, ValueError):
            return None
        return target if target.parent == self.folder and _KEY.fullmatch(target.name) else None


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _import_transfer() -> type[Transfer]:
    from tserve.archive.fetch.transfer import Transfer

    return Transfer


def _make_tls() -> ssl.SSLContext:
    from tserve.archive.fetch.network import make_tls

    return make_tls()


def _failed(source: Remote, error: TransferFailed) -> TserveError:
    """The recorded sentences (spec/management.md section 1.4): not allowed is 404, everything else 400."""
    cause = {"reason": error.reason, "detail": error.detail}
    if isinstance(error, NotAllowed):
        return ModelNotFound(f"Given URL {source.url} does not match any allowed URL(s)", cause=cause)
    return DownloadFailed(source.url, cause=cause)
