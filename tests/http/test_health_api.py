"""/ping, /tserve/livez and /tserve/readyz over real sockets (docs/health.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.http.client import Client
from tests.http.stack import Api, Died, echo, serving
from tests.services.stack import until
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import JobRequest

READY, NOT_READY = (200, {"status": "ready"}), (503, {"status": "not ready"})


async def ask(client: Client, target: str) -> tuple[int, Any]:
    answer = await client.get(target)
    return answer.status, answer.json


@pytest.fixture(params=["inference", "management"])
async def client(api: Api, request: pytest.FixtureRequest) -> Client:
    """Every port answers the same."""
    found: Client = getattr(api, request.param)
    return found


async def test_alive(client: Client) -> None:
    assert await ask(client, "/tserve/livez") == (200, {"status": "live"})


async def test_nothing_is_wanted(api: Api, client: Client) -> None:
    assert await ask(client, "/tserve/readyz") == READY
    await api.services.register()
    assert await ask(client, "/tserve/readyz") == READY
    version = {"modelVersion": "1.0", "default": True, "state": "stopped", "ready": 0, "wanted": 0}
    models = [{"modelName": "noop", "versions": [version]}]
    assert await ask(client, "/tserve/readyz?verbose=true") == (200, {"status": "ready", "models": models})
    status, body = await ask(client, "/tserve/readyz/models/noop")
    assert (status, body) == (503, {"status": "not ready", "modelName": "noop", **version}), "it serves nobody"


async def test_starting_then_ready(api: Api, client: Client) -> None:
    may_speak = api.services.launcher.may_speak = trio.Event()
    await api.services.register(initial_workers=1)
    assert await ask(api.inference, "/ping") == (200, {"status": "Healthy"}), "as recorded"
    assert await ask(client, "/tserve/readyz") == NOT_READY
    status, body = await ask(client, "/tserve/readyz/models/noop/1.0")
    assert (status, body["state"], body["ready"], body["wanted"]) == (503, "starting", 0, 1)
    may_speak.set()
    await until(lambda: api.services.statuses() == ["READY"])
    assert await ask(client, "/tserve/readyz") == READY
    version = {"modelVersion": "1.0", "default": True, "state": "ready", "ready": 1, "wanted": 1}
    expected = {"status": "ready", "modelName": "noop", **version}
    assert await ask(client, "/tserve/readyz/models/noop") == (200, expected)
    assert await ask(client, "/tserve/readyz/models/noop/1.0") == (200, expected)


async def test_failed(api: Api, client: Client) -> None:
    """The fastest way there: a handler that is missing.  /ping says so at once, too."""
    file = api.services.mar("gone.mar", name="gone", handler="missing")
    await api.services.register(file, initial_workers=1)
    await until(lambda: not api.services.health.healthy())
    assert await ask(api.inference, "/ping") == (500, {"status": "Unhealthy"})
    assert await ask(client, "/tserve/readyz") == NOT_READY
    failure = {"reason": "handler_not_found", "detail": "no such handler"}
    version = {
        "modelVersion": "1.0",
        "default": True,
        "state": "failed",
        "ready": 0,
        "wanted": 1,
        "lastFailure": failure,
    }
    expected = {"status": "not ready", "models": [{"modelName": "gone", "versions": [version]}]}
    for query in ("?verbose", "?verbose=true", "?verbose=1"):
        assert await ask(client, f"/tserve/readyz{query}") == (503, expected)
    for query in ("?verbose=false", "?verbose=0", "?other=1"):
        assert await ask(client, f"/tserve/readyz{query}") == NOT_READY
    assert await ask(client, "/tserve/readyz/models/gone") == (
        503,
        {"status": "not ready", "modelName": "gone", **version},
    )
    assert await ask(client, "/tserve/livez") == (200, {"status": "live"})


async def test_degraded(api: Api, client: Client) -> None:
    """One worker of two; the other models and versions are as well as they were."""
    await api.up(echo, name="fine")
    await api.up(name="half")
    api.handlers.pop("handler-2")  # the next worker of it cannot be loaded
    await api.services.scale("half", min_worker=2)
    await until(lambda: not api.services.health.healthy())
    assert await ask(client, "/tserve/readyz") == NOT_READY
    _, body = await ask(client, "/tserve/readyz?verbose")
    states = {each["modelName"]: [one["state"] for one in each["versions"]] for each in body["models"]}
    assert states == {"fine": ["ready"], "half": ["degraded"]}
    status, shown = await ask(client, "/tserve/readyz/models/half")
    assert (status, shown["ready"], shown["wanted"]) == (503, 1, 2)
    assert shown["lastFailure"]["reason"] == "handler_not_found"
    assert (await ask(client, "/tserve/readyz/models/fine"))[0] == 200
    await api.services.scale("half", min_worker=1, synchronous=True)
    assert await ask(client, "/tserve/readyz") == READY


async def test_recovered(api: Api, client: Client) -> None:
    """What a worker died of stays to be seen after its successor is up."""

    def dies_once(spec: WorkerSpec, request: JobRequest) -> Any:
        raise Died

    await api.up(dies_once)
    await api.inference.post("/predictions/noop")
    await until(lambda: api.services.statuses() == ["READY"])
    status, shown = await ask(client, "/tserve/readyz/models/noop")
    assert (status, shown["state"], shown["lastFailure"]["reason"]) == (200, "ready", "crashed")


async def test_a_version_that_is_not_the_default(api: Api, client: Client) -> None:
    await api.up(name="noop")
    await api.services.register(api.services.mar("two.mar", version="2.0", handler="missing"), initial_workers=1)
    await until(lambda: api.services.health.one("noop", "2.0").failure is not None)
    assert await ask(client, "/tserve/readyz") == NOT_READY
    assert (await ask(client, "/tserve/readyz/models/noop"))[0] == 200, "its default version"
    assert (await ask(client, "/tserve/readyz/models/noop/2.0"))[0] == 503
    _, body = await ask(client, "/tserve/readyz?verbose")
    ((one, two),) = (each["versions"] for each in body["models"])
    assert (one["modelVersion"], one["default"]) == ("1.0", True)
    assert (two["modelVersion"], two["default"]) == ("2.0", False)


async def test_unknown(api: Api, client: Client) -> None:
    await api.services.register()
    for target, message in (
        ("/tserve/readyz/models/fake", "Model not found: fake"),
        ("/tserve/readyz/models/noop/9", "Model version: 9 does not exist for model: noop"),
    ):
        status, body = await ask(client, target)
        assert (status, body["message"]) == (404, message)


async def test_methods(client: Client) -> None:
    for target in ("/tserve/livez", "/tserve/readyz"):
        answer = await client.ask("HEAD", target)
        assert (answer.status, answer.body) == (200, b"")
        assert (await client.ask("POST", target)).status == 405


async def test_on_a_shared_port(tmp_path: Path) -> None:
    async with serving(tmp_path, shared=True) as shared:
        for target in ("/tserve/livez", "/tserve/readyz", "/ping", "/models"):
            assert (await shared.management.get(target)).status == 200, target
