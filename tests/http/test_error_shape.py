"""Every endpoint that can fail, as a specification: status, type and message of its errors, and the shape of them all.

Sources: spec/management.md sections 1.4 to 1.9 and 12, spec/inference.md section 4.  Rows run in order on one pair
of ports: what they find there is what FIXTURES made.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.http.client import Answer
from tests.http.stack import Api, Died, serving
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import HandlerFailed, JobReply, JobRequest

BAD, MODEL, VERSION = "BadRequestException", "ModelNotFoundException", "ModelVersionNotFoundException"
INTERNAL, INVALID = "InternalServerException", "InvalidModelException"
CONFLICT, IN_USE, BUSY = "ConflictStatusException", "InvalidModelVersionException", "ServiceUnavailableException"
NO_ROUTE, NO_METHOD = "ResourceNotFoundException", "MethodNotAllowedException"
ABSENT = "Requested resource is not found, please refer to API document."
REFUSED = "Requested method is not allowed, please refer to API document."
NO_WORKER = (
    "Model {} has no worker to serve inference request. Please use scale workers API to add workers. "
    "If this is a sequence inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)
JSON = "application/json"


@dataclass(frozen=True)
class Row:
    """One failing request.  `message` ending in `…` is compared up to there."""

    request: str
    status: int
    type: str
    message: str
    body: bytes | None = None
    content_type: str | None = None

    def __str__(self) -> str:
        return f"{self.request} {(self.body or b'')[:30]!r}"


MANAGEMENT = [
    # routes
    Row("GET /nowhere", 404, NO_ROUTE, ABSENT),
    Row("POST /models/a/b/c", 404, NO_ROUTE, ABSENT),
    Row("PUT /x/a/b/set-default", 404, NO_ROUTE, ABSENT),
    Row("GET /ping", 404, NO_ROUTE, ABSENT),
    Row("GET /", 405, NO_METHOD, REFUSED),
    Row("PUT /models", 405, NO_METHOD, REFUSED),
    Row("OPTIONS /models", 405, NO_METHOD, REFUSED),
    Row("POST /models/fake", 405, NO_METHOD, REFUSED),
    Row("GET /models/idle/1.0/set-default", 405, NO_METHOD, REFUSED),
    Row("DELETE /models/idle/1.0/set-default", 405, NO_METHOD, REFUSED),
    Row("GET /models/%zz", 400, BAD, "Invalid percent-escape '%zz' at index 8 of the path."),
    Row("GET /models?limit=%zz", 400, BAD, "Invalid percent-escape '%zz' at index 0 of the query."),
    Row(f"GET /models?x={'a' * 4096}", 400, BAD, "Invalid HTTP message."),
    # register
    Row("POST /models", 400, BAD, "Parameter url is required."),
    Row("POST /models?URL=noop.mar", 400, BAD, "Parameter url is required."),
    Row("POST /models", 400, BAD, "Parameter url is required.", b"url=noop.mar", "application/x-www-form-urlencoded"),
    Row("POST /models?url=", 404, MODEL, "empty url"),
    Row("POST /models?url=InvalidUrl&runtime=InvalidRuntime", 400, BAD, "Invalid RuntimeType value: InvalidRuntime"),
    Row("POST /models?url=noop.mar&runtime=", 400, BAD, "Invalid RuntimeType value: "),
    Row("POST /models?url=../fake.mar", 404, MODEL, "Relative path is not allowed in url: ../fake.mar"),
    Row("POST /models?url=a..b.mar", 404, MODEL, "Relative path is not allowed in url: a..b.mar"),
    Row("POST /models?url=InvalidUrl", 404, MODEL, "Model not found at: InvalidUrl"),
    Row("POST /models?url=sub/noop.mar", 404, MODEL, "Model not found at: sub/noop.mar"),
    Row("POST /models?url=ftp://h/noop.mar", 404, MODEL, "Model not found at: ftp://h/noop.mar"),
    Row(
        "POST /models?url=http://localhost:1/fake.mar",
        404,
        MODEL,
        "Given URL http://localhost:1/fake.mar does not match any allowed URL(s)",
    ),
    Row(
        "POST /models?url=http://user@localhost:1/fake.mar",
        400,
        "DownloadArchiveException",
        "Failed to download archive from: http://user@localhost:1/fake.mar",
    ),
    Row("POST /models?url=garbage.tar.gz", 500, INTERNAL, "Failed to save model: garbage.tar.gz"),
    Row("POST /models?url=nameless.mar", 400, INVALID, "Model name is not defined."),
    Row("POST /models?url=runtime.mar", 400, INVALID, "Runtime is not defined or invalid."),
    Row("POST /models?url=manifest.mar", 400, INVALID, "Failed to parse signature.json."),
    Row("POST /models?url=idle.mar", 409, CONFLICT, "Model version 1.0 is already registered for model idle"),
    Row(
        "POST /models?url=broken.mar&initial_workers=1&synchronous=true",
        500,
        INTERNAL,
        "Failed to start workers for model broken version: 1.0",
    ),
    # register, JSON body
    Row("POST /models?url=noop.mar", 400, BAD, "Parameter url is required.", b"{}", JSON),
    Row("POST /models", 400, BAD, "Parameter url is required.", b'{"url": null}', JSON),
    Row("POST /models", 404, MODEL, "empty url", b'{"url": ""}', JSON),
    Row("POST /models", 400, BAD, "Parameter url is required.", b"", JSON),
    Row("POST /models", 400, BAD, "The request body is not a JSON object of parameters: …", b"null", JSON),
    Row("POST /models", 400, BAD, "The request body is not a JSON object of parameters: …", b"[]", JSON),
    Row("POST /models", 400, BAD, "The request body is not a JSON object of parameters: …", b"{", JSON),
    Row("POST /models", 400, BAD, "The request body is not a JSON object of parameters: …", b"{} x", JSON),
    Row("POST /models", 400, BAD, "Parameter url must be a string: …", b'{"url": ["a.mar"]}', JSON),
    Row(
        "POST /models",
        400,
        BAD,
        "Parameter batch_size must be a 32-bit whole number: abc",
        b'{"url": "noop.mar", "batch_size": "abc"}',
        JSON,
    ),
    Row(
        "POST /models",
        400,
        BAD,
        "Parameter batch_size must be a 32-bit whole number: 2.5",
        b'{"url": "noop.mar", "batch_size": 2.5}',
        JSON,
    ),
    Row(
        "POST /models",
        400,
        BAD,
        "Parameter synchronous must be true or false: 1",
        b'{"url": "noop.mar", "synchronous": 1}',
        JSON,
    ),
    Row("POST /models", 413, "PayloadTooLargeException", "Request body is larger than…", b" " * 5001, JSON),
    # list
    Row("GET /models?next_page_token=1999999999", 400, BAD, "Page token 1999999999 is unknown or has expired.…"),
    # describe
    Row("GET /models/fake", 404, MODEL, "Model not found: fake"),
    Row("GET /models/fake/1.0", 404, MODEL, "Model not found: fake"),
    Row("GET /models/fake/all", 404, MODEL, "Model not found: fake"),
    Row("GET /models//1.0", 404, MODEL, "Model not found: "),
    Row("GET /models/%E6%A8%A1", 404, MODEL, "Model not found: \u6a21"),
    Row("GET /models/idle/9", 404, VERSION, "Model version: 9 does not exist for model: idle"),
    Row("GET /models/idle/set-default", 404, VERSION, "Model version: set-default does not exist for model: idle"),
    Row(
        "GET /models/idle?customized=true",
        503,
        BUSY,
        'Model "idle" has no worker to serve describe request. Please use scale workers API to add workers.',
    ),
    Row("GET /models/fake?customized=true", 404, MODEL, "Model not found: fake"),
    # scale
    Row("PUT /models/fake", 404, MODEL, "Model not found: fake"),
    Row("PUT /models/idle/9", 404, VERSION, "Model version: 9 does not exist for model: idle"),
    Row("PUT /models/idle?model_version=9", 404, VERSION, "Model version: 9 does not exist for model: idle"),
    Row("PUT /models/fake?min_worker=2&max_worker=1", 400, BAD, "max_worker cannot be less than min_worker."),
    Row("PUT /models/idle?max_worker=-1", 400, BAD, "max_worker cannot be less than min_worker."),
    Row("PUT /models/idle?min_worker=-1", 400, BAD, "min_worker cannot be negative: -1"),
    Row(
        "PUT /models/unloadable?min_worker=1&synchronous=true",
        500,
        INTERNAL,
        "Failed to start workers for model unloadable version: null",
    ),
    Row(
        "PUT /models/unloadable/1.0?min_worker=1&synchronous=true",
        500,
        INTERNAL,
        "Failed to start workers for model unloadable version: 1.0",
    ),
    # set-default
    Row("PUT /models/fake/1.0/set-default", 404, MODEL, "Model not found: fake"),
    Row("PUT /models/idle/9/set-default", 404, VERSION, "Model version 9 does not exist for model idle"),
    # unregister
    Row("DELETE /models/fake", 404, MODEL, "Model not found: fake"),
    Row("DELETE /models/two/9", 404, VERSION, "Model version: 9 does not exist for model: two"),
    Row("DELETE /models/two/all", 404, VERSION, "Model version: all does not exist for model: two"),
    Row("DELETE /models/two", 403, IN_USE, "Cannot remove default version for model two"),
    Row("DELETE /models/two/1.0", 403, IN_USE, "Cannot remove default version for model two"),
]
INFERENCE = [
    # routes
    Row("GET /nowhere", 404, NO_ROUTE, ABSENT),
    Row("GET /predictions", 404, NO_ROUTE, ABSENT),
    Row("POST /models", 404, NO_ROUTE, ABSENT),
    Row("POST /", 405, NO_METHOD, REFUSED),
    Row("OPTIONS /predictions/up/9", 404, VERSION, "Model version: 9 does not exist for model: up"),
    Row("OPTIONS /invocations", 400, BAD, "Parameter model_name is required."),
    Row("OPTIONS /predictions/fake", 404, MODEL, "Model not found: fake"),
    Row("POST /predictions/up%2", 400, BAD, "Invalid percent-escape '%2' at index 15 of the path."),
    # which model
    Row("POST /predictions/fake", 404, MODEL, "Model not found: fake"),
    Row("POST /predictions/fake/1.0/v1/chat", 404, MODEL, "Model not found: fake"),
    Row("POST /predictions/up/9", 404, VERSION, "Model version: 9 does not exist for model: up"),
    Row("POST /explanations/fake", 404, MODEL, "Model not found: fake"),
    Row("POST /models/fake/invoke", 404, MODEL, "Model not found: fake"),
    Row("POST /fake/predict", 404, MODEL, "Model not found: fake"),
    Row("POST /up/9/predict", 404, VERSION, "Model version: 9 does not exist for model: up"),
    Row("POST /invocations", 400, BAD, "Parameter model_name is required."),
    Row("POST /invocations?model_name=", 400, BAD, "Parameter model_name is required."),
    Row("POST /invocations?model_name=fake", 404, MODEL, "Model not found: fake"),
    # no worker
    Row("POST /predictions/idle", 503, BUSY, NO_WORKER.format('"idle"')),
    Row("POST /predictions/idle/1.0", 503, BUSY, NO_WORKER.format('"idle" Version 1.0"')),
    Row("POST /explanations/idle", 503, BUSY, NO_WORKER.format('"idle"')),
    Row("POST /idle/1.0/predict", 503, BUSY, NO_WORKER.format('"idle" Version 1.0"')),
    Row("POST /invocations?model_name=idle", 503, BUSY, NO_WORKER.format('"idle"')),
    # bodies
    Row("POST /predictions/up", 413, "PayloadTooLargeException", "Request body is larger than…", b" " * 5001),
    Row(
        "POST /predictions/up",
        400,
        BAD,
        "The form in the request body has more than 1000 parts.",
        b"a=&" * 1001,
        "application/x-www-form-urlencoded",
    ),
    # what handlers do; the request's body says what
    Row("POST /predictions/up", 503, INTERNAL, "Prediction failed", b"fail 503 Prediction failed"),
    Row("POST /predictions/up", 507, INTERNAL, "Out of resources", b"fail 507 Out of resources"),
    Row("POST /predictions/up", 599, INTERNAL, "my own", b"fail 599 my own"),
    Row("POST /predictions/up", 400, INTERNAL, "bad \u6a21", "fail 400 bad \u6a21".encode()),
    Row("POST /predictions/up", 503, INTERNAL, "The handler set a status that HTTP does not allow: 99", b"status 99"),
    Row("POST /predictions/up", 503, INTERNAL, "The handler set a status that HTTP …", b"status 1000"),
    Row("POST /predictions/up", 503, INTERNAL, "The handler set a header that HTTP does not allow: …", b"header a\nb"),
    Row("POST /predictions/up", 500, INTERNAL, "Worker died.", b"die"),
]


def act(spec: WorkerSpec, request: JobRequest) -> JobReply | HandlerFailed:
    """A handler that does what the body says."""
    word, _, rest = request.inputs[0].value.decode().partition(" ")
    match word:
        case "fail":
            code, _, message = rest.partition(" ")
            return HandlerFailed(int(code), message, "Traceback …")
        case "status":
            return JobReply(int(rest), "", {}, b"x")
        case "header":
            return JobReply(200, "", {"x": rest}, b"x")
        case "die":
            raise Died
    return JobReply(200, "", {}, b"fine")


async def fixtures(api: Api) -> None:
    """What the rows speak of: `idle` and `two` without workers, `up` with one; archives that are good and bad."""
    mar = api.services.mar
    for name in ("noop", "idle", "two"):
        mar(f"{name}.mar", name=name)
    for name in ("broken", "unloadable"):
        mar(f"{name}.mar", name=name, handler="nothing of this name")
    mar("nameless.mar", name=None)
    mar("runtime.mar", name="runtime", runtime="java")
    mar("manifest.mar", files={"MAR-INF/MANIFEST.json": "{"})
    (api.services.settings.model_store / "garbage.tar.gz").write_bytes(b"garbage")
    mar("two-2.mar", name="two", version="2.0")
    for file in ("idle.mar", "two.mar", "two-2.mar", "unloadable.mar"):
        await api.services.register(file)
    await api.up(act, name="up")


def check(row: Row, answer: Answer) -> None:
    """The shape that all errors have, and what the row says of this one."""
    assert answer.status == row.status, answer
    error = answer.json
    assert list(error) in (["code", "type", "message"], ["code", "type", "message", "tserve"])
    assert (error["code"], error["type"]) == (row.status, row.type)
    start, cut, _ = row.message.partition("…")
    assert error["message"].startswith(start) if cut else error["message"] == row.message
    if "tserve" in error:
        assert isinstance(error["tserve"], dict)
        assert error["tserve"], "left out when there is nothing to say"
    assert answer.body == (json.dumps(error, indent=2, ensure_ascii=False) + "\n").encode()
    assert answer.names == [
        "content-type",
        "x-request-id",
        "pragma",
        "cache-control",
        "expires",
        "content-length",
        "connection",
    ]
    headers: dict[str, Any] = dict(answer.headers)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", headers.pop("x-request-id"))
    assert headers == {
        "content-type": "application/json",
        "pragma": "no-cache",
        "cache-control": "no-cache; no-store, must-revalidate, private",
        "expires": "Thu, 01 Jan 1970 00:00:00 UTC",
        "content-length": str(len(answer.body)),
        "connection": "close",
    }


@pytest.mark.parametrize("port", ["management", "inference"])
async def test_every_failing_endpoint(tmp_path: Path, port: str) -> None:
    """One answer each in the error form, after which the server closes the connection; and none changes a thing."""
    async with serving(tmp_path, max_request_size=5000) as api:
        await fixtures(api)
        before = [(version.key, version.digest) for version in api.services.registry]
        client = getattr(api, port)
        wrong = []
        for row in MANAGEMENT if port == "management" else INFERENCE:
            method, target = row.request.split(" ", 1)
            content_type = [("Content-Type", row.content_type)] if row.content_type else []
            async with client.connect() as connection:
                answer = await connection.ask(method, target, row.body, content_type)
                try:
                    check(row, answer)
                    assert await connection.ended()
                except AssertionError as e:
                    wrong.append(f"{row}: {e}")
        assert not wrong, "\n\n".join(wrong)
        assert [(version.key, version.digest) for version in api.services.registry] == before
        await api.services.same_in_store()


async def test_a_refused_parameter_says_what_is_allowed(api: Api) -> None:
    for body, field, value in (
        (b'{"url": "noop.mar", "batch_size": 2.5}', "batch_size", "2.5"),
        (b'{"url": "noop.mar", "synchronous": 1}', "synchronous", "1"),
        (b'{"url": "noop.mar", "runtime": "python4"}', "runtime", "python4"),
    ):
        answer = await api.management.post("/models", body, JSON)
        assert answer.json["tserve"]["field"] == field
        assert answer.json["tserve"]["value"] == value
        assert answer.json["tserve"]["allowed"]


async def test_what_a_worker_died_of_stands_beside_the_sentence(api: Api) -> None:
    api.services.mar("broken.mar", name="broken", handler="nothing of this name")
    answer = await api.management.post("/models?url=broken.mar&initial_workers=1&synchronous=true")
    assert answer.json["tserve"] == {"reason": "handler_not_found", "detail": "no such handler"}


async def test_without_the_model_api(tmp_path: Path) -> None:
    """405 before anything is read; the rest of the port is there (section 1.11)."""
    async with serving(tmp_path, enable_model_api=False) as api:
        api.services.mar()
        await api.services.register()
        for method, target in (
            ("POST", "/models?url=noop.mar"),
            ("POST", "/models"),
            ("DELETE", "/models/noop"),
            ("DELETE", "/models/fake/1.0"),
        ):
            answer = await api.management.ask(method, target, b"{" if method == "POST" else None)
            check(Row(f"{method} {target}", 405, NO_METHOD, REFUSED), answer)
        assert (await api.management.put("/models/noop")).status == 202
        assert (await api.management.get("/models/noop")).status == 200
        assert (await api.management.put("/models/noop/1.0/set-default")).status == 200
