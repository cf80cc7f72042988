"""The management API as routes: parse, call the service, render (spec/management.md sections 1 and 2)."""

from __future__ import annotations

from dataclasses import replace

from tserve.domain.actor import Actor
from tserve.domain.wire import JobRequest
from tserve.http.history import history_routes
from tserve.http.lenient_json import parse_object
from tserve.http.openapi_management import (
    API,
    BATCH_SIZE,
    CUSTOMIZED,
    DESCRIBE,
    HANDLER,
    INITIAL_WORKERS,
    LIMIT,
    LIST,
    MAX_BATCH_DELAY,
    MAX_WORKER,
    MIN_WORKER,
    MODEL_NAME,
    PAGE_TOKEN,
    REGISTER,
    RESPONSE_TIMEOUT,
    RETRY,
    RUNTIME,
    S3_SSE_KMS,
    SCALE,
    SCALED_VERSION,
    SET_DEFAULT,
    SHA256,
    SIGNATURE,
    STARTUP_TIMEOUT,
    SYNCHRONOUS,
    SYNCHRONOUS_REGISTER,
    TIMEOUT,
    UNREGISTER,
    URL,
    VERSION_API,
    VERSION_DESCRIBE,
    VERSION_RETRY,
    VERSION_SCALE,
    VERSION_UNREGISTER,
    WORKFLOW_LIST,
)
from tserve.http.openapi_recorded import model_document
from tserve.http.operations import JSON
from tserve.http.params import JsonBody, Parameters
from tserve.http.registrations import registrations_route
from tserve.http.render import JSON_TYPE, handler_reply, json_reply, status_reply
from tserve.http.routes import Call, Reply, Route, Table
from tserve.services.describe import Describe
from tserve.services.desired import RegisterRequest
from tserve.services.history import History
from tserve.services.inference import Inference
from tserve.services.management import Management, Progress, Result, ScaleRequest
from tserve.services.pages import Pages

_STATUS = {Progress.DONE: 200, Progress.ACCEPTED: 202, Progress.PARTLY: 206}


def management_routes(
    management: Management,
    describe: Describe,
    inference: Inference,
    pages: Pages,
    history: History,
    *,
    model_api: bool,
) -> Table:
    """`model_api` off leaves register and unregister out, which are 405 then (section 1.11)."""
    api = _ManagementApi(management, describe, inference, pages)
    model_routes = [
        Route(frozenset({"POST"}), "/models", api.register, REGISTER),
        Route(frozenset({"DELETE"}), "/models/{name}", api.unregister, UNREGISTER),
        Route(frozenset({"DELETE"}), "/models/{name}/{version}", api.unregister, VERSION_UNREGISTER),
    ]
    return [
        Route(frozenset({"GET"}), "/models", api.list, LIST),
        Route(frozenset({"GET"}), "/models/{name}", api.describe, DESCRIBE),
        Route(frozenset({"PUT"}), "/models/{name}", api.scale, SCALE),
        Route(frozenset({"GET"}), "/models/{name}/{version}", api.describe, VERSION_DESCRIBE),
        Route(frozenset({"PUT"}), "/models/{name}/{version}", api.scale, VERSION_SCALE),
        *(model_routes if model_api else ()),
        Route(frozenset({"PUT"}), "/models/{name}/{version}/set-default", api.set_default, SET_DEFAULT),
        Route(frozenset({"OPTIONS"}), "/models/{name}", api.description, API),
        Route(frozenset({"OPTIONS"}), "/models/{name}/{version}", api.description, VERSION_API),
        Route(frozenset({"GET"}), "/workflows", _no_workflows, WORKFLOW_LIST),
        *history_routes(history),
        registrations_route(management),
        Route(frozenset({"POST"}), "/tserve/models/{name}/retry", api.retry, RETRY),
        Route(frozenset({"POST"}), "/tserve/models/{name}/{version}/retry", api.retry, VERSION_RETRY),
    ]


async def _no_workflows(call: Call) -> Reply:
    """There are none, and none can be registered, as in upstream's last sources (spec/server.md section 14)."""
    return json_reply(200, {"workflows": []})


class _ManagementApi:
    def __init__(self, management: Management, describe: Describe, inference: Inference, pages: Pages) -> None:
        self._management = management
        self._describe = describe
        self._inference = inference
        self._pages = pages

    async def list(self, call: Call) -> Reply:
        page = await self._pages.page(limit=call.query[LIMIT], token=call.query[PAGE_TOKEN])
        return json_reply(200, page.shown())

    async def register(self, call: Call) -> Reply:
        given: Parameters = call.query
        is_json = call.header("content-type").partition(";")[0].strip().lower() == JSON
        # Some clients always name that type, even where they send nothing.
        if is_json and (body := await call.body()):
            given = JsonBody(parse_object(body), REGISTER.query)
        ask = RegisterRequest(
            url=given[URL],
            model_name=given[MODEL_NAME],
            handler=given[HANDLER],
            runtime=given[RUNTIME],
            batch_size=given[BATCH_SIZE],
            max_batch_delay=given[MAX_BATCH_DELAY],
            initial_workers=given[INITIAL_WORKERS],
            synchronous=given[SYNCHRONOUS_REGISTER],
            response_timeout=given[RESPONSE_TIMEOUT],
            startup_timeout=given[STARTUP_TIMEOUT],
            s3_sse_kms=given[S3_SSE_KMS],
            sha256=given[SHA256],
            signature=given[SIGNATURE],
        )
        return _command(await self._management.register(ask, actor=_actor(call)))

    async def scale(self, call: Call) -> Reply:
        query = call.query
        ask = ScaleRequest(
            name=call.args["name"],
            version=call.args["version"] if "version" in call.args else query[SCALED_VERSION],
            min_worker=query[MIN_WORKER],
            max_worker=query[MAX_WORKER],
            synchronous=query[SYNCHRONOUS],
            timeout=query[TIMEOUT],
        )
        return _command(await self._management.scale(ask, actor=_actor(call)))

    async def retry(self, call: Call) -> Reply:
        result = await self._management.retry(
            call.args["name"],
            call.args.get("version"),
            synchronous=call.query[SYNCHRONOUS],
            actor=_actor(call),
        )
        return _command(result)

    async def describe(self, call: Call) -> Reply:
        name, version = call.args["name"], call.args.get("version")
        job = JobRequest(call.request_id, dict(call.headers), ()) if call.query[CUSTOMIZED] else None
        description = await self._describe.ask(name, version, customized=job)
        if description.reply is None:
            return json_reply(200, description.versions)
        reply = json_reply(description.reply.status, description.versions)
        return replace(reply, headers=_with_type(handler_reply(description.reply).headers))

    async def description(self, call: Call) -> Reply:
        """The recorded document of a model that there is (section 1.12)."""
        name = call.args["name"]
        self._inference.exists(name, call.args.get("version"))
        return Reply(200, model_document(name), (JSON_TYPE,))

    async def unregister(self, call: Call) -> Reply:
        result = await self._management.unregister(call.args["name"], call.args.get("version"), actor=_actor(call))
        return _command(result)

    async def set_default(self, call: Call) -> Reply:
        result = await self._management.set_default(call.args["name"], call.args["version"], actor=_actor(call))
        return _command(result)


def _with_type(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """A handler's own content type counts, as recorded; without one it is JSON."""
    return headers if any(name.lower() == "content-type" for name, _ in headers) else (*headers, JSON_TYPE)


def _actor(call: Call) -> Actor:
    return Actor(call.actor, call.request_id)


def _command(result: Result) -> Reply:
    return status_reply(_STATUS[result.progress], result.text)
