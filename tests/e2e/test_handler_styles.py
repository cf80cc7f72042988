"""Handlers as public documentation and examples write them, one per way of hooking in, out of the public archiver.

| folder of handler_styles | hook |
|---|---|
| function_handle | a function `handle(data, context)`, called without data to load |
| named_entry | an entry of another name, `service:score` |
| plain_class | a class without a base: `initialize`, and a `handle` of its own |
| service_object | the older way: a class, an object of it in the module, a function that asks it |
| pre_and_post | BaseHandler with `preprocess` and `postprocess`; an eager model with a state dict |
| own_handle | BaseHandler with `handle` overridden: status, headers, content type by request |
| own_initialize | BaseHandler with `initialize` overridden: manifest, system properties, yaml; TorchScript |
| own_inference | BaseHandler with `inference` overridden, steered by `handler:` of the yaml |
| explaining | `get_insights` |
| describing | `describe_handle` |
| describing_itself | a class with `_is_describe` and `_is_explain` of its own |
| measuring | `context.metrics` in every step |
| streaming | `send_intermediate_predict_response` |
| refusing | `PredictionException` |
| micro_batching | `self.handle = MicroBatching(self)` |
| labelling | `index_to_name.json`, `map_class_to_label` |
| siblings | modules beside the handler, packages, files from the working folder |
| image_classifier | a subclass of the stock ImageClassifier with a transform of its own |
| coroutine | a coroutine `handle`, `url_path` |
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.e2e.server import Answer, Server, running

pytestmark = pytest.mark.e2e
SOURCES = Path(__file__).parent / "handler_styles"


def two_sums(path: Path) -> None:
    """Weights of `layer` in model.py: the sum of three numbers, and the first two's difference with 0.5 added."""
    weights = {"layer.weight": torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]]), "layer.bias": torch.tensor([0, 0.5])}
    torch.save(weights, path)


class Plus(torch.nn.Module):
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers + 1


class Total(torch.nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.sum(dim=1)


def script(module: type[torch.nn.Module]) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # users' archives have it
            torch.jit.save(torch.jit.trace(module(), torch.ones(2, 2)), path)

    return save


@dataclass(frozen=True)
class Style:
    """How `torch-model-archiver` is called for a folder; `weights` writes the serialized file."""

    handler: str = "handler.py"
    model_file: str = ""
    weights: Callable[[Path], None] | None = None
    extra: str = ""
    format: str = "default"


STYLES = {
    "function_handle": Style(weights=script(Plus)),
    "named_entry": Style("service:score", format="tgz"),
    "plain_class": Style(extra="stop_words.txt"),
    "service_object": Style("my_service.py", weights=script(Total)),
    "pre_and_post": Style(model_file="model.py", weights=two_sums),
    "own_handle": Style(),
    "own_initialize": Style(weights=script(Plus), extra="setup_config.json", format="no-archive"),
    "own_inference": Style(model_file="growth.py"),
    "explaining": Style(model_file="model.py", weights=two_sums),
    "describing": Style(),
    "describing_itself": Style(),
    "measuring": Style(),
    "streaming": Style(),
    "refusing": Style(),
    "micro_batching": Style(model_file="model.py", weights=two_sums),
    "labelling": Style(model_file="model.py", extra="index_to_name.json"),
    "siblings": Style(extra="normalizer.py,words.json,extra", format="zip-store"),
    "image_classifier": Style("digit_handler.py", model_file="shade.py"),
    "coroutine": Style(),
}
SUFFIXES = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}


def archive(name: str, store: Path, scratch: Path) -> str:
    """Pack a folder as its user would; the file in the store."""
    style, folder = STYLES[name], SOURCES / name
    options = ["--model-name", name, "--version", "1.5", "--handler", style.handler, "--export-path", str(store)]
    options += ["--archive-format", style.format]
    if style.weights is not None:
        style.weights(scratch / "weights.pt")
        options += ["--serialized-file", str(scratch / "weights.pt")]
    if style.model_file:
        options += ["--model-file", style.model_file]
    if style.extra:
        options += ["--extra-files", style.extra]
    if (folder / "model-config.yaml").exists():
        options += ["--config-file", "model-config.yaml"]
    # The archiver works in a folder of this name in the folder for temporary files.
    environ = {**os.environ, "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "model_archiver.model_packaging", *options]
    subprocess.run(command, cwd=folder, env=environ, check=True, capture_output=True)
    return name + SUFFIXES[style.format]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("styles")
    store = folder / "store"
    store.mkdir()
    with running(Server(folder / "server", store)) as server:
        yield server


@pytest.fixture
def model(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Iterator[str]:
    """The style of that name, served while the test runs.  What it prints is shown when the test has failed."""
    name: str = request.param
    answer = server.register(archive(name, server.store, tmp_path), initial_workers=1, synchronous=True)
    assert answer.status == 200, answer
    yield name
    (described,) = server.describe(name)
    assert [worker["tserve"]["restarts"] for worker in described["workers"]] == [0]
    assert server.unregister(name).status == 200
    print(server.log()[-4000:])


def styles(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model", names, indirect=True)


def ask(
    server: Server, model: str, body: Any, *, kind: str = "", headers: Mapping[str, str] | None = None, path: str = ""
) -> Answer:
    """`body`: what JSON can say, text, or bytes; each with its content type unless `kind` is one.

    `path` is what follows the listener's address, the model's predictions without one.
    """
    if isinstance(body, bytes):
        data, usual = body, "application/octet-stream"
    elif isinstance(body, str):
        data, usual = body.encode(), "text/plain"
    else:
        data, usual = json.dumps(body).encode(), "application/json"
    given = {"Content-Type": kind or usual, **(headers or {})}
    return server.call("POST", path or f"/predictions/{model}", role="inference", body=data, headers=given)


def together(server: Server, model: str, bodies: list[Any], **given: Any) -> list[Answer]:
    """The answers to requests sent at the same time."""
    start = threading.Barrier(len(bodies))

    def one(body: Any) -> Answer:
        start.wait()
        return ask(server, model, body, **given)

    with ThreadPoolExecutor(len(bodies)) as clients:
        return list(clients.map(one, bodies))


def form(**fields: bytes) -> tuple[bytes, str]:
    """A multipart form with a file in each field, and its content type."""
    parts = [
        b'--limit\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in fields.items()
    ]
    return b"".join(parts) + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def picture(*shades: int) -> bytes:
    image = Image.frombytes("L", (2, 2), bytes(shades))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@styles("function_handle")
def test_a_function(server: Server, model: str) -> None:
    answer = ask(server, model, [1, 2.5])
    assert (answer.status, answer.body) == (200, b"[\n  2.0,\n  3.5\n]")
    assert "content-type" not in answer.headers
    body, kind = form(data=b"[7]")
    assert ask(server, model, body, kind=kind).json == [8.0]
    assert "model function_handle is loaded" in server.log(), "what it logs is in the model's log"
    refused = ask(server, model, {"no": "tensor"})
    assert (refused.status, refused.text) == (503, "Prediction failed")
    assert "handler.py" in refused.json["tserve"]["detail"]


@styles("named_entry")
def test_an_entry_of_another_name(server: Server, model: str) -> None:
    assert ask(server, model, "four words are here").json == 12


@styles("plain_class")
def test_a_class_without_a_base(server: Server, model: str) -> None:
    assert ask(server, model, b"The tale of a Tail of a tail").json == {"tail": 2, "tale": 1}
    body, kind = form(data=b"a word")
    assert ask(server, model, body, kind=kind).json == {"word": 1}


@styles("service_object")
def test_an_object_in_the_module(server: Server, model: str) -> None:
    assert ask(server, model, b"1,2,3.5").json == {"sum": 6.5}
    form = "data=1,2&data=3,4"
    assert ask(server, model, form, kind="application/x-www-form-urlencoded").json == {"sum": 7.0}, "the last of a name"


@styles("pre_and_post")
def test_base_handler_with_steps_of_its_own(server: Server, model: str) -> None:
    """The same object answers all requests."""
    answers = [ask(server, model, [1.0, 2.0, 3.0]).json, ask(server, model, [5.0, 1.0, 0.0]).json]
    assert answers == [{"prediction": [6.0, -0.5], "call": 1}, {"prediction": [6.0, 4.5], "call": 2}]


@styles("own_handle")
def test_status_headers_and_type_by_request(server: Server, model: str) -> None:
    """Three requests of one batch, and the one that cannot be read fails alone."""
    kinds = ["text/csv", "application/octet-stream", "*/*"]
    bodies: list[Any] = [{"numbers": [1, 2]}, {"numbers": [65, 66]}, {"numbers": ["no"]}]
    with ThreadPoolExecutor(3) as clients:
        asked = [
            clients.submit(ask, server, model, body, headers={"Accept": kind})
            for body, kind in zip(bodies, kinds, strict=True)
        ]
        table, raw, bad = (each.result() for each in asked)
    assert (table.status, table.headers["content-type"], table.headers["x-rows"]) == (200, "text/csv", "3")
    assert table.body == b"1.0,2.0\r\n2.0,4.0\r\n"
    assert (raw.status, raw.headers["content-type"], raw.body) == (200, "application/octet-stream", b"AB")
    assert (bad.status, bad.body, bad.headers["x-reason"]) == (422, b"no numbers in {'numbers': ['no']}", "ValueError")
    assert "x-rows" not in bad.headers


@styles("own_initialize")
def test_initialize_from_the_context(server: Server, model: str) -> None:
    assert ask(server, model, "41").json == {
        "value": 41.5,
        "name": "own_initialize",
        "manifest name": "own_initialize",
        "version": "1.5",
        "folder": True,
        "batch": 4,
        "server": "MMS",
        "gpu": None,
    }
    assert ask(server, model, "1", path=f"/predictions/{model}/1.5").json["value"] == 1.5


@styles("own_inference")
def test_inference_by_the_settings_of_the_yaml(server: Server, model: str) -> None:
    assert ask(server, model, [1, 2, 10]).json == [8.0, 16.0, 20.0]


@styles("explaining")
def test_explanations(server: Server, model: str) -> None:
    assert ask(server, model, {"data": [1.0, 2.0, 3.0]}).json == [6.0, -0.5]
    path = f"/explanations/{model}"
    raw = {"data": [1.0, 2.0, 3.0]}
    assert ask(server, model, raw, path=path).json == {"target": 0, "shares": [1.0, 2.0, 3.0], "raw": raw}
    fields = {"data": b"[1.0, 2.0, 3.0]", "target": b"1"}
    parts = b"".join(
        b'--limit\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\nContent-Type: application/json\r\n\r\n'
        b"%s\r\n" % (name.encode(), value)
        for name, value in fields.items()
    )
    kind = "multipart/form-data; boundary=limit"
    answer = ask(server, model, parts + b"--limit--\r\n", kind=kind, path=path)
    assert answer.json == {"target": 1, "shares": [1.0, -2.0, 0.0], "raw": [1.0, 2.0, 3.0]}
    assert ask(server, model, raw).json == [6.0, -0.5], "it predicts again"


@styles("describing", "describing_itself")
def test_customized_metadata(server: Server, model: str) -> None:
    said: dict[str, Any] = {
        "describing": {"labels": ["cat", "dog"], "input": {"shape": [1, -1], "type": "text"}},
        "describing_itself": {"name": model, "rows": [{}]},
    }
    predicted: dict[str, Any] = {"describing": b"dog", "describing_itself": b"an answer"}
    (described,) = server.call("GET", f"/models/{model}", customized=True).json
    assert described["customizedMetadata"] == said[model]
    assert ask(server, model, "odd").body == predicted[model], "it predicts again"
    (plain,) = server.describe(model)
    assert "customizedMetadata" not in plain
    if model == "describing_itself":
        assert ask(server, model, "odd", path=f"/explanations/{model}").body == b"because"


@styles("measuring")
def test_metrics(server: Server, model: str) -> None:
    """They are taken in, and are no lines of the model's log."""
    gauges = ["Filled", "HandlerTime", "PredictionTime", "PreprocessTime", "RequestSize"]
    counters = ["ModelLoads", "RequestRows"]
    seen = {"gauge": gauges, "counter": counters, "histogram": ["TextLength"]}
    assert ask(server, model, b"12").json == {"answer": 12, "metrics": seen, "unit": "count"}
    seen["counter"] = ["ModelLoads", "NotANumber", "RequestRows"]
    assert ask(server, model, b"twelve").json == {"answer": None, "metrics": seen, "unit": "count"}
    assert "[METRICS]" not in server.log()
    (described,) = server.describe(model)
    assert "RequestRows" not in json.dumps(described)


@styles("streaming")
def test_a_stream(server: Server, model: str) -> None:
    """Both requests of a batch get their pieces, one chunk of HTTP each."""
    answers = together(server, model, [{"prompt": "A"}, {"prompt": "B"}])
    assert [answer.body.decode() for answer in answers] == [f"{name}: once upon a time." for name in "AB"]
    for answer in answers:
        assert (answer.headers["content-type"], answer.headers["ts_stream_next"]) == ("text/event-stream", "true")
        assert answer.headers["transfer-encoding"] == "chunked"


@styles("refusing")
def test_a_prediction_exception(server: Server, model: str) -> None:
    def refusal(body: Any) -> tuple[int, str, str]:
        answer = ask(server, model, body)
        assert answer.json["code"] == answer.status
        return answer.status, answer.json["type"], answer.text

    assert ask(server, model, "stressed").body == b"desserts"
    assert refusal(b"bytes") == (415, "InternalServerException", "Send text/plain.")
    assert refusal("") == (500, "InternalServerException", "Nothing was sent.")
    # 413 is what the front end says of a request; a handler's becomes 507, as recorded.
    assert refusal("far too much text") == (507, "InternalServerException", "No more than 10 characters.")
    assert ask(server, model, "stressed").body == b"desserts"


@styles("micro_batching")
def test_micro_batches(server: Server, model: str) -> None:
    answers = together(server, model, [f"{n} {n} 0" for n in range(4)])
    assert [answer.json for answer in answers] == [{"sums": [2.0 * n, 0.5], "rows": 2} for n in range(4)]


@styles("labelling")
def test_labels(server: Server, model: str) -> None:
    answer = ask(server, model, {"features": [0.25, 2.0, 0.5]})
    assert list(answer.json.items()) == [("banana", 2.0), ("cherry", 0.5)], "the likeliest first"


@styles("siblings")
def test_modules_and_files_beside_the_handler(server: Server, model: str) -> None:
    assert ask(server, model, " Apple ").body == b"I SEE AN APPLE, APPLES!"
    assert ask(server, model, "pup").body == b"I SEE A DOG, DOGS!"


@styles("image_classifier")
def test_a_subclass_of_a_stock_handler(server: Server, model: str) -> None:
    assert ask(server, model, picture(0, 10, 0, 0)).json == 0
    body, kind = form(data=picture(255, 250, 200, 255))
    assert ask(server, model, body, kind=kind).json == 1
    bad = ask(server, model, b"no picture")
    assert bad.status == 400
    assert "no known format" in bad.json["error"]


@styles("coroutine")
def test_a_coroutine(server: Server, model: str) -> None:
    assert ask(server, model, b"", path=f"/predictions/{model}/1.5/v1/models").json == {"data": [{"id": model}]}
    answers = together(server, model, [{"together": 3, "pieces": 2}] * 3)
    assert [answer.body for answer in answers] == [b"data: 0\n\ndata: 1\n\ndata: [DONE]\n\n"] * 3


def test_each_style_is_tried() -> None:
    """A folder without a test, or a row of the table above without a folder, is a mistake."""
    rows = {line.split("|")[1].strip() for line in (__doc__ or "").splitlines() if line.startswith("| ")}
    assert rows - {"folder of handler_styles"} == set(STYLES) == {path.name for path in SOURCES.iterdir()}
