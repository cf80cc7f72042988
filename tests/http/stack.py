"""The apps of both ports over real sockets; below them the services over fakes, and workers that are functions."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from tests.http.client import Client
from tests.services.stack import Services, running
from tserve.domain.browsers import Browsers
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import Frame, HandlerFailed, JobReply, JobRequest, Kind, decode_batch, encode_reply
from tserve.http.app import make_app
from tserve.http.guard import Guard
from tserve.http.health import health_routes
from tserve.http.inference import inference_routes
from tserve.http.kserve import open_inference_routes, readiness_routes
from tserve.http.listener import serve
from tserve.http.management import management_routes
from tserve.http.routes import Table
from tserve.net.listening import bind
from tserve.runtime.launcher import Exit, WorkerGone
from tserve.services.authorization import Authorization
from tserve.services.open_inference import OpenInference


@dataclass(frozen=True)
class Streamed:
    """Pieces, and then the end: an answer, a failure, or the worker's death."""

    pieces: Sequence[JobReply]
    end: JobReply | HandlerFailed | None


Handler = Callable[[WorkerSpec, JobRequest], JobReply | HandlerFailed | Streamed | None]


class Died(Exception):
    """A handler raises this to end its worker."""


def silent(spec: WorkerSpec, request: JobRequest) -> None:
    """Never answers."""


def echo(spec: WorkerSpec, request: JobRequest) -> JobReply:
    return JobReply(200, "", {}, request.inputs[0].value if request.inputs else b"")


@dataclass
class FunctionWorker:
    """A worker that is one function of this process; each batch of it is of one request.

    What it says waits for `may_speak`.
    """

    spec: WorkerSpec
    handler: Handler | None
    may_speak: trio.Event
    pid: int = 4711
    exited: trio.Event = field(default_factory=trio.Event)
    ailing: trio.Event = field(default_factory=trio.Event)
    on_frame: Callable[[Frame], None] | None = None

    def __post_init__(self) -> None:
        self._sent, self._frames = trio.open_memory_channel[Frame](math.inf)

    async def send(self, frame: Frame) -> None:
        await trio.lowlevel.checkpoint()
        if self.exited.is_set():
            raise WorkerGone("died")
        if frame.kind is Kind.LOAD:
            missing = {"ok": False, "reason": "handler_not_found", "detail": "no such handler", "hopeless": True}
            self._sent.send_nowait(Frame(Kind.LOADED, frame.id, missing if self.handler is None else {"ok": True}))
            return
        assert self.handler is not None
        (request,) = decode_batch(frame)
        try:
            outcome = self.handler(self.spec, request)
        except Died:
            self._end()
            return
        if isinstance(outcome, Streamed):
            for piece in outcome.pieces:
                self._sent.send_nowait(encode_reply(frame.id, [piece], kind=Kind.PIECE))
            if outcome.end is None:
                self._end()
            outcome = outcome.end
        if outcome is not None:
            reply = outcome if isinstance(outcome, HandlerFailed) else [outcome]
            self._sent.send_nowait(encode_reply(frame.id, reply))

    async def receive(self) -> Frame:
        await self.may_speak.wait()
        try:
            frame = await self._frames.receive()
        except trio.EndOfChannel:
            raise WorkerGone("died") from None
        if self.on_frame is not None:
            self.on_frame(frame)
        return frame

    def _end(self) -> None:
        self._sent.close()
        self.exited.set()
        self.ailing.set()

    hang_up = kill = _end

    async def wait(self) -> Exit:
        await self.exited.wait()
        return Exit(1)

    def tail(self) -> str:
        return ""

    def memory(self) -> int:
        return 1 << 20


class FunctionLauncher:
    """`handlers`: the function of each handler's name; workers of others cannot be loaded."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {"ok": echo}
        self.workers: list[FunctionWorker] = []
        self.may_speak = trio.Event()
        self.may_speak.set()

    @asynccontextmanager
    async def launch(self, spec: WorkerSpec, *, label: str) -> AsyncIterator[FunctionWorker]:
        worker = FunctionWorker(spec, self.handlers.get(spec.handler), self.may_speak)
        self.workers.append(worker)
        try:
            yield worker
        finally:
            worker.hang_up()


@dataclass
class Api:
    services: Services
    management: Client
    inference: Client
    handlers: dict[str, Handler]

    async def up(self, handler: Handler | None = None, *, name: str = "noop", version: str = "1.0") -> None:
        """Register a model with one worker, ready, whose requests go to `handler`, an echo by default."""
        word = f"handler-{len(self.handlers)}"
        self.handlers[word] = handler or echo
        file = self.services.mar(f"{name}-{version}.mar", name=name, version=version, handler=word)
        await self.services.register(file, initial_workers=1, synchronous=True)


def make_guard(
    roles: Sequence[str] = (),
    *,
    hosts: Sequence[str] = (),
    origin: str = "",
    authorization: Authorization | None = None,
) -> Guard:
    """Without tokens, unless there is an `authorization`."""
    return Guard(roles, Browsers(hosts, origin), authorization or Authorization(None))


async def start_app(
    nursery: trio.Nursery,
    tables: Sequence[Table],
    *,
    roles: Sequence[str] = (),
    authorization: Authorization | None = None,
    **options: Any,
) -> Client:
    """Serve an app on a port of its own until the nursery is cancelled."""
    origin = dict(options.get("cors", ())).get("access-control-allow-origin", "")
    guard = make_guard(roles, origin=origin, authorization=authorization)
    options = {"max_request_size": 6553500, "cors": (), "guard": guard, **options}
    app = make_app(roles, tables, **options)
    sock = bind("127.0.0.1", 0)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await serve(app, sock, shutdown=trio.Event(), drain_s=1, hard_s=1, task_status=task_status)

    address = sock.getsockname()
    await nursery.start(run)
    return Client(address)


@asynccontextmanager
async def serving(
    folder: Path, *, shared: bool = False, authorization: Authorization | None = None, **settings: Any
) -> AsyncIterator[Api]:
    """Both APIs; `shared` serves them on one port.  Without tokens, unless there is an `authorization`."""
    launcher = FunctionLauncher()
    async with running(folder, launcher=launcher, **settings) as services, trio.open_nursery() as nursery:
        told = services.settings
        management = management_routes(
            services.management,
            services.describe,
            services.inference,
            services.pages,
            services.history,
            model_api=told.enable_model_api,
        )
        protocol = OpenInference(services.registry, services.health)
        inference = [
            *health_routes(services.health),
            *(open_inference_routes(protocol) if told.ts_open_inference_protocol else ()),
            *inference_routes(services.inference, services.health, services.management),
        ]
        management = [*health_routes(services.health), *management, *readiness_routes(protocol)]
        options = {"max_request_size": told.max_request_size, "cors": told.cors_headers, "authorization": authorization}
        if shared:
            both = ["management", "inference"]
            first = second = await start_app(nursery, [management, inference], roles=both, **options)
        else:
            first = await start_app(nursery, [management], roles=["management"], **options)
            second = await start_app(nursery, [inference], roles=["inference"], **options)
        yield Api(services, first, second, launcher.handlers)
        nursery.cancel_scope.cancel()
