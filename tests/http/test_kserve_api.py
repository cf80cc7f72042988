"""KServe's paths and the Open Inference Protocol over real sockets (spec/inference.md section 7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.http.client import Answer, Client
from tests.http.stack import Api, serving
from tests.services.stack import until
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import JobReply, JobRequest

NOT_FOUND = "Requested resource is not found, please refer to API document."
NOT_ALLOWED = "Requested method is not allowed, please refer to API document."


@pytest.fixture
async def oip(tmp_path: Path) -> AsyncIterator[Api]:
    """With the Open Inference Protocol on."""
    async with serving(tmp_path, ts_open_inference_protocol=True) as served:
        served.services.mar()
        yield served


def shown(answer: Answer) -> tuple[int, Any]:
    """Status and what is said: the message of an error, else all of it."""
    assert answer.header("content-type") == "application/json"
    return answer.status, answer.json.get("message", answer.json)


class Named:
    """A handler that says which model and version it is, and keeps the last request."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.last: JobRequest | None = None

    def __call__(self, spec: WorkerSpec, request: JobRequest) -> JobReply:
        self.last = request
        return JobReply(200, "", {}, self.word.encode())


# ---- predictions


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "BREW"])
@pytest.mark.parametrize(
    ("target", "explain"),
    [
        ("/v1/models/noop:predict", "False"),
        ("/v1/models/noop:predict/", "False"),
        ("/v1/models/noop%3Apredict", "False"),
        ("/v1/models/noop:predictions", "False"),
        ("/v1/models/noop:explain", "True"),
        ("/v2/models/noop/infer", "False"),
        ("/v2/models/noop/infer?model_name=other&x=1", "False"),
        ("/v2/models/noop/explain", "True"),
    ],
)
async def test_aliases_predict_with_the_default_version(api: Api, method: str, target: str, explain: str) -> None:
    """The body and the headers come as they are; the query is ignored; there is no `url_path`."""
    first, second = Named("first"), Named("second")
    await api.up(first)
    await api.up(second, version="2.0")
    answer = await api.inference.ask(method, target, b'{"x": 1}', [("Content-Type", "application/json"), ("Mine", "1")])
    assert (answer.status, answer.body, answer.header("content-type")) == (200, b"first", None)
    assert first.last is not None
    assert [(each.name, each.content_type, each.value) for each in first.last.inputs] == [
        ("body", "application/json", b'{"x": 1}')
    ]
    assert first.last.headers["Mine"] == "1"
    assert {name: first.last.headers.get(name) for name in ("explain", "url_path")} == {
        "explain": explain,
        "url_path": None,
    }


async def test_the_default_version_is_the_one_of_now(api: Api) -> None:
    await api.up(Named("first"))
    await api.up(Named("second"), version="2.0")
    await api.management.put("/models/noop/2.0/set-default")
    assert (await api.inference.post("/v2/models/noop/infer")).body == b"second"


async def test_a_name_with_a_colon(api: Api) -> None:
    await api.up(Named("colon"), name="a:b")
    assert (await api.inference.post("/v1/models/a:b:predict")).body == b"colon"
    assert shown(await api.management.get("/v1/models/a:b")) == (200, {"name": "a:b", "ready": True})
    assert shown(await api.management.get("/v1/models/a:b:predict")) == (404, "Model not found: a")


@pytest.mark.parametrize("target", ["/v1/models/noop:predict", "/v2/models/noop/infer", "/v2/models/noop/explain"])
async def test_nobody_to_predict(api: Api, target: str) -> None:
    assert shown(await api.inference.post(target)) == (404, "Model not found: noop")
    await api.services.register()
    status, message = shown(await api.inference.post(target))
    assert status == 503
    assert message.startswith('Model "noop" has no worker to serve inference request.')
    assert (await api.inference.ask("OPTIONS", target)).json["info"]["title"] == "RESTful API for: noop"


OFF = [
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/noop",
    "/v2/models/noop/ready",
    "/v2/models/noop/versions/1.0",
    "/v2/models/noop/versions/1.0/infer",
]


@pytest.mark.parametrize(
    "target", [*OFF, "/v1/models/noop", "/v1/models", "/v1/models/noop:zzz", "/v2/models/noop/zzz"]
)
async def test_what_is_not_there_unless_it_is_turned_on(api: Api, target: str) -> None:
    await api.up()
    for method in ("GET", "POST"):
        assert shown(await api.inference.ask(method, target)) == (404, NOT_FOUND)


# ---- readiness of v1


async def test_readiness_on_the_management_port(api: Api) -> None:
    assert shown(await api.management.get("/v1/models/noop")) == (404, "Model not found: noop")
    assert shown(await api.management.get("/v1/models/noop:predict")) == (404, "Model not found: noop")
    await api.services.register()
    assert shown(await api.management.get("/v1/models/noop")) == (200, {"name": "noop", "ready": False})
    await api.services.scale(min_worker=1, synchronous=True)
    for target in ("/v1/models/noop", "/v1/models/noop:predict", "/v1/models/noop:", "/v1/models/noop/"):
        assert shown(await api.management.get(target)) == (200, {"name": "noop", "ready": True})
    assert shown(await api.management.get("/v1/models")) == (404, NOT_FOUND)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert shown(await api.management.ask(method, "/v1/models/noop")) == (405, NOT_ALLOWED)


async def test_a_worker_that_loads_is_not_ready(oip: Api) -> None:
    may_speak = oip.services.launcher.may_speak = trio.Event()
    await oip.services.register(initial_workers=1)
    assert shown(await oip.management.get("/v1/models/noop")) == (200, {"name": "noop", "ready": False})
    assert shown(await oip.inference.get("/v2/models/noop/ready")) == (503, {"name": "noop", "ready": False})
    assert shown(await oip.inference.get("/v2/health/ready")) == (503, {"ready": False})
    assert shown(await oip.inference.get("/v2/health/live")) == (200, {"live": True})
    may_speak.set()
    await until(lambda: oip.services.statuses() == ["READY"])
    assert shown(await oip.management.get("/v1/models/noop")) == (200, {"name": "noop", "ready": True})
    assert shown(await oip.inference.get("/v2/models/noop/ready")) == (200, {"name": "noop", "ready": True})
    assert shown(await oip.inference.get("/v2/health/ready")) == (200, {"ready": True})


async def test_the_model_is_as_ready_as_its_default_version(oip: Api) -> None:
    await oip.services.register()
    await oip.up(version="2.0")
    assert (await oip.inference.get("/v2/models/noop/ready")).status == 503
    await oip.management.put("/models/noop/2.0/set-default")
    assert (await oip.inference.get("/v2/models/noop/ready")).status == 200
    assert (await oip.inference.get("/v2/health/ready")).status == 200, "nobody wants a worker of the other one"


# ---- the Open Inference Protocol


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_server(oip: Api, method: str) -> None:
    status, body = shown(await oip.inference.ask(method, "/v2"))
    assert (status, list(body)) == (200, ["name", "version", "extenstion", "extensions"])
    assert body["name"] == "Torchserve"
    assert body["extensions"] == body["extenstion"] == ["kserve", "kubeflow"]


YAML = """
inputs: [{name: pixels, datatype: FP32, shape: [-1, 784]}]
outputs: [{name: digit, datatype: INT64, shape: [-1]}]
"""


async def test_metadata(oip: Api) -> None:
    assert shown(await oip.inference.get("/v2/models/noop")) == (404, "Model not found: noop")
    await oip.services.register()
    expected = {"name": "noop", "versions": ["1.0"], "platform": "pytorch_torchserve", "inputs": [], "outputs": []}
    assert shown(await oip.inference.get("/v2/models/noop")) == (200, expected)
    await oip.services.register(oip.services.mar("two.mar", version="2.0", config=YAML))
    await oip.management.put("/models/noop/2.0/set-default")
    inputs = [{"name": "pixels", "datatype": "FP32", "shape": [-1, 784]}]
    outputs = [{"name": "digit", "datatype": "INT64", "shape": [-1]}]
    expected |= {"versions": ["1.0", "2.0"], "inputs": inputs, "outputs": outputs}
    assert shown(await oip.inference.get("/v2/models/noop")) == (200, expected)
    for target in ("/v2/models/noop", "/v2/models/noop/ready"):
        assert shown(await oip.inference.post(target)) == (405, NOT_ALLOWED)
    assert shown(await oip.inference.get("/v2/models/nosuch/ready")) == (404, "Model not found: nosuch")


@pytest.mark.parametrize("target", ["1.0", "1.0/infer", "1.0/ready", "x/y/z"])
async def test_versions_are_not_served(oip: Api, target: str) -> None:
    for method in ("GET", "POST"):
        answer = await oip.inference.ask(method, f"/v2/models/noop/versions/{target}")
        assert (answer.status, answer.json) == (501, {"error": "Model versioning is not yet supported."})
    assert shown(await oip.inference.get("/v2/models/noop/versions")) == (404, NOT_FOUND)


async def test_predictions_are_as_they_were(oip: Api) -> None:
    await oip.up(Named("fine"))
    for target in ("/v1/models/noop:predict", "/v2/models/noop/infer", "/predictions/noop", "/noop/predict"):
        assert (await oip.inference.post(target)).body == b"fine"


@pytest.mark.parametrize("target", [*OFF, "/v1/models/noop:predict", "/v2/models/noop/infer"])
async def test_none_of_it_is_on_the_management_port(oip: Api, target: str) -> None:
    await oip.up()
    answer = await oip.management.post(target)
    assert answer.status == (405 if target.startswith("/v1") else 404)


async def test_both_on_one_port(tmp_path: Path) -> None:
    """As KServe configures it."""
    async with serving(tmp_path, shared=True, ts_open_inference_protocol=True) as api:
        api.services.mar()
        await api.up(Named("fine"))
        client: Client = api.inference
        assert (await client.post("/v1/models/noop:predict")).body == b"fine"
        assert (await client.post("/v2/models/noop/infer")).body == b"fine"
        assert shown(await client.get("/v1/models/noop")) == (200, {"name": "noop", "ready": True})
        assert shown(await client.get("/v2/models/noop/ready")) == (200, {"name": "noop", "ready": True})
        assert shown(await client.post("/v1/models/noop")) == (405, NOT_ALLOWED)
        assert (await client.get("/models/noop")).status == 200
