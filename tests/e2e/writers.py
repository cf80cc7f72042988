"""Clients that change models and keep a synced journal of it: the intent before each request, then the answer."""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.e2e.expected import Change, Expected, Wish
from tests.e2e.server import Server, exchange, path_of, target

SLOW = "slow"  # the version whose worker takes its time: wanted in synchronous calls, with room of its own
MOST_WORKERS = 2  # that a writer wants at a time, over all of its models


class Journal:
    """Lines of JSON, each on the disk before the writer goes on.  Read back after a kill."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to = 0

    def note(self, record: dict[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def news(self) -> tuple[list[Change], Change | None]:
        """Since the last reading: what was acknowledged, and the change that was begun and not acknowledged."""
        acknowledged: list[Change] = []
        begun: Change | None = None
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                record = json.loads(line)
                if "change" in record:
                    assert begun is None
                    begun = _change(record["change"])
                elif begun is not None:
                    acknowledged.append(begun)
                    begun = None
            self._read_to = file.tell()
        return acknowledged, begun


class Writer(threading.Thread):
    """Owns the models of its names and changes them until its server is gone, or `enough` is set.

    `archives`: version to file of the store.  `waits_for`: the version whose worker a synchronous call under way wants.
    """

    def __init__(
        self,
        server: Server,
        names: list[str],
        archives: dict[str, str],
        journal: Journal,
        state: Expected,
        rng: random.Random,
    ) -> None:
        super().__init__(daemon=True)
        self.names = names
        self.enough = threading.Event()
        self.acknowledged = 0
        self.waits_for: str | None = None
        self.failure: str | None = None
        self._server = server
        self._archives = archives
        self._journal = journal
        self._state = state.copy()
        self._rng = rng

    def run(self) -> None:
        try:
            with closing(self._server.connect()) as connection:
                while not self.enough.is_set():
                    self._change(connection)
        except (OSError, http.client.HTTPException):
            pass  # the server is gone; what was under way is in doubt
        except Exception as error:
            self.failure = repr(error)

    def _change(self, connection: http.client.HTTPConnection) -> None:
        change, method, path, query, allowed = self._choose()
        self._journal.note({"change": asdict(change)})
        self.waits_for = change.version if query.get("synchronous") and _workers(change) else None
        answer = exchange(connection, method, target(path, **query))
        self.waits_for = None
        if answer.status not in allowed:
            self.failure = f"{answer.status} {answer.body!r} to {method} {path} {query}"
            self.enough.set()
            return
        self._journal.note({"answer": answer.status})
        self._state.apply(change)
        self.acknowledged += 1

    def _choose(self) -> tuple[Change, str, str, dict[str, object], tuple[int, ...]]:
        """A change that the contract allows now: it, its request, and the statuses it may have."""
        rng, state = self._rng, self._state
        name = rng.choice(self.names)
        versions = state.versions.get(name, {})
        free = [version for version in self._archives if version not in versions]
        removable = [version for version in versions if state.may_remove(name, version)]
        kinds = ["add"] * (3 if free else 0) + ["remove"] * (2 if removable else 0)
        kinds += ["scale", "scale", "default"] if versions else []
        kind = rng.choice(kinds)
        if kind == "add":
            return self._add(name, rng.choice(free))
        if kind == "remove":
            version = rng.choice(removable)
            return Change("remove_version", name, version), "DELETE", path_of(name, version), {}, (200,)
        version = rng.choice(list(versions))
        if kind == "scale":
            return self._scale(name, version)
        path = path_of(name, version) + "/set-default"
        return Change("set_default", name, version), "PUT", path, {}, (200,)

    def _add(self, name: str, version: str) -> tuple[Change, str, str, dict[str, object], tuple[int, ...]]:
        rng = self._rng
        workers = self._workers_for(version)
        numbers: dict[str, Any] = {
            "batch_size": rng.randint(1, 9),
            "max_batch_delay": rng.randint(0, 50),
            "response_timeout": rng.randint(20, 99),
            "startup_timeout": rng.randint(20, 99),
        }
        wish = Wish(self._archives[version], **numbers, min_workers=workers, max_workers=workers)
        query: dict[str, object] = {
            "url": wish.url,
            "model_name": name,
            "handler": wish.handler,
            **numbers,
            "initial_workers": workers,
            "synchronous": (synchronous := version == SLOW or rng.random() < 0.7),
        }
        status = 202 if workers and not synchronous else 200
        return Change("add_version", name, version, wish=wish), "POST", "/models", query, (status,)

    def _scale(self, name: str, version: str) -> tuple[Change, str, str, dict[str, object], tuple[int, ...]]:
        rng = self._rng
        fewest = self._workers_for(version)
        most = fewest + rng.choice([0, 0, 1])
        synchronous = version == SLOW or rng.random() < 0.4
        query: dict[str, object] = {"min_worker": fewest, "max_worker": most, "synchronous": synchronous}
        change = Change("replace_version", name, version, workers=(fewest, most))
        return change, "PUT", path_of(name, version), query, (200,) if synchronous else (202,)

    def _workers_for(self, version: str) -> int:
        if version == SLOW:
            return int(self._wanted() <= MOST_WORKERS)
        return self._rng.choice([0, 1]) if self._wanted() < MOST_WORKERS else 0

    def _wanted(self) -> int:
        return sum(wish.min_workers for versions in self._state.versions.values() for wish in versions.values())


def _workers(change: Change) -> int:
    return change.wish.min_workers if change.wish else change.workers[0] if change.workers else 0


def _change(record: dict[str, Any]) -> Change:
    wish, workers = record.pop("wish"), record.pop("workers")
    return Change(**record, wish=Wish(**wish) if wish else None, workers=tuple(workers) if workers else None)
