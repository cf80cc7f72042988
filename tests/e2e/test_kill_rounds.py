"""Writers change models, the server is killed at a random moment and started again: nothing acknowledged is lost.

TSERVE_KILL_ROUNDS sets the number of rounds (20), TSERVE_KILL_SEED the seed: of the clients' choices and of the
moments, not of the machine's timing.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.archives import SLOW_LOAD, contents, write
from tests.e2e.expected import Change, Expected
from tests.e2e.server import Server, eventually, processes_of
from tests.e2e.writers import SLOW, Journal, Writer

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

ROUNDS = int(os.environ.get("TSERVE_KILL_ROUNDS", "20"))
SEED = os.environ.get("TSERVE_KILL_SEED") or str(random.SystemRandom().randrange(10**6))
WRITERS = 4
CHANGES = 20  # acknowledged in a round before the kill, at least
MOMENT_S = 2.0  # the longest that a round waits for its kind of moment
GONE_S = 5.0
ARCHIVES = {"1.0": "one.mar", "2.0": "two.mar", "3 ü+": "odd.mar", "big": "big.mar", SLOW: "slow.mar"}


@pytest.fixture
def archives(store: Path) -> dict[str, str]:
    for version, file in ARCHIVES.items():
        padding_mb = 6 if version == "big" else 0.25 if version == "2.0" else 0
        handler = {"handler": SLOW_LOAD.format(seconds=0.5)} if version == SLOW else {}
        write(store, file, version=version, padding_mb=padding_mb, **handler)
    return ARCHIVES


class Rounds:
    """One state folder through all rounds; `state` is what the journals say that it holds."""

    def __init__(self, server: Server, archives: dict[str, str], journals: Path) -> None:
        self.server = server
        self.archives = archives
        self.names = [[f"w{i}-plain", f"w{i} a+b", f"w{i}-模型"] for i in range(WRITERS)]
        self.journals = [Journal(journals / f"writer{i}.jsonl") for i in range(WRITERS)]
        self.state = Expected()
        self.recorded = 0  # number of the last change in the database that was looked at
        self.seen: Counter[str] = Counter()

    def round(self, seed: str) -> None:
        rng = random.Random(seed)
        writers = [
            Writer(self.server, names, self.archives, journal, self.state, random.Random(f"{seed} {names}"))
            for names, journal in zip(self.names, self.journals, strict=True)
        ]
        for writer in writers:
            writer.start()
        eventually("the writers have made their changes", lambda: self._enough(writers), within_s=60)
        self._kill(rng, writers)
        for writer in writers:
            writer.join(10)
            assert not writer.is_alive()
        assert [writer.failure for writer in writers] == [None] * WRITERS
        if rng.random() < 0.3:
            self.server.start(ready=False)
            time.sleep(rng.uniform(0, 1))
            self._end()
            self.seen["killed again at its start"] += 1
        self.server.start()
        self._check()

    @staticmethod
    def _enough(writers: list[Writer]) -> bool:
        assert [writer.failure for writer in writers] == [None] * WRITERS
        return sum(writer.acknowledged for writer in writers) >= CHANGES

    def _kill(self, rng: random.Random, writers: list[Writer]) -> None:
        """At any moment, or while an archive is unpacked, or while a synchronous call waits for a slow worker."""

        moments: dict[str, Callable[[], object]] = {
            "any": lambda: True,
            "unpacking": self.server.incoming,
            "loading": lambda: any(writer.waits_for == SLOW for writer in writers),
        }
        kind = rng.choice(list(moments))
        deadline = time.monotonic() + MOMENT_S
        while not (found := moments[kind]()) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3 if kind == "loading" else 0.1))
        self.seen[f"killed while {kind}" if found else "killed when the moment did not come"] += 1
        self.seen["archives half unpacked at the kill"] += len(self.server.incoming())
        self._end()

    def _end(self) -> None:
        """Kill; every process of the server goes with it."""
        mark = self.server.mark
        self.seen["processes at a kill"] += len(processes_of(mark)) - 1
        self.server.kill()
        try:
            eventually("the workers are gone", lambda: not processes_of(mark), within_s=GONE_S)
        except AssertionError:
            pytest.fail(f"processes of the killed server: {processes_of(mark)}")

    def _check(self) -> None:
        registry = self.server.registry()
        self.server.check_whole()
        seen = Expected.described(registry)
        made: dict[str, list[Change]] = {}
        for names, journal in zip(self.names, self.journals, strict=True):
            made |= self._settle(journal, names, seen.only(names))
        assert seen == self.state
        assert self.server.models() == self.state.urls()
        self._check_record(made)
        self._check_contents(registry)
        self._check_workers()

    def _settle(self, journal: Journal, names: list[str], seen: Expected) -> dict[str, list[Change]]:
        """Bring `state` to what one journal says and the server shows; what was changed, by name."""
        acknowledged, in_doubt = journal.news()
        journal.note({"round": "over"})
        changes = [change for change in acknowledged if self.state.apply(change)]
        self.seen["acknowledged changes"] += len(acknowledged)
        if in_doubt is not None:
            after = self.state.copy()
            different = after.apply(in_doubt)
            if seen == after.only(names):
                self.seen["in doubt and there"] += 1
                self.state = after
                changes += [in_doubt] if different else []
            else:
                self.seen["in doubt and not there"] += 1
        assert seen == self.state.only(names), f"in doubt: {in_doubt}"
        return {name: [change for change in changes if change.name == name] for name in names}

    def _check_record(self, made: dict[str, list[Change]]) -> None:
        """Each change, the one in doubt as well, has its row; nothing else has."""
        rows = self.server.rows(
            f"SELECT number, kind, model, version FROM changes WHERE number > {self.recorded} ORDER BY number"
        )
        numbers = [number for number, *_ in rows]
        assert numbers == list(range(self.recorded + 1, self.recorded + 1 + len(numbers)))
        self.recorded += len(numbers)
        recorded: dict[str, list[Any]] = {name: [] for name in made}
        for _, *change in rows:
            recorded[change[1]].append(change)
        assert recorded == {name: [[c.kind, c.name, c.version] for c in changes] for name, changes in made.items()}

    def _check_contents(self, registry: dict[str, dict[str, dict[str, Any]]]) -> None:
        """What is kept is whole."""
        described = [description for versions in registry.values() for description in versions.values()]
        for url, digest in {(d["modelUrl"], d["tserve"]["digest"]) for d in described}:
            kept = self.server.state / "archives" / digest.removeprefix("sha256:")
            assert contents(kept) == contents(self.server.store / url)

    def _check_workers(self) -> None:
        """They come back in the numbers wanted, and answer."""
        for name, versions in self.state.versions.items():
            for version, wish in versions.items():
                eventually(
                    f"{wish.min_workers} workers of {name} {version}",
                    lambda: len(self.server.ready_workers(name, version)) == wish.min_workers,  # noqa: B023
                )
                self.seen["workers back"] += wish.min_workers
                if wish.min_workers:
                    assert self.server.predict(name, version).status == 200


def test_nothing_acknowledged_is_lost(make_server: Any, archives: dict[str, str], tmp_path: Path) -> None:
    server = make_server()
    rounds = Rounds(server, archives, tmp_path)
    server.start()
    for number in range(ROUNDS):
        print(f"round {number} of TSERVE_KILL_SEED={SEED}", flush=True)
        rounds.round(f"{SEED}-{number}")
    mark = server.mark
    assert server.stop() == 0
    assert processes_of(mark) == {}
    print("\n".join(f"{count:7} {what}" for what, count in sorted(rounds.seen.items())))
    assert rounds.seen["acknowledged changes"] >= ROUNDS * CHANGES


@pytest.mark.parametrize("attempt", range(4))
def test_killed_at_its_very_first_start(make_server: Any, attempt: int) -> None:
    """While the database is being made."""
    server = make_server()
    server.start(ready=False)
    eventually("there is a database", (server.state / "state.db").exists)
    time.sleep(random.Random(f"{SEED}-{attempt}").uniform(0, 0.4))
    server.kill()
    server.start()
    assert server.models() == {}
    server.check_whole()
