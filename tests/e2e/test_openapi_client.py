"""A client that openapi-python-client makes of the documents: its calls work, and what it gets is typed."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.e2e.archives import write
from tests.e2e.server import Server, running

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("generated")
    store = folder / "store"
    store.mkdir()
    write(store, "echo.mar")
    write(store, "echo2.mar", version="2.0")
    config = ["worker_start=fresh", "ts_open_inference_protocol=true"]
    with running(Server(folder / "server", store, config)) as server:
        yield server


class Generated:
    """The package made of one listener's document, and a client of it."""

    def __init__(self, server: Server, role: str, folder: Path) -> None:
        described = folder / f"{role}.json"
        described.write_bytes(server.call("GET", "/tserve/openapi.json", role=role).body)
        self.name = f"generated_{role}"
        options = folder / "options.yml"
        options.write_text(json.dumps({"post_hooks": []}))
        command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", str(described)]
        command += ["--output-path", str(folder / self.name), "--meta", "none", "--config", str(options)]
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
        assert "warning" not in made.stdout.lower() + made.stderr.lower(), made.stdout
        self.client = self.module("client").Client(base_url=server.urls[role])

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.name}.{name}")

    def call(self, function: str, *arguments: Any, **options: Any) -> Any:
        """`tag.name` of an operation: the parsed answer."""
        return self.module(f"api.{function}").sync(*arguments, client=self.client, **options)

    def kind(self, name: str) -> Any:
        return getattr(self.module("models"), name)


@pytest.fixture(scope="module")
def generated(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Generated]]:
    folder = tmp_path_factory.mktemp("clients")
    sys.path.insert(0, str(folder))
    made = {role: Generated(server, role, folder) for role in ("management", "inference", "metrics")}
    yield made
    for each in made.values():
        each.client.get_httpx_client().close()
    sys.path.remove(str(folder))


def test_the_life_of_a_model(generated: dict[str, Generated]) -> None:
    management, inference = generated["management"], generated["inference"]
    status, error = management.kind("Status"), management.kind("Error")

    done = management.call("management.register_model", url_query="echo.mar", initial_workers=1, synchronous=True)
    assert isinstance(done, status)
    assert done.status == 'Model "echo" Version: 1.0 registered with 1 initial workers'
    again = management.call("management.register_model", url_query="echo.mar")
    assert isinstance(again, error)
    assert (again.code, again.type_) == (409, "ConflictStatusException")
    body = management.kind("RegisterModelBody")(url="echo2.mar", batch_size=4)
    assert isinstance(management.call("management.register_model", body=body), status)

    scaled = management.call("management.set_auto_scale", "echo", min_worker=2, synchronous=True)
    assert scaled.status == "Workers scaled to 2 for model: echo"
    (described,) = management.call("management.describe_model", "echo")
    assert isinstance(described, management.kind("ModelVersion"))
    assert (described.min_workers, [worker.status for worker in described.workers]) == (2, ["READY", "READY"])
    assert described.tserve.default is True
    versions = management.call("management.version_describe_model", "echo", "all")
    assert {each.model_version: each.batch_size for each in versions} == {"1.0": 1, "2.0": 4}

    answer = inference.call("inference.predictions", "echo", body=_file(inference, b"x"))
    assert answer.payload.read() == b"echo 1.0 of 1"
    form = inference.kind("PredictionsJsonBody").from_dict({"instances": [1]})
    assert inference.call("kserve.kserve_predict", "echo", body=form).payload.read() == b"echo 1.0 of 1"
    absent = inference.call("inference.version_predictions", "echo", "9", body=_file(inference, b"x"))
    assert isinstance(absent, inference.kind("Error"))
    assert absent.message == "Model version: 9 does not exist for model: echo"

    refused = management.call("management.unregister_model", "echo")
    assert (refused.code, refused.message) == (403, "Cannot remove default version for model echo")
    assert isinstance(management.call("management.set_default", "echo", "2.0"), status)
    events = management.call("history.version_events", "echo", "1.0", limit=2)
    assert [event.model for event in events.events] == ["echo", "echo"]
    for version in ("1.0", "2.0"):
        gone = management.call("management.version_unregister_model", "echo", version)
        assert gone.status == 'Model "echo" unregistered'
    assert management.call("management.list_models").models == []


def test_pages(server: Server, generated: dict[str, Generated]) -> None:
    """Tokens go back as they came."""
    management = generated["management"]
    for name in ("a", "b", "c"):
        assert server.register("echo.mar", model_name=name).status == 200
    listed, token = [], {}
    while True:
        page = management.call("management.list_models", limit=2, **token)
        listed += [model.model_name for model in page.models]
        if not page.next_page_token:
            break
        token = {"next_page_token": page.next_page_token}
    assert listed == ["a", "b", "c"]
    for name in listed:
        server.unregister(name)


def test_health_on_every_port(generated: dict[str, Generated]) -> None:
    for made in generated.values():
        assert made.call("health.live").status == "live"
        assert made.call("health.ready", verbose=True).models == []
    assert generated["inference"].call("health.ping").status == "Healthy"
    assert generated["inference"].call("open_inference.server_live").live is True


def _file(made: Generated, content: bytes) -> Any:
    return made.module("types").File(payload=io.BytesIO(content))
