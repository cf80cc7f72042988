"""Describe: keys, their order and their values (spec/management.md section 6)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.services.stack import HANDLERS, Services, jump, running, until
from tserve.errors import ModelNotFound, ModelVersionNotFound, WorkerInitialization
from tserve.services.describe import _tail

KEYS = [
    "modelName",
    "modelVersion",
    "modelUrl",
    "engine",
    "runtime",
    "minWorkers",
    "maxWorkers",
    "batchSize",
    "maxBatchDelay",
    "responseTimeout",
    "startupTimeout",
    "maxRetryTimeoutInSec",
    "clientTimeoutInMills",
    "parallelType",
    "parallelLevel",
    "deviceType",
    "continuousBatching",
    "useJobTicket",
    "useVenv",
    "stateful",
    "sequenceMaxIdleMSec",
    "sequenceTimeoutMSec",
    "maxNumSequence",
    "maxSequenceJobQueueSize",
    "loadedAtStartup",
    "workers",
    "jobQueueStatus",
    "tserve",
]
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
WORKER_KEYS = ["id", "startTime", "status", "memoryUsage", "pid", "gpu", "gpuUsage", "tserve"]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_keys_and_their_order(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    described = services.described()
    assert list(described) == KEYS
    assert list(described["workers"][0]) == WORKER_KEYS
    assert list(described["jobQueueStatus"]) == ["remainingCapacity", "pendingRequests"]
    assert list(described["tserve"]) == ["digest", "handler", "default", "state", "ready", "wanted", "restarts"]
    assert list(described["workers"][0]["tserve"]) == ["phase", "phaseSeconds", "since", "restarts"]


async def test_a_version_without_a_yaml(services: Services) -> None:
    await services.register()
    (digest,) = services.kept()
    assert services.described() == {
        "modelName": "noop",
        "modelVersion": "1.0",
        "modelUrl": "noop.mar",
        "engine": "Torch",
        "runtime": "python",
        "minWorkers": 0,
        "maxWorkers": 0,
        "batchSize": 1,
        "maxBatchDelay": 100,
        "responseTimeout": 120,
        "startupTimeout": 120,
        "maxRetryTimeoutInSec": 300,
        "clientTimeoutInMills": 0,
        "parallelType": "",
        "parallelLevel": 0,
        "deviceType": "cpu",
        "continuousBatching": False,
        "useJobTicket": False,
        "useVenv": False,
        "stateful": False,
        "sequenceMaxIdleMSec": 0,
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": 0,
        "maxSequenceJobQueueSize": 0,
        "loadedAtStartup": False,
        "workers": [],
        "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 0},
        "tserve": {
            "digest": f"sha256:{digest}",
            "handler": "ok",
            "default": True,
            "state": "stopped",
            "ready": 0,
            "wanted": 0,
            "restarts": 0,
        },
    }


YAML = """
batchSize: 4
maxBatchDelay: 50
responseTimeout: 60
startupTimeout: 70
maxRetryTimeoutInSec: 80
clientTimeoutInMills: 90
jobQueueSize: 7
parallelType: pp
parallelLevel: 2
deviceType: gpu
deviceIds: [0, 1]
continuousBatching: true
useJobTicket: true
useVenv: true
sequenceBatching: true
sequenceMaxIdleMSec: 11
sequenceTimeoutMSec: 12
maxNumSequence: 13
maxSequenceJobQueueSize: 14
"""


async def test_what_the_yaml_says(services: Services) -> None:
    """There is no GPU here: the device is the processor, and device numbers that are not there are left out."""
    services.mar(config=YAML)
    await services.register()
    described = services.described()
    assert list(described) == KEYS
    assert {key: described[key] for key in KEYS[7:24]} == {
        "batchSize": 4,
        "maxBatchDelay": 50,
        "responseTimeout": 60,
        "startupTimeout": 70,
        "maxRetryTimeoutInSec": 80,
        "clientTimeoutInMills": 90,
        "parallelType": "pp",
        "parallelLevel": 2,
        "deviceType": "cpu",
        "continuousBatching": True,
        "useJobTicket": True,
        "useVenv": True,
        "stateful": True,
        "sequenceMaxIdleMSec": 11,
        "sequenceTimeoutMSec": 12,
        "maxNumSequence": 13,
        "maxSequenceJobQueueSize": 14,
    }
    assert described["jobQueueStatus"]["remainingCapacity"] == 7


async def test_values_that_depend_on_others(services: Services) -> None:
    """Sequence numbers count with an idle time only, an environment of its own for runtime python only."""
    services.mar(config="sequenceBatching: true\nmaxNumSequence: 13\nsequenceTimeoutMSec: 12\nuseVenv: true\n")
    await services.register(runtime="python3")
    described = services.described()
    assert described["stateful"] is True
    assert [described[key] for key in KEYS[20:24]] == [0, 0, 0, 0]
    assert (described["runtime"], described["useVenv"]) == ("python3", False)


async def test_values_of_the_call_stand_as_given(services: Services) -> None:
    await services.register(
        model_name='a "b"/?%', handler="x:y", runtime="PYTHON", batch_size=-5, max_batch_delay=0, response_timeout=-7
    )
    described = services.described('a "b"/?%')
    assert described["modelName"] == 'a "b"/?%'
    assert described["runtime"] == "python"
    assert (described["batchSize"], described["maxBatchDelay"], described["responseTimeout"]) == (-5, 0, -7)
    assert described["tserve"]["handler"] == "x:y"


async def test_the_url_stands_as_given(services: Services) -> None:
    url = f"{services.settings.model_store}/./noop.mar"
    await services.register(url)
    assert services.described()["modelUrl"] == url


# ---- workers


async def test_a_worker_that_is_ready(services: Services, mock_clock: MockClock) -> None:
    await services.register(initial_workers=1, synchronous=True)
    await jump(mock_clock, 3.5)
    (worker,) = services.described()["workers"]
    assert re.fullmatch(TIME, worker.pop("startTime"))
    assert re.fullmatch(TIME, worker["tserve"].pop("since"))
    assert worker == {
        "id": "9000",
        "status": "READY",
        "memoryUsage": 1 << 20,
        "pid": services.launcher.workers[0].pid,
        "gpu": False,
        "gpuUsage": "N/A",
        "tserve": {"phase": "ready", "phaseSeconds": 3.5, "restarts": 0},
    }


async def test_a_worker_that_loads(services: Services) -> None:
    """Shown as recorded; the truth stands beside it."""
    services.mar(handler="slow_load")
    await services.register(initial_workers=1)
    await until(lambda: services.launcher.asked == 1)
    (worker,) = services.described()["workers"]
    assert worker["status"] == "UNLOADING"
    assert worker["tserve"]["phase"] == "loading"


async def test_a_worker_that_is_down(services: Services, mock_clock: MockClock) -> None:
    services.mar(handler="broken")
    await services.register(initial_workers=1)
    await until(lambda: "lastFailure" in services.described()["workers"][0]["tserve"])
    (worker,) = services.described()["workers"]
    assert (worker["status"], worker["pid"], worker["memoryUsage"]) == ("UNLOADING", -1, 0)
    since = moment(worker["tserve"].pop("since"))
    assert abs(since - moment(worker["tserve"]["lastFailure"].pop("at"))) < timedelta(seconds=1)
    assert abs(since - datetime.now(UTC)) < timedelta(seconds=60)
    assert worker["tserve"] == {
        "phase": "backing off",
        "phaseSeconds": 0.0,
        "restarts": 0,
        "nextTrySeconds": 1.0,
        "lastFailure": {
            "reason": "load_error",
            "detail": "no weights",
            "log_tail": "last words of W-9000-noop_1.0\n",
        },
    }


@pytest.mark.parametrize(("slots", "shown"), [(1, 64 << 10), (16, 64 << 10), (17, (1 << 20) // 17), (300, 4 << 10)])
def test_tails_of_many_slots_are_shorter(slots: int, shown: int) -> None:
    """All of a version together about 1 MiB, but some of each."""
    assert _tail(slots) == shown


async def test_the_tails_that_are_shown(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tserve.services.describe.TAILS", 16)
    monkeypatch.setattr("tserve.services.describe.LEAST_TAIL", 5)
    services.mar(handler="broken")
    await services.register(initial_workers=2)
    await until(lambda: all("lastFailure" in worker["tserve"] for worker in services.described()["workers"]))
    tails = [worker["tserve"]["lastFailure"]["log_tail"] for worker in services.described()["workers"]]
    assert tails == ["last words of W-9000-noop_1.0\n"[-8:]] * 2


async def test_a_slot_outlives_its_workers(services: Services, mock_clock: MockClock) -> None:
    await services.register(initial_workers=1, synchronous=True)
    (before,) = services.described()["workers"]
    await jump(mock_clock, 60)
    services.launcher.alive[0].crash(3)
    await until(lambda: services.launcher.asked == 2 and services.statuses() == ["READY"])
    (after,) = services.described()["workers"]
    assert (after["id"], after["startTime"]) == (before["id"], before["startTime"])
    assert after["pid"] != before["pid"]
    assert after["tserve"]["restarts"] == 1
    assert after["tserve"]["lastFailure"]["reason"] == "died_idle"


async def test_the_queue(tmp_path: Path, mock_clock: MockClock) -> None:
    async with running(tmp_path, job_queue_size=5) as services:
        services.mar(handler="slow")
        await services.register(initial_workers=1, synchronous=True)
        with trio.CancelScope() as clients:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(services.predict)
                await until(lambda: services.described()["jobQueueStatus"]["pendingRequests"] == 2)
                assert services.described()["jobQueueStatus"] == {"remainingCapacity": 3, "pendingRequests": 2}
                clients.cancel()
        assert services.described()["jobQueueStatus"] == {"remainingCapacity": 5, "pendingRequests": 0}


# ---- which


async def test_which(services: Services) -> None:
    await services.register()
    for version in ("2.0", "1.11"):
        services.mar("more.mar", version=version)
        await services.register("more.mar")
    shown = [version["modelVersion"] for version in services.describe.all("noop")]
    assert shown == ["1.0", "2.0", "1.11"], "in order of registration"
    assert services.described(version="2.0")["modelVersion"] == "2.0"
    assert services.described()["modelVersion"] == "1.0"
    defaults = [version["tserve"]["default"] for version in services.describe.all("noop")]  # type: ignore[index]
    assert defaults == [True, False, False]


@pytest.mark.parametrize("version", [None, "1.0"])
async def test_unknown_models(services: Services, version: str | None) -> None:
    with pytest.raises(ModelNotFound):
        services.describe.one("fake", version)
    with pytest.raises(ModelNotFound):
        services.describe.all("fake")


async def test_unknown_versions(services: Services) -> None:
    await services.register()
    with pytest.raises(ModelVersionNotFound):
        services.describe.one("noop", "9")


# ---- GPUs


class TwoGpus:
    async def detect(self) -> None:
        pass

    def count(self) -> int:
        return 2

    def usage(self, gpu_id: int) -> str:
        return f"gpuId::{gpu_id} utilization.gpu::1 % utilization.memory::2 % memory.used::3 MiB"

    def readings(self) -> list[tuple[str, dict[str, float]]]:
        return []


@pytest.fixture
async def with_gpus(tmp_path: Path, mock_clock: MockClock) -> AsyncIterator[Services]:
    async with running(tmp_path, devices=TwoGpus()) as made:
        yield made


@pytest.mark.parametrize(
    ("yaml", "device_type", "device_ids", "gpu_ids"),
    [
        ("", "gpu", None, [1, 0, 1]),
        ("deviceType: gpu", "gpu", None, [1, 0, 1]),
        ("deviceIds: [1]", "gpu", [1], [1, 1, 1]),
        ("deviceIds: [0, 1]", "gpu", [0, 1], [0, 1, 0]),
        ("deviceIds: [0, 2]", "gpu", None, [1, 0, 1]),
        ("deviceType: cpu", "cpu", None, [None, None, None]),
    ],
)
async def test_workers_on_gpus(
    with_gpus: Services, yaml: str, device_type: str, device_ids: list[int] | None, gpu_ids: list[int | None]
) -> None:
    with_gpus.mar(config=f"batchSize: 1\n{yaml}\n")
    await with_gpus.register(initial_workers=3, synchronous=True)
    described = with_gpus.described()
    at = KEYS.index("deviceType") + 1
    assert list(described) == [*KEYS[:at], *([] if device_ids is None else ["deviceIds"]), *KEYS[at:]]
    assert (described["deviceType"], described.get("deviceIds")) == (device_type, device_ids)
    workers = described["workers"]
    assert [worker["tserve"].get("gpuId") for worker in workers] == gpu_ids
    assert [worker["gpu"] for worker in workers] == [number is not None for number in gpu_ids]
    expected = ["N/A" if number is None else TwoGpus().usage(number) for number in gpu_ids]
    assert [worker["gpuUsage"] for worker in workers] == expected
    told = {worker.pid: worker.spec.gpu_id for worker in with_gpus.launcher.workers}
    assert [told[worker["pid"]] for worker in workers] == gpu_ids


async def test_workers_that_take_several_gpus(with_gpus: Services) -> None:
    """No more of them than there are GPUs for; the sentence still tells the number that was asked for."""
    with_gpus.mar(config="parallelType: tp\nparallelLevel: 2\n")
    await with_gpus.register()
    result = await with_gpus.scale(min_worker=3, synchronous=True)
    assert result.text == "Workers scaled to 3 for model: noop"
    described = with_gpus.described()
    assert (described["minWorkers"], described["maxWorkers"], len(described["workers"])) == (1, 1, 1)
    assert described["workers"][0]["tserve"]["gpuId"] == 0


@pytest.mark.parametrize("how", ["register", "scale"])
async def test_workers_that_take_more_gpus_than_there_are(with_gpus: Services, how: str) -> None:
    with_gpus.mar(config="parallelType: tp\nparallelLevel: 4\n")

    async def ask() -> Any:
        if how == "register":
            return await with_gpus.register(initial_workers=1)
        await with_gpus.register()
        return await with_gpus.scale(min_worker=1)

    with pytest.raises(WorkerInitialization) as refused:
        await ask()
    assert refused.value.message == "No enough gpu devices for model:noop parallelLevel:4"
    assert (refused.value.code, refused.value.type_name) == (500, "WorkerInitializationException")
    if how == "scale":
        assert with_gpus.described()["minWorkers"] == 0
        await with_gpus.scale(min_worker=0, synchronous=True)
    else:
        assert with_gpus.keys() == []


# ---- what is there of a version


async def test_a_version_that_is_partly_up(services: Services) -> None:
    await services.register(initial_workers=1, synchronous=True)
    services.launcher.play(HANDLERS["hopeless"])
    await services.scale(min_worker=2)
    await until(lambda: "lastFailure" in services.described()["workers"][1]["tserve"])
    shown = services.described()["tserve"]
    assert {key: shown[key] for key in ("state", "ready", "wanted")} == {"state": "degraded", "ready": 1, "wanted": 2}
