"""The management service over a real socket; below it the services over fakes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from torchserve_client.proto import management_pb2
from trio.testing import MockClock

from tests.fakes import Script
from tests.grpc.management_client import ManagementClient, Told
from tests.services.stack import LOAD_S, Services, jump, running, until
from tserve.errors import (
    AnswerTimeout,
    BadRequest,
    Conflict,
    DefaultVersionInUse,
    DependenciesFailed,
    DownloadFailed,
    InternalServer,
    InvalidModel,
    ModelApiDisabled,
    ModelNotFound,
    ModelVersionNotFound,
    ServiceUnavailable,
    TserveError,
    WorkerInitialization,
)
from tserve.grpc.listeners import make_listeners, serve
from tserve.grpc.management import refuse
from tserve.grpc.messages import MANAGEMENT, POOL
from tserve.net.poller import Poller
from tserve.net.timers import Timers
from tserve.services.authorization import Authorization
from tserve.services.open_inference import OpenInference
from tserve.services.use_cases import UseCases

ARCHIVE = "org.pytorch.serve.archive.model."
HTTP = "org.pytorch.serve.http."


class Twin:
    """The services, and their management by gRPC."""

    def __init__(self, services: Services, client: ManagementClient) -> None:
        self.services = services
        self.client = client

    async def call(self, method: str, **fields: Any) -> Told:
        return await trio.to_thread.run_sync(partial(self.client.call, method, **fields))

    async def end(self, call: Any) -> Told:
        return await trio.to_thread.run_sync(self.client.end, call)

    async def refused(self, method: str, code: str, details: str, **fields: Any) -> Told:
        told = await self.call(method, **fields)
        assert (told.code, told.text) == (code, details)
        return told

    async def done(self, method: str, msg: str, **fields: Any) -> None:
        told = await self.call(method, **fields)
        assert (told.code, told.text) == ("OK", msg)


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[Twin]:
    async with running(folder, grpc_management_port=0, **settings) as services, trio.open_nursery() as nursery:
        use_cases = UseCases(
            services.management,
            services.describe,
            services.inference,
            services.pages,
            services.history,
            services.health,
            OpenInference(services.registry, services.health),
        )
        listeners = {"management": make_listeners(services.settings, use_cases, Authorization(None))["grpc_management"]}
        shutdown, poller, timers = trio.Event(), Poller(), Timers()
        nursery.start_soon(poller.run)
        nursery.start_soon(timers.run)
        serve_them = partial(serve, listeners, poller=poller, timers=timers, shutdown=shutdown, drain_s=1)
        ports = await nursery.start(serve_them)
        client = ManagementClient(f"127.0.0.1:{ports['management']}")
        services.mar()
        yield Twin(services, client)
        client.close()
        shutdown.set()
        nursery.cancel_scope.cancel()


@pytest.fixture
async def twin(tmp_path: Path, mock_clock: MockClock) -> AsyncIterator[Twin]:
    """With an archive `noop.mar` in the store."""
    async with serving(tmp_path) as served:
        yield served


# ---- register


async def test_register_without_workers(twin: Twin) -> None:
    advice = "Use scale workers API to add workers for the model."
    text = f'Model "noop" Version: 1.0 registered with 0 initial workers. {advice}'
    await twin.done("RegisterModel", text, url="noop.mar")
    assert twin.services.keys() == ["noop:1.0"]


async def test_register_waits_only_when_asked(tmp_path: Path) -> None:
    """Whatever REST's default is."""
    async with serving(tmp_path, default_register_synchronous=True) as twin:
        await twin.done("RegisterModel", "Processing worker updates...", url="noop.mar", initial_workers=1)
        await twin.done(
            "RegisterModel",
            'Model "b" Version: 1.0 registered with 1 initial workers',
            url="noop.mar",
            model_name="b",
            initial_workers=1,
            synchronous=True,
        )
        assert twin.services.statuses("b") == ["READY"]


async def test_everything_given(twin: Twin) -> None:
    told = await twin.call(
        "RegisterModel",
        url="noop.mar",
        model_name="n",
        handler="slow",
        runtime="python3",
        batch_size=3,
        max_batch_delay=7,
        response_timeout=11,
        startup_timeout=13,
        s3_sse_kms=True,
    )
    assert told.code == "OK"
    shown = twin.services.described("n")
    numbers = [shown[key] for key in ("batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout")]
    assert (numbers, shown["runtime"], shown["tserve"]["handler"]) == ([3, 7, 11, 13], "python3", "slow")


@pytest.mark.parametrize("number", [0, -1, -(2**31)])
async def test_zero_and_less_is_not_given(tmp_path: Path, number: int) -> None:
    async with serving(tmp_path, default_workers_per_model=1, default_response_timeout=17) as twin:
        names = ("batch_size", "initial_workers", "max_batch_delay", "response_timeout", "startup_timeout")
        await twin.done("RegisterModel", "Processing worker updates...", url="noop.mar", **dict.fromkeys(names, number))
        shown = twin.services.described()
    numbers = [shown[key] for key in ("batchSize", "minWorkers", "maxBatchDelay", "responseTimeout", "startupTimeout")]
    assert numbers == [1, 1, 100, 17, 120]


async def test_zeros_that_are_said(tmp_path: Path) -> None:
    async with serving(tmp_path, default_workers_per_model=1) as twin:
        assert (await twin.call("RegisterModel", url="noop.mar", no_workers=True, no_batch_delay=True)).code == "OK"
        shown = twin.services.described()
    assert (shown["minWorkers"], shown["maxBatchDelay"]) == (0, 0)


@pytest.mark.parametrize(
    ("method", "flag", "number"),
    [
        ("RegisterModel", "no_workers", "initial_workers"),
        ("RegisterModel", "no_batch_delay", "max_batch_delay"),
        ("ScaleWorker", "to_zero", "min_worker"),
        ("ScaleWorker", "at_once", "timeout"),
    ],
)
async def test_contradictions_are_refused(twin: Twin, method: str, flag: str, number: str) -> None:
    details = f"{flag} and {number} contradict each other.\n{HTTP}BadRequestException"
    told = await twin.refused(method, "INVALID_ARGUMENT", details, **{flag: True, number: 2})
    assert told.cause == {"field": number, "value": 2, "allowed": "0"}


async def test_registrations_that_are_refused(twin: Twin) -> None:
    refused = twin.refused
    told = await refused("RegisterModel", "INVALID_ARGUMENT", f"Parameter url is required.\n{HTTP}BadRequestException")
    assert told.cause == {"field": "url"}
    details = f"Invalid RuntimeType value: ruby\n{HTTP}BadRequestException"
    told = await refused("RegisterModel", "INVALID_ARGUMENT", details, url="noop.mar", runtime="ruby")
    assert (told.cause["field"], told.cause["value"]) == ("runtime", "ruby")
    assert "python" in told.cause["allowed"]
    details = f"Model not found at: nosuch.mar\n{ARCHIVE}ModelNotFoundException"
    await refused("RegisterModel", "NOT_FOUND", details, url="nosuch.mar")
    assert (await twin.call("RegisterModel", url="noop.mar")).code == "OK"
    details = f"Model version 1.0 is already registered for model noop\n{HTTP}ConflictStatusException"
    await refused("RegisterModel", "ALREADY_EXISTS", details, url="noop.mar")
    twin.services.mar("unnamed.mar", name=None)
    details = f"Model name is not defined.\n{ARCHIVE}InvalidModelException"
    await refused("RegisterModel", "INVALID_ARGUMENT", details, url="unnamed.mar")
    assert twin.services.keys() == ["noop:1.0"]
    await twin.services.same_in_store()


@pytest.mark.parametrize(("handler", "code"), [("broken", "INTERNAL"), ("out_of_memory", "RESOURCE_EXHAUSTED")])
async def test_a_worker_that_cannot_start(twin: Twin, handler: str, code: str) -> None:
    details = f"Failed to start workers for model noop version: 1.0\n{HTTP}InternalServerException"
    ask = {"url": "noop.mar", "handler": handler, "initial_workers": 1, "synchronous": True}
    told = await twin.refused("RegisterModel", code, details, **ask)
    assert told.cause["detail"] == "no weights"
    assert "last words" in told.cause["log_tail"]
    assert twin.services.keys() == []


# ---- scale


async def test_scale(twin: Twin) -> None:
    await twin.services.register()
    scale = partial(twin.done, "ScaleWorker", model_name="noop")
    await scale("Processing worker updates...")
    assert twin.services.described()["minWorkers"] == 1
    await scale("Workers scaled to 2 for model: noop", min_worker=2, synchronous=True)
    assert twin.services.statuses() == ["READY"] * 2
    text = "Workers scaled to 1 for model: noop, version: 1.0"
    await scale(text, min_worker=1, max_worker=3, model_version="1.0", synchronous=True, number_gpu=7)
    shown = twin.services.described()
    assert (shown["minWorkers"], shown["maxWorkers"], len(shown["workers"])) == (1, 3, 2)


@pytest.mark.parametrize("number", [0, -1, -(2**31)])
async def test_no_number_of_workers_is_one(twin: Twin, number: int) -> None:
    await twin.services.register(initial_workers=3, synchronous=True)
    text = "Workers scaled to 1 for model: noop"
    await twin.done("ScaleWorker", text, model_name="noop", min_worker=number, max_worker=number, synchronous=True)
    assert len(twin.services.statuses()) == 1


@pytest.mark.parametrize("most", [0, 2])
async def test_no_worker_at_all(twin: Twin, most: int) -> None:
    await twin.services.register(initial_workers=2, synchronous=True)
    text = "Workers scaled to 0 for model: noop"
    await twin.done("ScaleWorker", text, model_name="noop", to_zero=True, max_worker=most, synchronous=True)
    shown = twin.services.described()
    assert (shown["minWorkers"], shown["maxWorkers"], shown["workers"]) == (0, most, [])


@pytest.mark.parametrize(
    ("fields", "grace_s"), [({"at_once": True}, 0.0), ({"timeout": 3}, 3.0), ({}, None), ({"timeout": -1}, None)]
)
async def test_what_surplus_workers_get(
    twin: Twin, mock_clock: MockClock, fields: dict[str, Any], grace_s: float | None
) -> None:
    """Zero is "not given", which is no limit: the batch in hand runs on to its end."""
    services = twin.services
    services.launcher.play(Script(batch_s=10))
    await services.register(initial_workers=1, synchronous=True)
    outcome: list[object] = []

    async def predict() -> None:
        try:
            outcome.append((await services.predict()).body)
        except TserveError as e:
            outcome.append(e.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(predict)
        await until(lambda: services.described()["jobQueueStatus"]["pendingRequests"] == 0 and services.launcher.alive)
        await until(lambda: services.described()["workers"][0]["tserve"]["phase"] == "busy")
        scaling = twin.client.begin("ScaleWorker", model_name="noop", to_zero=True, synchronous=True, **fields)
        await until(lambda: services.described()["minWorkers"] == 0)
        if grace_s is None:
            await jump(mock_clock, 9)
            assert outcome == []
            await jump(mock_clock, 1)
        elif grace_s:
            await jump(mock_clock, grace_s - 0.5)
            assert outcome == []
            await jump(mock_clock, 1)
        await until(lambda: outcome)
        assert outcome == ([b"x"] if grace_s is None else [500])
        assert (await twin.end(scaling)).text == "Workers scaled to 0 for model: noop"


async def test_scalings_that_are_refused(twin: Twin) -> None:
    await twin.services.register()
    details = f"max_worker cannot be less than min_worker.\n{HTTP}BadRequestException"
    told = await twin.refused(
        "ScaleWorker", "INVALID_ARGUMENT", details, model_name="nosuch", min_worker=3, max_worker=1
    )
    assert told.cause == {"field": "max_worker", "value": 1, "allowed": "3 or more"}
    details = f"Model not found: \n{ARCHIVE}ModelNotFoundException"
    await twin.refused("ScaleWorker", "NOT_FOUND", details, min_worker=1)
    details = f"Model version: 9 does not exist for model: noop\n{ARCHIVE}ModelVersionNotFoundException"
    await twin.refused("ScaleWorker", "NOT_FOUND", details, model_name="noop", model_version="9")
    details = f"min_worker must be at most 1024: {2**31 - 1}\n{HTTP}BadRequestException"
    await twin.refused("ScaleWorker", "INVALID_ARGUMENT", details, model_name="noop", min_worker=2**31 - 1)


async def test_a_scaling_whose_worker_fails_names_no_version(twin: Twin) -> None:
    twin.services.mar(handler="broken")
    await twin.services.register()
    details = f"Failed to start workers for model noop version: null\n{HTTP}InternalServerException"
    await twin.refused("ScaleWorker", "INTERNAL", details, model_name="noop", synchronous=True)


# ---- describe, list


async def test_describe(twin: Twin) -> None:
    """The same as REST shows, indented, without a newline behind it."""
    await twin.services.register()
    told = await twin.call("DescribeModel", model_name="noop")
    assert told.json == twin.services.describe.one("noop", None)
    assert told.text == json.dumps(told.json, indent=2, ensure_ascii=False)
    for version, shown in (("1.0", 1), ("2.0", 1), ("all", 2)):
        if version == "2.0":
            twin.services.mar("two.mar", version="2.0")
            await twin.services.register("two.mar")
        told = await twin.call("DescribeModel", model_name="noop", model_version=version)
        assert len(told.json) == shown


async def test_customized(twin: Twin) -> None:
    """The fake worker answers with the request's first input, and a describe call has none: nothing said."""
    await twin.services.register(initial_workers=1, synchronous=True)
    told = await twin.call("DescribeModel", model_name="noop", customized=True)
    assert (told.code, told.json[0]["modelName"]) == ("OK", "noop")
    told = await twin.call("DescribeModel", model_name="noop", model_version="all", customized=True)
    assert [(version["modelVersion"], len(version["workers"])) for version in told.json] == [("1.0", 1)]


async def test_descriptions_that_are_refused(twin: Twin) -> None:
    await twin.services.register()
    for customized in (False, True):
        ask = partial(twin.refused, "DescribeModel", customized=customized)
        await ask("NOT_FOUND", f"Model not found: \n{ARCHIVE}ModelNotFoundException")
        details = f"Model version: 9 does not exist for model: noop\n{ARCHIVE}ModelVersionNotFoundException"
        await ask("NOT_FOUND", details, model_name="noop", model_version="9")
    sentence = 'Model "noop" has no worker to serve describe request. Please use scale workers API to add workers.'
    await ask("UNAVAILABLE", f"{sentence}\n{HTTP}ServiceUnavailableException", model_name="noop")


async def test_list(twin: Twin) -> None:
    for name in ("b", "a", "C"):
        await twin.services.register(model_name=name)
    told = await twin.call("ListModels")
    assert told.json == {"models": [{"modelName": name, "modelUrl": "noop.mar"} for name in ("C", "a", "b")]}
    assert told.text == json.dumps(told.json, indent=2)
    assert (await twin.call("ListModels", limit=-5, next_page_token=-1)).json == told.json
    first = (await twin.call("ListModels", limit=2)).json
    assert [model["modelName"] for model in first["models"]] == ["C", "a"]
    rest = (await twin.call("ListModels", limit=2, next_page_token=int(first["nextPageToken"]))).json
    assert rest == {"models": [{"modelName": "b", "modelUrl": "noop.mar"}]}
    lost = await twin.call("ListModels", next_page_token=2**31 - 1)
    assert (lost.code, lost.kind) == ("INVALID_ARGUMENT", "BadRequestException")
    assert lost.cause["field"] == "next_page_token"


# ---- set default, unregister


async def test_set_default_and_unregister(twin: Twin) -> None:
    services = twin.services
    await services.register()
    services.mar("two.mar", version="2.0")
    await services.register("two.mar")
    details = f"Cannot remove default version for model noop\n{ARCHIVE}InvalidModelVersionException"
    await twin.refused("UnregisterModel", "FAILED_PRECONDITION", details, model_name="noop")
    text = 'Default version successfully updated for model "noop" to "2.0"'
    await twin.done("SetDefault", text, model_name="noop", model_version="2.0")
    await twin.done("UnregisterModel", 'Model "noop" unregistered', model_name="noop", model_version="1.0")
    assert services.keys() == ["noop:2.0"]
    await twin.done("UnregisterModel", 'Model "noop" unregistered', model_name="noop")
    assert services.keys() == []


async def test_names_that_are_missing_or_unknown(twin: Twin) -> None:
    await twin.services.register()
    details = f"Parameter url is required.\n{HTTP}BadRequestException"  # sic, as recorded
    assert (await twin.refused("UnregisterModel", "INVALID_ARGUMENT", details)).cause == {"field": "model_name"}
    details = f"Model not found: zz\n{ARCHIVE}ModelNotFoundException"
    await twin.refused("UnregisterModel", "NOT_FOUND", details, model_name="zz")
    await twin.refused("SetDefault", "NOT_FOUND", details, model_name="zz", model_version="1.0")
    await twin.refused("SetDefault", "NOT_FOUND", f"Model not found: \n{ARCHIVE}ModelNotFoundException")
    for version in ("", "9"):
        details = f"Model version {version} does not exist for model noop\n{ARCHIVE}ModelVersionNotFoundException"
        await twin.refused("SetDefault", "NOT_FOUND", details, model_name="noop", model_version=version)


async def test_the_model_api_off(tmp_path: Path) -> None:
    async with serving(tmp_path, enable_model_api=False) as twin:
        await twin.services.register()
        details = f"Model API disabled\n{ARCHIVE}ModelException"
        for method in ("RegisterModel", "UnregisterModel"):
            told = await twin.refused(method, "PERMISSION_DENIED", details)
            assert told.cause["setting"] == "enable_model_api"
        assert (await twin.call("DescribeModel", model_name="noop")).code == "OK"
        assert (await twin.call("ScaleWorker", model_name="noop", synchronous=True)).code == "OK"


# ---- clients that leave, and who asked


async def test_a_client_that_cancels_a_registration_cancels_its_wait(twin: Twin, mock_clock: MockClock) -> None:
    services = twin.services
    services.mar(handler="slow_load")
    call = twin.client.begin("RegisterModel", url="noop.mar", initial_workers=1, synchronous=True)
    await until(lambda: services.launcher.asked == 1)
    call.cancel()
    assert (await twin.end(call)).code == "CANCELLED"
    await jump(mock_clock, LOAD_S)
    await until(lambda: services.statuses() == ["READY"])
    await services.same_in_store()


async def test_a_deadline_that_passes_leaves_the_roll_back(twin: Twin, mock_clock: MockClock) -> None:
    services = twin.services
    services.mar(handler="slow_broken")
    call = twin.client.begin("RegisterModel", url="noop.mar", initial_workers=1, synchronous=True, within_s=1)
    await until(lambda: services.launcher.asked == 1)
    assert (await twin.end(call)).code == "DEADLINE_EXCEEDED"
    assert services.keys() == ["noop:1.0"]
    await jump(mock_clock, LOAD_S)
    await until(lambda: services.keys() == [] and services.launcher.alive == [])
    await until(lambda: services.kept() == [] and services.in_progress() == [])


async def test_a_client_that_cancels_during_the_commit(twin: Twin) -> None:
    """Memory follows the store, and the workers follow memory."""
    services = twin.services
    services.store.shut()
    call = twin.client.begin("RegisterModel", url="noop.mar", initial_workers=1, synchronous=True)
    await services.store.reached.wait()
    call.cancel()
    services.store.open()
    await until(lambda: services.keys() == ["noop:1.0"] and services.statuses() == ["READY"])
    await services.same_in_store()


async def test_a_client_that_cancels_an_unregistration(twin: Twin, mock_clock: MockClock) -> None:
    services = twin.services
    services.launcher.play(Script(batch_s=10))
    await services.register(initial_workers=1, synchronous=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(services.predict)
        await until(lambda: services.described()["workers"][0]["tserve"]["phase"] == "busy")
        call = twin.client.begin("UnregisterModel", model_name="noop")
        await until(lambda: services.keys() == [])
        call.cancel()
        await jump(mock_clock, 10)
    await until(lambda: services.launcher.alive == [] and services.kept() == [])


async def test_the_history_names_the_client(twin: Twin) -> None:
    await twin.call("RegisterModel", url="noop.mar")
    await twin.call("ScaleWorker", model_name="noop")
    await twin.call("UnregisterModel", model_name="noop")
    assert [(kind, address) for kind, _, address in twin.services.store.changes] == [
        ("add_version", "127.0.0.1"),
        ("replace_version", "127.0.0.1"),
        ("remove_version", "127.0.0.1"),
    ]


# ---- statuses, texts, bytes


def test_the_wire_is_the_one_that_clients_know() -> None:
    """Every method, message and field of TorchServe's, as a client of PyPI was compiled with them."""
    theirs, ours = management_pb2.DESCRIPTOR, POOL.FindServiceByName(MANAGEMENT)
    (service,) = theirs.services_by_name.values()
    assert service.full_name == ours.full_name
    for method in service.methods:
        mine = ours.methods_by_name[method.name]
        assert mine.input_type.full_name == method.input_type.full_name
        assert mine.output_type.full_name == method.output_type.full_name
    for known in theirs.message_types_by_name.values():
        fields = POOL.FindMessageTypeByName(known.full_name).fields_by_number
        for field in known.fields:
            assert (fields[field.number].name, fields[field.number].type) == (field.name, field.type)
        added = set(fields) - {field.number for field in known.fields} - {11}  # startup_timeout, which came later
        assert all(number >= 1000 for number in added)


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (BadRequest("no"), "INVALID_ARGUMENT", HTTP + "BadRequestException"),
        (InvalidModel("no"), "INVALID_ARGUMENT", ARCHIVE + "InvalidModelException"),
        (DependenciesFailed("n"), "INVALID_ARGUMENT", ARCHIVE + "ModelException"),
        (DownloadFailed("u"), "INVALID_ARGUMENT", "org.pytorch.serve.archive.DownloadArchiveException"),
        (DefaultVersionInUse("n"), "FAILED_PRECONDITION", ARCHIVE + "InvalidModelVersionException"),
        (ModelNotFound("n"), "NOT_FOUND", ARCHIVE + "ModelNotFoundException"),
        (ModelVersionNotFound("n", "v"), "NOT_FOUND", ARCHIVE + "ModelVersionNotFoundException"),
        (Conflict("n", "v"), "ALREADY_EXISTS", HTTP + "ConflictStatusException"),
        (AnswerTimeout(1), "DEADLINE_EXCEEDED", HTTP + "RequestTimeoutException"),
        (ServiceUnavailable("no"), "UNAVAILABLE", HTTP + "ServiceUnavailableException"),
        (InternalServer("no"), "INTERNAL", HTTP + "InternalServerException"),
        (InternalServer("no", code=503), "UNAVAILABLE", HTTP + "InternalServerException"),
        (InternalServer("no", code=507), "RESOURCE_EXHAUSTED", HTTP + "InternalServerException"),
        (InternalServer("no", code=404), "NOT_FOUND", HTTP + "InternalServerException"),
        (ModelApiDisabled(), "PERMISSION_DENIED", ARCHIVE + "ModelException"),
    ],
)
def test_statuses(error: TserveError, code: str, kind: str) -> None:
    refusal = refuse(error)
    assert (refusal.code.name, refusal.details) == (code, f"{error.message}\n{kind}")


def test_every_error_names_a_status_that_grpc_has() -> None:
    def below(kind: type[TserveError]) -> list[type[TserveError]]:
        return [kind, *(kind for sub in kind.__subclasses__() for kind in below(sub))]

    assert {kind.grpc_status for kind in below(TserveError)} <= {code.name for code in grpc.StatusCode}


def test_too_few_gpus() -> None:
    refusal = refuse(WorkerInitialization.no_devices("n", 4, gpus=2))
    text = "Error while creating workers\norg.pytorch.serve.wlm.WorkerInitializationException"
    assert (refusal.code.name, refusal.details) == ("INTERNAL", text)
    assert refusal.cause["reason"] == "not_enough_gpus"


@pytest.mark.parametrize("name", ["x" * 5000, "é\0\r\n" * 2000, "\U0001f600" * 100_000, "a\nb" * 3000])
async def test_texts_that_no_client_would_take_whole(twin: Twin, name: str) -> None:
    """Status and class arrive all the same, and as much of the rest as there is room for."""
    told = await twin.call("DescribeModel", model_name=name)
    assert (told.code, told.kind) == ("NOT_FOUND", "ModelNotFoundException")
    assert told.sentence.startswith(f"Model not found: {name}"[:200])
    told = await twin.call("RegisterModel", url="noop.mar", runtime=name)
    assert (told.code, told.kind) == ("INVALID_ARGUMENT", "BadRequestException")
    assert told.cause["field"] == "runtime"
    assert name.startswith(told.cause["value"])
    told = await twin.call("RegisterModel", url="noop.mar", model_name=name)
    assert (told.code, told.kind) == ("INVALID_ARGUMENT", "InvalidModelException")
    assert twin.services.keys() == []


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
async def test_what_is_no_message_is_refused(twin: Twin, raw: bytes) -> None:
    """Cut short, or no UTF-8."""
    told = await twin.call("DescribeModel", raw=raw)
    text = f"The request is not a message of its type.\n{HTTP}BadRequestException"
    assert (told.code, told.text) == ("INVALID_ARGUMENT", text)
    assert (await twin.call("ListModels")).code == "OK"


async def test_int32_extremes(twin: Twin) -> None:
    most, least = 2**31 - 1, -(2**31)
    numbers = ("batch_size", "max_batch_delay", "response_timeout", "startup_timeout")
    told = await twin.call("RegisterModel", url="noop.mar", initial_workers=most, **dict.fromkeys(numbers, most))
    assert (told.code, told.cause["field"]) == ("INVALID_ARGUMENT", "initial_workers")
    told = await twin.call(
        "RegisterModel", url="noop.mar", initial_workers=1, synchronous=True, **dict.fromkeys(numbers, most)
    )
    assert told.code == "OK"
    shown = twin.services.described()
    assert [shown[key] for key in ("batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout")] == [most] * 4
    scale = partial(twin.call, "ScaleWorker", model_name="noop", synchronous=True)
    assert (await scale(min_worker=1, max_worker=most, timeout=most, number_gpu=most)).code == "OK"
    assert (await scale(min_worker=least, max_worker=least, timeout=least, number_gpu=least)).code == "OK"
    assert (await twin.call("ListModels", limit=most, next_page_token=least)).code == "OK"
    assert (await twin.call("ListModels", limit=least)).code == "OK"
