"""The management service: the same use cases as REST, said as the recorded server says them over gRPC.

Sources: spec/management.md sections 7.2 and 7.3.  Zero and the empty string are "not given" there; a field of tserve's
own says each zero that means something.
"""

from __future__ import annotations

from typing import Any

from tserve.domain.actor import Actor
from tserve.domain.json_text import json_text
from tserve.domain.wire import JobRequest
from tserve.errors import BadRequest, InternalServer, ModelApiDisabled, TserveError, WorkerInitialization
from tserve.grpc.codes import Code
from tserve.grpc.messages import MANAGEMENT, message_of
from tserve.grpc.methods import Call, Method, Refusal, Service, code_of_http, java_class
from tserve.services.desired import RegisterRequest
from tserve.services.management import Result, ScaleRequest
from tserve.services.use_cases import UseCases

_Reply = message_of(MANAGEMENT, "ManagementResponse")
_OUT_OF_MEMORY = 507


def management_service(use_cases: UseCases, *, model_api: bool) -> Service:
    """`model_api` off refuses register and unregister before anything is read (section 1.11)."""
    api = _ManagementApi(use_cases)
    register, unregister = (api.register, api.unregister) if model_api else (_refuse_call, _refuse_call)
    methods = [
        Method("DescribeModel", api.describe),
        Method("ListModels", api.list),
        Method("RegisterModel", register),
        Method("ScaleWorker", api.scale),
        Method("SetDefault", api.set_default),
        Method("UnregisterModel", unregister),
    ]
    return Service(MANAGEMENT, methods, refuse)


def refuse(error: TserveError) -> Refusal:
    """The status of the error's class; what a worker or a handler said goes by its number (section 7.3)."""
    code = Code[error.grpc_status]
    if isinstance(error, InternalServer) and error.code != error.status:
        out_of_memory = error.code == _OUT_OF_MEMORY
        code = Code.RESOURCE_EXHAUSTED if out_of_memory else code_of_http(error.code)
    recorded = "Error while creating workers" if isinstance(error, WorkerInitialization) else error.message
    return Refusal(code, f"{recorded}\n{java_class(error)}", error.cause)


async def _refuse_call(request: Any, call: Call) -> Any:
    raise ModelApiDisabled


class _ManagementApi:
    def __init__(self, use_cases: UseCases) -> None:
        self._management = use_cases.management
        self._describe = use_cases.describe
        self._pages = use_cases.pages

    async def describe(self, request: Any, call: Call) -> Any:
        """A handler that is asked gets no metadata, and its status is not the call's, as for predictions."""
        job = JobRequest(call.request_id, {}, ()) if request.customized else None
        description = await self._describe.ask(request.model_name, request.model_version or None, customized=job)
        return _json(description.versions)

    async def list(self, request: Any, call: Call) -> Any:
        page = await self._pages.page(limit=_said(request.limit), token=_said(request.next_page_token))
        return _json(page.shown())

    async def register(self, request: Any, call: Call) -> Any:
        _not_both(request, "no_workers", "initial_workers")
        _not_both(request, "no_batch_delay", "max_batch_delay")
        ask = RegisterRequest(
            url=request.url or None,
            model_name=request.model_name or None,
            handler=request.handler or None,
            runtime=request.runtime or None,
            batch_size=_said(request.batch_size),
            max_batch_delay=0 if request.no_batch_delay else _said(request.max_batch_delay),
            initial_workers=0 if request.no_workers else _said(request.initial_workers),
            synchronous=request.synchronous,
            response_timeout=_said(request.response_timeout),
            startup_timeout=_said(request.startup_timeout),
            s3_sse_kms=request.s3_sse_kms,
            sha256=request.sha256 or None,
            signature=request.signature or None,
        )
        return _command(await self._management.register(ask, actor=_actor(call)))

    async def scale(self, request: Any, call: Call) -> Any:
        _not_both(request, "to_zero", "min_worker")
        _not_both(request, "at_once", "timeout")
        fewest = 0 if request.to_zero else _said(request.min_worker) or 1
        ask = ScaleRequest(
            name=request.model_name,
            version=request.model_version or None,
            min_worker=fewest,
            max_worker=_said(request.max_worker),
            synchronous=request.synchronous,
            timeout=0 if request.at_once else request.timeout or -1,
        )
        return _command(await self._management.scale(ask, actor=_actor(call)))

    async def set_default(self, request: Any, call: Call) -> Any:
        result = await self._management.set_default(request.model_name, request.model_version, actor=_actor(call))
        return _command(result)

    async def unregister(self, request: Any, call: Call) -> Any:
        if not request.model_name:
            raise BadRequest("Parameter url is required.", cause={"field": "model_name"})  # the recorded words
        result = await self._management.unregister(
            request.model_name, request.model_version or None, actor=_actor(call)
        )
        return _command(result)


def _said(number: int) -> int | None:
    return number if number > 0 else None


def _not_both(request: Any, flag: str, number: str) -> None:
    """A flag that says zero beside a number that says otherwise.  Raises BadRequest."""
    value = getattr(request, number)
    if getattr(request, flag) and value:
        raise BadRequest(
            f"{flag} and {number} contradict each other.", cause={"field": number, "value": value, "allowed": "0"}
        )


def _actor(call: Call) -> Actor:
    return Actor(call.actor, call.request_id)


def _command(result: Result) -> Any:
    return _Reply(msg=result.text)


def _json(value: object) -> Any:
    return _Reply(msg=json_text(value).decode())
