"""The archives kept by content: `<state>/archives/<sha-256>/` holds an unpacked archive, complete and on the disk.

Work in progress lives in `<state>/incoming/`.  Content comes into being by one rename and goes by one, so that a kill
at any moment leaves nothing half in `archives`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path

import trio

from tserve.archive import sources
from tserve.archive.downloads import AtHand, Digests, Downloads, UnderWay
from tserve.archive.fetch.rules import Rules
from tserve.archive.intake_process import not_saved, take_in
from tserve.archive.integrity import Claim, Integrity
from tserve.archive.quota import Quota
from tserve.domain.versions import Archive
from tserve.errors import StateUnusable

_log = logging.getLogger("tserve.archive")
_INTAKES = 2  # at once: they are bound by the disk and by one core each
_THREADS = 4
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Keep:
    """Takes archives in, and lets them go when no version stands on them any more.

    One per state folder; `prepare` comes first.  All methods are called from the Trio thread.
    """

    def __init__(
        self,
        state_dir: Path,
        model_store: Path,
        *,
        allowed_urls: Sequence[str],
        rules: Rules | None = None,
        integrity: Integrity | None = None,
        quota: Quota | None = None,
    ) -> None:
        """Raises BadConfiguration for an `allowed_urls` expression that cannot be compiled."""
        state_dir = state_dir.absolute()
        self._archives = state_dir / "archives"
        self._incoming = state_dir / "incoming"
        self._model_store = model_store.absolute()
        self._allowed = sources.compile_allowed(allowed_urls)
        self._downloads = Downloads(
            state_dir / "downloads", self._incoming, self._model_store, allowed=self._allowed, rules=rules or Rules()
        )
        self.integrity = integrity or Integrity()
        self._quota = quota or Quota()
        self._intakes = trio.CapacityLimiter(_INTAKES)
        self._threads = trio.CapacityLimiter(_THREADS)
        self._moves = trio.Lock()  # between looking whether content is kept and moving it
        self._pins: Counter[str] = Counter()

    async def prepare(self, referenced: Collection[str], urls: Collection[str] = ()) -> None:
        """Make the folders and remove what an earlier run left behind; `urls` are what versions were registered from.

        Raises StateUnusable.
        """
        await trio.to_thread.run_sync(self._prepare, frozenset(referenced), frozenset(urls), limiter=self._threads)

    def _prepare(self, referenced: frozenset[str], urls: frozenset[str]) -> None:
        try:
            for folder in (self._archives, self._incoming):
                folder.mkdir(parents=True, exist_ok=True)
            _fsync_folder(self._archives.parent)
            self._downloads.sweep(urls)
            leftovers = list(self._incoming.iterdir())
            kept = {entry.name: entry for entry in self._archives.iterdir() if _DIGEST.fullmatch(entry.name)}
        except OSError as error:
            raise StateUnusable(f"the archives cannot be kept in {self._archives.parent}: {error}") from error
        for path in leftovers + [path for digest, path in kept.items() if digest not in referenced]:
            _remove(path)
        for digest in referenced - kept.keys():
            _log.error("the archive %s of a registered version is missing in %s", digest, self._archives)

    def startup_sources(self) -> list[str]:
        """What `load_models=all` registers, by name."""
        return sources.startup_sources(self._model_store, self._downloads.is_link)

    def downloads(self) -> list[UnderWay]:
        """The downloads that registrations wait for."""
        return list(self._downloads.under_way())

    def model_dir(self, digest: str) -> Path:
        """The folder a worker gets as its model folder."""
        return self._archives / digest

    @asynccontextmanager
    async def admit(
        self,
        url: str,
        *,
        signed: bool = False,
        claim: Claim | None = None,
        referenced: Callable[[str], bool] | None = None,
        digests: Digests = lambda _: (),
    ) -> AsyncIterator[Archive]:
        """Resolve, fetch, hash, unpack, check and keep what `url` names; no `release` can take it inside the block.

        `signed`: the request of an http(s) URL is signed for S3.  `claim`: what the archive has to be.  With
        `referenced` the content is released behind the block, so that a registration that came to nothing leaves
        nothing; `digests` says what is registered from a URL.  Raises IntegrityFailed, ModelNotFound, InvalidModel,
        DownloadFailed or InternalServer.
        """
        claim = claim or Claim()
        self.integrity.consider(url, claim)
        named = await self._resolve(url)
        demand = self.integrity.demand(claim, self._model_store, named)
        async with self._at_hand(named, signed=signed, digests=digests) as at_hand:
            source = at_hand.source
            desk = self._incoming / uuid.uuid4().hex
            try:
                async with self._intakes:
                    archive = await take_in(source, desk, quota=self._quota, demand=demand)
                await self._place(desk / "model", source, archive.digest)
            finally:
                await self._clear(desk)
            at_hand.digest = archive.digest
            try:
                yield archive
            finally:
                self._pins[archive.digest] -= 1
                if referenced is not None:
                    await self.release(archive.digest, referenced=referenced)

    async def forget(self, url: str, *, digests: Digests) -> None:
        """Let the download of a URL go, unless a version is registered from it."""
        await self._downloads.forget(url, digests=digests)

    async def _resolve(self, url: str) -> sources.Source | sources.Remote:
        return await trio.to_thread.run_sync(
            sources.resolve, url, self._model_store, self._allowed, self._downloads.folder, limiter=self._threads
        )

    def _at_hand(
        self, source: sources.Source | sources.Remote, *, signed: bool, digests: Digests
    ) -> AbstractAsyncContextManager[AtHand]:
        if isinstance(source, sources.Remote):
            return self._downloads.at_hand(source, signed=signed, digests=digests)
        return nullcontext(AtHand(source))

    async def release(self, digest: str, *, referenced: Callable[[str], bool]) -> None:
        """Delete content that no block of `admit` pins and no version references; other content stays."""
        with trio.CancelScope(shield=True):
            async with self._moves:
                # Asked here, not by the caller: while it waited for the lock the content may have found a new user.
                if self._pins[digest] or referenced(digest):
                    return
                doomed = self._incoming / uuid.uuid4().hex
                await trio.to_thread.run_sync(_move_away, self.model_dir(digest), doomed, limiter=self._threads)
            await self._clear(doomed)

    async def _place(self, model: Path, source: sources.Source, digest: str) -> None:
        """Move the content in and pin it, as one step in the eyes of `release`."""
        with trio.CancelScope(shield=True):
            async with self._moves:
                try:
                    await trio.to_thread.run_sync(_move_in, model, self.model_dir(digest), limiter=self._threads)
                except OSError as error:
                    raise not_saved(source, "io_error", f"the archive cannot be moved in: {error.strerror}") from error
                self._pins[digest] += 1

    async def _clear(self, path: Path) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_remove, path, limiter=self._threads)


def _move_in(model: Path, kept: Path) -> None:
    """Content that is kept already stays: workers stand in its folder."""
    if not kept.exists():
        model.rename(kept)
        _fsync_folder(kept.parent)


def _move_away(kept: Path, doomed: Path) -> None:
    """What cannot be moved stays until the next start: the version that stood on it is gone all the same."""
    try:
        if kept.exists():
            kept.rename(doomed)
            _fsync_folder(kept.parent)
    except OSError as error:
        _log.warning("cannot remove %s: %s", kept, error)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """What cannot be removed now is tried again at the next start."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot remove %s: %s", path, error)
