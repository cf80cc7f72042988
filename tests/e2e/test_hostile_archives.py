"""Hostile archives at the real server: what its client is told, and what is left of them.

One for each kind of archive and each reason; TSERVE_HOSTILE_ARCHIVES=all takes the whole corpus, a minute of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archive.hostile_archives import CORPUS, SMALL, Hostile
from tests.e2e.archives import write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import Answer, Server, processes_of, running

pytestmark = pytest.mark.e2e

# The rest need other quotas than those of this server, or all the time they are given.
EACH = [each for each in CORPUS if each.quota == SMALL]
if os.environ.get("TSERVE_HOSTILE_ARCHIVES") != "all":
    EACH = list({(each.kind, each.refused): each for each in EACH}.values())
QUOTAS = [f"max_archive_entries={SMALL.entries}", f"max_archive_size={SMALL.size}", "min_free_space=0"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    (store := folder / "store").mkdir()
    write(store, "good.mar", name="good")
    with running(Server(folder / "server", store, ["worker_start=fresh", *QUOTAS])) as server:
        yield server


@pytest.mark.parametrize("hostile", EACH, ids=lambda each: each.name)
def test_what_becomes_of_it(server: Server, hostile: Hostile) -> None:
    file = f"{hostile.name}.{'mar' if hostile.kind == 'zip' else 'tar.gz'}"
    (server.store / file).write_bytes(hostile.make())
    answer = server.register(file, model_name="m")
    (server.store / file).unlink()
    if hostile.refused is None:
        assert answer.status == 200, answer.body
        (digest,) = server.kept()
        kept = server.state / "archives" / digest
        found = {str(path.relative_to(kept)): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
        assert found == dict(hostile.files)
        assert server.unregister("m").status == 200
    else:
        check_refusal(answer, file, hostile.refused)
    assert not [line for line in processes_of(server.mark).values() if "tserve.archive" in line]
    assert (server.models(), server.kept(), server.incoming()) == ({}, set(), [])


def check_refusal(answer: Answer, file: str, reason: str) -> None:
    if reason == "bad_manifest":
        assert (answer.status, answer.text) == (400, "Failed to parse signature.json."), answer.body
    else:
        assert (answer.status, answer.text) == (500, f"Failed to save model: {file}"), answer.body
    cause = answer.json["tserve"]
    assert cause["reason"] == reason
    for quota in QUOTAS[:2]:
        name = quota.partition("=")[0]
        assert (quota in cause["detail"]) is (name in cause["detail"])


def test_afterwards_a_good_one_is_served(server: Server) -> None:
    assert [each.name for each in server.store.iterdir()] == ["good.mar"]
    server.check_whole()
    assert server.register("good.mar", initial_workers=1, synchronous=True).status == 200
    assert server.predict("good").body == b"good 1.0 of 1"
    assert server.unregister("good").status == 200


@pytest.mark.fresh
def test_a_disk_that_has_to_stay_free(make_server: MakeServer, store: Path) -> None:
    """Refused before anything is written, by whichever way an archive comes."""
    write(store, "good.mar", name="good")
    (store / "folder").mkdir()
    (store / "folder" / "handler.py").write_text("x = 1\n")
    with running(make_server("min_free_space=2147483647")) as server:
        for url in ("good.mar", "folder"):
            answer = server.register(url, model_name="m")
            assert (answer.status, answer.json["tserve"]["reason"]) == (500, "no_space"), answer.body
            assert "min_free_space=2147483647 MiB" in answer.json["tserve"]["detail"]
        assert (server.kept(), server.incoming()) == (set(), [])
