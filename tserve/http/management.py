"""The management API as routes: parse, call the service, render (spec/management.md sections 1 and 2)."""

from __future__ import annotations

from dataclasses import replace

from tserve.domain.actor import Actor
from tserve.domain.wire import JobRequest
from tserve.errors import MethodNotAllowed, NotYetBuilt
from tserve.http.history import history_routes
from tserve.http.lenient_json import parse_object
from tserve.http.params import JsonBody, Parameters
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
    """`model_api` off refuses register and unregister before anything is read (section 1.11)."""
    api = _ManagementApi(management, describe, inference, pages)
    register, unregister = (api.register, api.unregister) if model_api else (_refuse, _refuse)
    return [
        Route(frozenset({"GET"}), "/models", api.list),
        Route(frozenset({"POST"}), "/models", register),
        Route(frozenset({"GET"}), "/models/{name}", api.describe),
        Route(frozenset({"PUT"}), "/models/{name}", api.scale),
        Route(frozenset({"DELETE"}), "/models/{name}", unregister),
        Route(frozenset({"GET"}), "/models/{name}/{version}", api.describe),
        Route(frozenset({"PUT"}), "/models/{name}/{version}", api.scale),
        Route(frozenset({"DELETE"}), "/models/{name}/{version}", unregister),
        Route(frozenset({"PUT"}), "/models/{name}/{version}/set-default", api.set_default),
        Route(frozenset({"OPTIONS"}), "/models/{name}", _no_description),
        Route(frozenset({"OPTIONS"}), "/models/{name}/{version}", _no_description),
        Route(frozenset({"GET"}), "/workflows", _no_workflows),
        *history_routes(history),
        Route(frozenset({"POST"}), "/tserve/models/{name}/retry", api.retry),
        Route(frozenset({"POST"}), "/tserve/models/{name}/{version}/retry", api.retry),
    ]


async def _refuse(call: Call) -> Reply:
    raise MethodNotAllowed


async def _no_description(call: Call) -> Reply:
    raise NotYetBuilt("The API description of a model is not served by this release yet.")


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
        page = await self._pages.page(limit=call.query.number("limit"), token=call.query.number("next_page_token"))
        models = [{"modelName": name, "modelUrl": url} for name, url in page.models]
        token = {} if page.next_token is None else {"nextPageToken": str(page.next_token)}
        return json_reply(200, {**token, "models": models})

    async def register(self, call: Call) -> Reply:
        given: Parameters = call.query
        if call.header("content-type").partition(";")[0].strip().lower() == "application/json":
            given = JsonBody(parse_object(await call.body()))
        ask = RegisterRequest(
            url=given.text("url"),
            model_name=given.text("model_name"),
            handler=given.text("handler"),
            runtime=given.text("runtime"),
            batch_size=given.number("batch_size"),
            max_batch_delay=given.number("max_batch_delay"),
            initial_workers=given.number("initial_workers"),
            synchronous=given.flag("synchronous"),
            response_timeout=given.number("response_timeout"),
            startup_timeout=given.number("startup_timeout"),
        )
        return _command(await self._management.register(ask, actor=_actor(call)))

    async def scale(self, call: Call) -> Reply:
        query = call.query
        fewest, timeout = query.number("min_worker"), query.number("timeout")
        ask = ScaleRequest(
            name=call.args["name"],
            version=call.args.get("version", query.text("model_version")),
            min_worker=1 if fewest is None else fewest,
            max_worker=query.number("max_worker"),
            synchronous=query.flag("synchronous") or False,
            timeout=-1 if timeout is None else timeout,
        )
        return _command(await self._management.scale(ask, actor=_actor(call)))

    async def retry(self, call: Call) -> Reply:
        result = await self._management.retry(
            call.args["name"],
            call.args.get("version"),
            synchronous=call.query.flag("synchronous") or False,
            actor=_actor(call),
        )
        return _command(result)

    async def describe(self, call: Call) -> Reply:
        name, version = call.args["name"], call.args.get("version")
        if version == "all":
            return json_reply(200, self._describe.all(name))
        if not call.query.flag("customized"):
            return json_reply(200, self._describe.one(name, version))
        said = await self._inference.describe(name, version, JobRequest(call.request_id, dict(call.headers), ()))
        reply = json_reply(said.status, self._describe.one(name, version, said=said.body))
        return replace(reply, headers=_with_type(handler_reply(said).headers))

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
