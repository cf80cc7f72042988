"""The recorded OpenAPI documents: what clients of TorchServe get from OPTIONS and /api-description, word for word.

They say less than is true, and some of it is wrong (spec/management.md section 1.12); tserve.http.openapi has the
truth.  Order and texts are the contract's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from tserve.http.render import to_json
from tserve.services.open_inference import VERSION

Json = Mapping[str, object]

_TEXT: Final[Json] = {"type": "string"}


def _said(kind: str, description: str) -> Json:
    return {"type": kind, "description": description}


def _object(required: Sequence[str], properties: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": properties}


def _answer(description: str, schema: Json, media: str = "application/json") -> Json:
    return {"description": description, "content": {media: {"schema": schema}}}


_ERROR: Final = _object(
    ["code", "type", "message"],
    {
        "code": _said("integer", "Error code."),
        "type": _said("string", "Error type."),
        "message": _said("string", "Error message."),
    },
)
_FAILED: Final = {"500": _answer("Internal Server Error", _ERROR)}
_DONE: Final = _object(["status"], {"status": _said("string", "Error type.")})


def _operation(
    description: str, operation_id: str, parameters: Sequence[Json], responses: Json, body: Json | None = None
) -> dict[str, object]:
    return {
        "description": description,
        "operationId": operation_id,
        "parameters": list(parameters),
        **({} if body is None else {"requestBody": body}),
        "responses": {**responses, **_FAILED},
    }


def _path(name: str, description: str) -> Json:
    return {"in": "path", "name": name, "description": description, "required": True, "schema": _TEXT}


def _query(name: str, kind: str, description: str, default: str = "") -> Json:
    schema = {"type": kind, **({"default": default} if default else {})}
    return {"in": "query", "name": name, "description": description, "required": False, "schema": schema}


# -- every listener

_DESCRIPTOR: Final = {
    "200": _answer(
        "A openapi 3.0.1 descriptor",
        _object(
            ["openapi", "info", "paths"],
            {"openapi": _TEXT, "info": {"type": "object"}, "paths": {"type": "object"}},
        ),
    )
}


def _root() -> Json:
    return {"/": {"options": _operation("Get openapi description.", "apiDescription", [], _DESCRIPTOR)}}


def _api_description() -> Json:
    operation = _operation("Get openapi description.", "api-description", [], _DESCRIPTOR)
    return {"/api-description": {"get": {**operation, "deprecated": True}}}


def _metrics() -> Json:
    sample = {
        "# HELP": _said("string", "Help text for TorchServe metric."),
        "# TYPE": _said("string", "Type of TorchServe metric."),
        "metric": _said("string", "TorchServe application metric."),
    }
    answer = _answer(
        "TorchServe application metrics", _object(list(sample), sample), "text/plain; version=0.0.4; charset=utf-8"
    )
    operation = _operation(
        "Get TorchServe application metrics in prometheus format.",
        "metrics",
        [_query("name[]", "string", "Names of metrics to filter")],
        {"200": answer},
    )
    return {"/metrics": {"get": operation}}


# -- inference


def _inference() -> Json:
    status = _object(["status"], {"status": _said("string", "Overall status of the TorchServe.")})
    ping = _operation("Get TorchServe status.", "ping", [], {"200": _answer("TorchServe status", status)})
    model, version = _path("model_name", "Name of model."), _path("model_version", "Name of model version.")
    default = {"post": _predictions("default model", "predictions", [model])}
    return {
        "/ping": {"get": ping},
        "/v1/models/{model_name}:predict": default,
        "/v2/models/{model_name}/infer": default,
        "/predictions/{model_name}": default,
        "/predictions/{model_name}/{model_version}": {
            "post": _predictions("specific model", "version_predictions", [model, version])
        },
    }


def _predictions(which: str, operation_id: str, parameters: Sequence[Json]) -> Json:
    anything = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    body = {"description": "Input data format is defined by each model.", "content": anything, "required": True}
    responses = {
        "200": {"description": "Output data format is defined by each model.", "content": anything},
        "404": _answer("Model not found or Model Version not found", _ERROR),
    }
    operation = _operation(
        f"Predictions entry point to get inference using {which} version.", operation_id, parameters, responses, body
    )
    unavailable = _answer("No worker is available to serve request", _ERROR)
    return {**operation, "responses": {**responses, **_FAILED, "503": unavailable}}


def predict_document(name: str) -> bytes:
    """What OPTIONS of a model's predictions says; the first path is misspelt in the contract."""
    operation = _operation(f"A predict entry point for model: {name}.", name, [], {"200": {"description": "OK"}})
    paths = [f"/prediction/{name}", "/v1/models/{model_name}:predict", "/v2/models/{model_name}/infer"]
    info = {"title": f"RESTful API for: {name}", "version": "1.0.0"}
    return _document(info, {path: {"post": operation} for path in paths})


# -- management

_NO_SUCH: Final = {"404": _answer("Model not found or Model version not found", _ERROR)}
_ACCEPTED: Final = {"202": _answer("Accepted", _DONE)}
_PARTLY: Final = {"210": _answer("Partial Success", _DONE)}
_REFUSED: Final = {"400": _answer("Bad request", _ERROR)}
_TIMEOUT: Final = _query(
    "timeout",
    "integer",
    "Waiting up to the specified wait time if necessary for a worker to complete all pending requests. Use 0 to "
    "terminate backend worker process immediately. Use -1 for wait infinitely.",
    "-1",
)
_SYNCHRONOUS: Final = _query(
    "synchronous", "boolean", "Decides whether the call is synchronous or not, default: false.", "false"
)


def _list() -> Json:
    model = {"modelName": _said("string", "Name of the model."), "modelUrl": _said("string", "URL of the model.")}
    page = {
        "nextPageToken": _said(
            "string",
            "Use this parameter in a subsequent request after you receive a response with truncated results. Set it to "
            "the value of NextMarker from the truncated response you just received.",
        ),
        "models": {
            "type": "array",
            "items": _object(list(model), model),
            "description": "A list of registered models.",
        },
    }
    limit = (
        "Use this parameter to specify the maximum number of items to return. When this value is present, TorchServe "
        "does not return more than the specified number of items, but it might return fewer. This value is optional. "
        "If you include a value, it must be between 1 and 1000, inclusive. If you do not include a value, it defaults "
        "to 100."
    )
    token = (
        "The token to retrieve the next set of results. TorchServe provides the token when the response from a "
        "previous call has more results than the maximum page size."
    )
    return _operation(
        "List registered models in TorchServe.",
        "listModels",
        [_query("limit", "integer", limit, "100"), _query("next_page_token", "string", token)],
        {"200": _answer("OK", _object(["models"], page))},
    )


def _register() -> Json:
    def overriding(name: str, what: str, member: str) -> Json:
        return _query(name, "string", f"{what}. This value will override {member} in MANIFEST.json if present.")

    url = "Model archive download url, support local file or HTTP(s) protocol. For S3, consider use pre-signed url."
    waits = "Maximum time, in seconds, the TorchServe waits for"
    runtime = overriding("runtime", "Runtime for the model custom service code", "runtime")
    parameters = [
        {**_query("url", "string", url), "required": True},
        overriding("model_name", "Name of model", "modelName"),
        overriding("handler", "Inference handler entry-point", "handler"),
        {**runtime, "schema": {"type": "string", "enum": ["PYTHON", "PYTHON3", "LSP"]}},
        _query("batch_size", "integer", "Inference batch size, default: 1.", "1"),
        _query("max_batch_delay", "integer", "Maximum delay for batch aggregation, default: 100.", "100"),
        _query("response_timeout", "integer", f"{waits} a response from the model inference code, default: 120.", "2"),
        _query("startup_timeout", "integer", f"{waits} the model to startup/initialize, default: 120.", "120"),
        _query("initial_workers", "integer", "Number of initial workers, default: 0.", "0"),
        _query(
            "synchronous",
            "boolean",
            "Decides whether creation of worker synchronous or not, default: false.",
            "false",
        ),
        _query(
            "s3_sse_kms",
            "boolean",
            "Model mar file is S3 SSE KMS(server side encryption) enabled or not, default: false.",
            "false",
        ),
    ]
    responses = {
        "200": _answer("Model registered", _DONE),
        **_ACCEPTED,
        **_PARTLY,
        **_REFUSED,
        "404": _answer("Model not found", _ERROR),
        "409": _answer("Model already registered", _ERROR),
    }
    return _operation("Register a new model in TorchServe.", "registerModel", parameters, responses)


def _description_schema() -> Json:
    worker = {
        "id": _said("string", "Worker id"),
        "startTime": _said("string", "Worker start time"),
        "gpu": _said("boolean", "If running on GPU"),
        "status": {**_said("string", "Worker status"), "enum": ["READY", "LOADING", "UNLOADING"]},
    }
    metrics = {
        "rejectedRequests": _said("integer", "Number requests has been rejected in last 10 minutes."),
        "waitingQueueSize": _said("integer", "Number requests waiting in the queue."),
        "requests": _said("integer", "Number requests processed in last 10 minutes."),
    }
    queue = {
        "remainingCapacity": _said("integer", "Number of new requests that can be queued."),
        "pendingRequests": _said("integer", "Number of requests waiting in the queue."),
    }
    members = {
        "modelName": _said("string", "Name of the model."),
        "modelVersion": _said("string", "Version of the model."),
        "modelUrl": _said("string", "URL of the model."),
        "minWorkers": _said("integer", "Configured minimum number of worker."),
        "maxWorkers": _said("integer", "Configured maximum number of worker."),
        "batchSize": _said("integer", "Configured batch size."),
        "maxBatchDelay": _said("integer", "Configured maximum batch delay in ms."),
        "status": _said("string", "Overall health status of the model"),
        "workers": {
            "type": "array",
            "items": _object(["id", "startTime", "status"], worker),
            "description": "A list of active backend workers.",
        },
        "metrics": _object(list(metrics), metrics),
        "jobQueueStatus": _object(list(queue), queue),
    }
    return _object([name for name in members if name not in ("batchSize", "maxBatchDelay")], members)


def _path_to(action: str, *, version: bool) -> list[Json]:
    names = [_path("model_name", f"Name of model to {action}.")]
    return [*names, _path("model_version", f"Version of model to {action}.")] if version else names


def _model(*, version: bool) -> Json:
    """The three operations on a model's default version, or on one version of it."""
    which, prefix = ("the specified", "version_") if version else ("the default", "")
    about = "a specified version of a model" if version else "a default version of a model"
    every = 'If "all" is specified as version, returns the details about all the versions of the model.'
    removed, end = (
        ("the specified version of a model from TorchServe", "")
        if version
        else ("the default version of a model from TorchServe if it is the only version available", ".")
    )
    return {
        "get": _operation(
            f"Provides detailed information about {which} version of a model.{every if version else ''}",
            f"{prefix}describeModel",
            _path_to("describe", version=version),
            {"200": _answer("OK", _description_schema()), **_NO_SUCH},
        ),
        "put": _operation(
            f"Configure number of workers for {about}. This is an asynchronous call by default. Caller need to call "
            "describeModel to check if the model workers has been changed.",
            f"{prefix}setAutoScale",
            [
                *_path_to("scale workers", version=version),
                _query("min_worker", "integer", "Minimum number of worker processes.", "1"),
                _query("max_worker", "integer", "Maximum number of worker processes.", "1"),
                _query("number_gpu", "integer", "Number of GPU worker processes to create.", "0"),
                _SYNCHRONOUS,
                _TIMEOUT,
            ],
            {"200": _answer("Model workers updated", _DONE), **_ACCEPTED, **_PARTLY, **_REFUSED, **_NO_SUCH},
        ),
        "delete": _operation(
            f"Unregister {removed}. This is an asynchronous call by default. Caller can call listModels to confirm "
            f"model is unregistered{end}",
            f"{prefix}unregisterModel",
            [*_path_to("unregister", version=version), _SYNCHRONOUS, _TIMEOUT],
            {
                "200": _answer("Model unregistered", _DONE),
                **_ACCEPTED,
                **_NO_SUCH,
                "408": _answer("Request Timeout Error", _ERROR),
            },
        ),
    }


def _models() -> dict[str, Json]:
    set_default = _operation(
        "Set default version of a model",
        "setDefault",
        [
            _path("model_name", "Name of model whose default version needs to be updated."),
            _path("model_version", "Version of model to be set as default version for the model"),
        ],
        {"200": _answer("Default version successfully updated for model", _DONE), **_NO_SUCH},
    )
    return {
        "/models/{model_name}": _model(version=False),
        "/models/{model_name}/{model_version}": _model(version=True),
        "/models/{model_name}/{model_version}/set-default": {"put": set_default},
    }


def model_document(name: str) -> bytes:
    """What OPTIONS of a model says on the management port."""
    return _document({"title": f"RESTful Management API for: {name}", "version": VERSION}, _models())


# -- the documents of listeners


@cache
def listener_document(roles: tuple[str, ...]) -> bytes:
    """What OPTIONS / and /api-description say on a listener with these roles, those of several merged."""
    own: dict[str, list[Json]] = {
        "management": [_root(), {"/models": {"get": _list(), "post": _register()}, **_models()}, _api_description()],
        "inference": [_root(), _inference(), _api_description()],
    }
    paths = {path: item for role in roles for part in own.get(role, []) for path, item in part.items()}
    about = "TorchServe is a flexible and easy to use tool for serving deep learning models"
    info = {"title": "TorchServe APIs", "description": about, "version": VERSION}
    return _document(info, {**paths, **_metrics()})


def _document(info: Json, paths: Json) -> bytes:
    return to_json({"openapi": "3.0.1", "info": info, "paths": paths})
