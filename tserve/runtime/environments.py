"""The environments of models that bring requirements: `<state>/environments/<name>/`, each made once and shared.

One is made in its place and marked when it is complete, since the scripts in it name that place; what has no mark is
removed.  They go when no version needs them any more.  The process that makes one is tserve/child/environment.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import trio

from tserve.domain.environments import MARK, NO_ENVIRONMENT, python_of
from tserve.domain.plan import Failure
from tserve.runtime.family import Family
from tserve.runtime.fresh import environ_without, spawn
from tserve.runtime.launcher import Exit, LaunchFailed
from tserve.runtime.process import ChildProcess
from tserve.runtime.requirements import BadRequirements, Requirements, environment_name

NO_PLACE, NO_PACKAGES = "environment_failed", "dependencies_failed"
_AT_ONCE = 2  # pip is bound by the network and by one core
_THREADS = 2
_TAIL = 8 << 10  # of pip's words, for the client
_log = logging.getLogger("tserve.environment")


class _Building:
    """An environment on its way; `failure` is why it did not come, None when the making was given up."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failure: Failure | None = None


class Environments:
    """One per state folder; all methods are called from the Trio thread.

    `python` is the interpreter whose packages they see, `options` those of pip that decide what is found, `hidden`
    are the variables that pip does not get, but for its own ones.
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        *,
        timeout_s: float,
        python: str | None = None,
        options: Sequence[tuple[str, str]] = (),
        hidden: Collection[str] = (),
    ) -> None:
        self._folder = folder
        self._family = family
        self._timeout_s = timeout_s
        self._python = python or sys.executable
        self._options = tuple(options)
        self._hidden = hidden
        self._names: dict[Requirements, str] = {}
        self._pins: Counter[str] = Counter()
        self._builds: dict[str, _Building] = {}
        self._limit = trio.CapacityLimiter(_AT_ONCE)
        self._threads = trio.CapacityLimiter(_THREADS)
        self._moves = trio.Lock()  # between looking whether one is there and moving it away

    @contextlib.asynccontextmanager
    async def held(self, wanted: Requirements) -> AsyncIterator[str]:
        """The Python of an environment that has what is wanted; made if need be, and not removed inside the block.

        Raises LaunchFailed with pip's last words.
        """
        name = await self._name(wanted)
        self._pins[name] += 1
        try:
            await self._complete(name, wanted)
            yield str(python_of(self._folder / name))
        finally:
            self._pins[name] -= 1

    async def release(self, needed: Callable[[], Iterable[Requirements]]) -> None:
        """Remove what nobody holds and nobody needs, half-made ones too."""
        with trio.CancelScope(shield=True):
            for name in await trio.to_thread.run_sync(_names_in, self._folder, limiter=self._threads):
                async with self._moves:
                    if self._pins[name] or name in await self._names_of(needed()):
                        continue
                    _log.info("environment %s is not needed any more", name[:12])
                    doomed = await self._move_away(name)
                await self._remove(doomed)

    async def _names_of(self, needed: Iterable[Requirements]) -> set[str]:
        names = set()
        for wanted in needed:
            with contextlib.suppress(LaunchFailed):  # it has none
                names.add(await self._name(wanted))
        return names

    async def _name(self, wanted: Requirements) -> str:
        if wanted not in self._names:
            try:
                self._names[wanted] = await trio.to_thread.run_sync(
                    environment_name, wanted, self._python, self._options, limiter=self._threads
                )
            except BadRequirements as e:
                raise LaunchFailed(Failure(NO_PACKAGES, str(e), file=wanted.file, hopeless=True)) from e
        return self._names[wanted]

    # -- making one

    async def _complete(self, name: str, wanted: Requirements) -> None:
        while True:
            async with self._moves:
                if _is_complete(self._folder / name):
                    return
            building = self._builds.get(name)
            if building is None:
                await self._build(name, wanted)
                return
            await building.done.wait()
            if building.failure is not None:
                raise LaunchFailed(building.failure)

    async def _build(self, name: str, wanted: Requirements) -> None:
        building = self._builds[name] = _Building()
        made = False
        try:
            await self._clear(name)
            async with self._limit:
                building.failure = await self._make(name, wanted)
            made = building.failure is None
        finally:
            if not made:
                await self._clear(name)
            del self._builds[name]
            building.done.set()
        if building.failure is not None:
            raise LaunchFailed(building.failure)

    async def _make(self, name: str, wanted: Requirements) -> Failure | None:
        _log.info("environment %s is made for %s of %s", name[:12], wanted.file, wanted.model_dir)
        began = trio.current_time()
        arguments = [str(os.getpid()), str(self._folder / name), wanted.model_dir, wanted.file]
        try:
            end, tail = await self._run(arguments, label=f"environment {name[:12]}")
        except OSError as e:
            return Failure(NO_PLACE, f"no process could be started: {e}")
        if end is None:
            limit = f"not installed within environment_timeout, {self._timeout_s:g} s"
            return Failure(NO_PACKAGES, f"{tail}{limit}", file=wanted.file)
        if end.code == 0:
            _log.info("environment %s is ready after %.1f s", name[:12], trio.current_time() - began)
            return None
        if end.code == NO_ENVIRONMENT:
            return Failure(NO_PLACE, tail, exit=str(end))
        return Failure(NO_PACKAGES, tail, exit=str(end), file=wanted.file)

    async def _run(self, arguments: Sequence[str], *, label: str) -> tuple[Exit | None, str]:
        """How the process ended, None when its time was over, and its last words.  Leaving ends all of its group."""
        read_end, write_end = os.pipe()
        try:
            pid, pidfd = spawn(
                "environment",
                arguments,
                output=write_end,
                interpreter=self._python,
                session=True,
                # Who hides where packages come from, since it has a password in it, still wants them to come.
                environ=environ_without({name for name in self._hidden if not name.startswith("PIP_")}),
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._family.add(pid)
        process = ChildProcess(pid, pidfd, read_end, label=label, log=_log, family=self._family, grace_s=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.follow)
            try:
                with trio.move_on_after(self._timeout_s) as scope:
                    await process.exited.wait()
            finally:
                process.kill()
        end = await process.wait()
        return None if scope.cancelled_caught else end, process.tail()[-_TAIL:]

    # -- removing one

    async def _clear(self, name: str) -> None:
        with trio.CancelScope(shield=True):
            await self._remove(await self._move_away(name))

    async def _move_away(self, name: str) -> Path:
        """In one step, so that a mark never stands in what is there by half."""
        doomed = self._folder / f"doomed-{uuid.uuid4().hex}"
        await trio.to_thread.run_sync(_move, self._folder / name, doomed, limiter=self._threads)
        return doomed

    async def _remove(self, doomed: Path) -> None:
        await trio.to_thread.run_sync(_remove, doomed, limiter=self._threads)


# What cannot be looked at counts as not there, what cannot be removed now is tried again at the next occasion.


def _names_in(folder: Path) -> list[str]:
    with _tolerance(folder):
        return sorted(entry.name for entry in folder.iterdir())
    return []


def _is_complete(environment: Path) -> bool:
    with _tolerance(environment):
        return (environment / MARK).exists()
    return False


def _move(folder: Path, doomed: Path) -> None:
    with _tolerance(folder):
        folder.rename(doomed)


def _remove(folder: Path) -> None:
    with _tolerance(folder):
        shutil.rmtree(folder)


@contextlib.contextmanager
def _tolerance(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("%s: %s", path, error)
