"""Models named at start: made sure to be there, and what is registered already wins (DESIGN.md section 11)."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from tests.services.stack import GatedStore, Services, running, until, write_mar
from tserve.errors import InternalServer
from tserve.services.startup import load_models
from tserve.settings import ModelSettings

CPUS = os.cpu_count() or 1


async def load(services: Services) -> None:
    await load_models(services.management, services.keep, services.settings)


def put(folder: Path, file: str = "noop.mar", **what: Any) -> None:
    (folder / "store").mkdir(exist_ok=True)
    write_mar(folder / "store", file, **what)


async def test_nothing_named(tmp_path: Path) -> None:
    put(tmp_path)
    async with running(tmp_path) as services:
        await load(services)
        assert services.keys() == []


async def test_what_is_named(tmp_path: Path) -> None:
    """By file, or under a name of one's own; started with one worker per processor, without waiting for them."""
    put(tmp_path, handler="slow_load")
    async with running(tmp_path, load_models=("noop.mar", "mine=noop.mar", "a b=noop.mar")) as services:
        await load(services)
        assert services.keys() == ["noop:1.0", "mine:1.0", "a b:1.0"]
        assert services.statuses("mine") == ["UNLOADING"] * CPUS
        assert all(services.described(name)["loadedAtStartup"] for name in ("noop", "mine", "a b"))
        assert {actor for _, _, actor in services.store.changes} == {"start"}


@pytest.mark.parametrize("word", ["all", "ALL"])
async def test_all_of_the_store(tmp_path: Path, word: str) -> None:
    """An archive without a name takes its file's."""
    put(tmp_path)
    put(tmp_path, "my-model.v2.mar", name=None)
    put(tmp_path, ".hidden.mar", name="hidden")
    (tmp_path / "store" / "notes.txt").write_text("no model")
    (tmp_path / "store" / "folder").mkdir()
    async with running(tmp_path, load_models=(word,), default_workers_per_model=1) as services:
        await load(services)
        assert sorted(services.keys()) == ["folder:1.0", "my_model_v2:1.0", "noop:1.0"]


async def test_what_cannot_be_registered_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rest is there all the same, and the log says what is not and why."""
    put(tmp_path)
    put(tmp_path, "runtime.mar", name="r", runtime="java")
    async with running(tmp_path, load_models=("nowhere.mar", "runtime.mar", "x=runtime.mar", "noop.mar")) as services:
        await load(services)
        assert services.keys() == ["noop:1.0"]
        await services.same_in_store()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        "Failed to load model: nowhere.mar: Model not found at: nowhere.mar",
        "Failed to load model: runtime.mar: Runtime is not defined or invalid.",
        "Failed to load model: x=runtime.mar: Runtime is not defined or invalid.",
    ]


async def test_workers_that_do_not_come_up_take_nothing_back(tmp_path: Path) -> None:
    put(tmp_path, handler="hopeless")
    async with running(
        tmp_path, load_models=("noop.mar",), default_register_synchronous=True, default_workers_per_model=1
    ) as services:
        await load(services)
        await until(lambda: services.described()["workers"][0]["tserve"]["phase"] == "failed")
        assert services.keys() == ["noop:1.0"]


async def test_what_the_store_holds_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers, content and default stay as they were; the differences are logged."""
    put(tmp_path)
    store = GatedStore()
    async with running(tmp_path, store=store) as services:
        await services.register(batch_size=7, initial_workers=1)
        before = services.described()
        await services.same_in_store()
    put(tmp_path, handler="slow")
    given = {("noop", "1.0"): ModelSettings(batch_size=9, min_workers=2, max_workers=2)}
    async with running(tmp_path, store=store, load_models=("noop.mar",), model_settings=given) as services:
        await load(services)
        after = services.described()
        assert after["batchSize"] == 7
        assert after["minWorkers"] == 1
        for member in ("digest", "handler", "default"):
            assert after["tserve"][member] == before["tserve"][member]
        assert after["loadedAtStartup"] is True, "all the same"
        assert len(store.changes) == 1
        await services.same_in_store()
    assert "noop:1.0 keeps batch_size 7; this start names 9" in caplog.messages


async def test_a_start_that_names_nothing_serves_what_is_held(tmp_path: Path) -> None:
    put(tmp_path)
    store = GatedStore()
    async with running(tmp_path, store=store) as services:
        await services.register(initial_workers=2, synchronous=True)
    async with running(tmp_path, store=store) as services:
        await until(lambda: services.statuses() == ["READY", "READY"])
        assert services.described()["loadedAtStartup"] is False
        assert (await services.predict(body=b"again")).body == b"again"


async def test_a_store_that_fails_leaves_a_model_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path)
    async with running(tmp_path, load_models=("noop.mar",)) as services:
        services.store.fails_with = InternalServer("The disk is full.")
        await load(services)
        assert services.keys() == []
        await services.same_in_store()
    assert "Failed to load model: noop.mar: The disk is full." in caplog.messages
