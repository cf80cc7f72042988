"""The inference API as routes, the plain lane (spec/inference.md sections 1 to 3)."""

from __future__ import annotations

from tserve.domain.wire import Input, JobRequest
from tserve.errors import BadRequest
from tserve.http.inputs import query_inputs, read_inputs
from tserve.http.openapi_inference import (
    EXPLAIN,
    INVOKE,
    INVOKE_MODEL,
    KSERVE_EXPLAIN,
    KSERVE_PREDICT,
    LEGACY_PREDICT,
    MODEL,
    OIP_EXPLAIN,
    OIP_INFER,
    PING_STATUS,
    PREDICT,
    VERSION_EXPLAIN,
    VERSION_LEGACY_PREDICT,
    VERSION_PREDICT,
    description_of,
)
from tserve.http.openapi_recorded import predict_document
from tserve.http.render import JSON_TYPE, handler_reply, json_reply
from tserve.http.routes import ANY, ANY_BUT_OPTIONS, Call, Reply, Route, Table
from tserve.services.health import Health
from tserve.services.inference import Inference
from tserve.services.management import Management


def inference_routes(inference: Inference, health: Health, management: Management) -> Table:
    """Route choice looks at the path only, as recorded; any method but OPTIONS predicts."""
    api = _InferenceApi(inference, health, management)
    predicting = [
        ("/predictions/{name}", api.predict, PREDICT),
        ("/predictions/{name}/{version}/...", api.predict, VERSION_PREDICT),
        ("/explanations/{name}", api.explain, EXPLAIN),
        ("/explanations/{name}/{version}/...", api.explain, VERSION_EXPLAIN),
        ("/v1/models/{name}:predict", api.predict_default, KSERVE_PREDICT),
        ("/v1/models/{name}:explain", api.explain_default, KSERVE_EXPLAIN),
        ("/v2/models/{name}/infer", api.predict_default, OIP_INFER),
        ("/v2/models/{name}/explain", api.explain_default, OIP_EXPLAIN),
        ("/invocations", api.invoke, INVOKE),
        ("/models/{name}/invoke", api.invoke_model, INVOKE_MODEL),
        ("/{name}/predict", api.invoke_model, LEGACY_PREDICT),
        ("/{name}/{version}/predict", api.invoke_model, VERSION_LEGACY_PREDICT),
    ]
    return [
        Route(ANY, "/ping/...", api.ping, PING_STATUS),
        *(Route(ANY_BUT_OPTIONS, pattern, handler, about) for pattern, handler, about in predicting),
        *(
            Route(frozenset({"OPTIONS"}), pattern, api.description, description_of(about))
            for pattern, _, about in predicting
        ),
    ]


class _InferenceApi:
    def __init__(self, inference: Inference, health: Health, management: Management) -> None:
        self._inference = inference
        self._health = health
        self._management = management

    async def ping(self, call: Call) -> Reply:
        """A status object even when unhealthy (section 1.1)."""
        healthy = self._health.healthy()
        return json_reply(200 if healthy else 500, {"status": "Healthy" if healthy else "Unhealthy"})

    async def predict(self, call: Call) -> Reply:
        return await self._predict(call, explain=False)

    async def explain(self, call: Call) -> Reply:
        return await self._predict(call, explain=True)

    async def _predict(self, call: Call, *, explain: bool) -> Reply:
        name, version = call.args["name"], call.args.get("version")
        self._inference.exists(name, version)
        added = {"explain": str(explain), "url_path": "/".join(call.rest)}
        return await self._answer(call, name, version, await self._inputs(call), added)

    async def predict_default(self, call: Call) -> Reply:
        """KServe's paths are further names of the same; bodies are the envelope's business (section 7)."""
        return await self._predict_default(call, explain=False)

    async def explain_default(self, call: Call) -> Reply:
        return await self._predict_default(call, explain=True)

    async def _predict_default(self, call: Call, *, explain: bool) -> Reply:
        name = call.args["name"]
        self._inference.exists(name, None)
        return await self._answer(call, name, None, await self._inputs(call), {"explain": str(explain)})

    async def invoke(self, call: Call) -> Reply:
        """The model is named by the query, else is the only one loaded at start, else by a form field (section 1)."""
        name = self._named(call)
        inputs = await self._inputs(call)
        if not name:
            field = next((part.value for part in inputs if part.name == "model_name"), b"")
            name = field.decode("utf-8", "replace")
        if not name:
            raise _no_model()
        return await self._answer(call, name, None, (*inputs, *query_inputs(call.query)), {})

    async def invoke_model(self, call: Call) -> Reply:
        name, version = call.args["name"], call.args.get("version")
        self._inference.exists(name, version)
        inputs = (*await self._inputs(call), *query_inputs(call.query))
        return await self._answer(call, name, version, inputs, {})

    def _named(self, call: Call) -> str | None:
        """The model in the query, else the only one loaded at start."""
        started = self._management.startup_names
        return call.query[MODEL] or (next(iter(started)) if len(started) == 1 else None)

    async def description(self, call: Call) -> Reply:
        """The recorded document of a model that there is; the body, and so a model named in it, is not read."""
        name = call.args["name"] if "name" in call.args else self._named(call)
        if not name:
            raise _no_model()
        self._inference.exists(name, call.args.get("version"))
        return Reply(200, predict_document(name), (JSON_TYPE,))

    @staticmethod
    async def _inputs(call: Call) -> tuple[Input, ...]:
        return read_inputs(call.header("content-type"), await call.body())

    async def _answer(
        self, call: Call, name: str, version: str | None, inputs: tuple[Input, ...], added: dict[str, str]
    ) -> Reply:
        request = JobRequest(call.request_id, {**dict(call.headers), **added}, inputs)
        answer = await self._inference.predict(name, version, request)
        if answer.rest is not None:
            call.at_end(answer.rest.leave)
        return handler_reply(answer.first, answer.rest)


def _no_model() -> BadRequest:
    return BadRequest("Parameter model_name is required.", cause={"field": "model_name"})
