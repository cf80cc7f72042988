"""The composition root: builds every layer, runs it, and takes it down in order.

Start: lock and upgrade the state, bind the ports, load the state, start what it asks for, listen.
Stop: not listening, requests in flight finish, workers drain, the state is closed; a hard end behind it all.
"""

from __future__ import annotations

import gc
import importlib
import ipaddress
import json
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from tserve import __version__
from tserve.archive.fetch.policy import AddressPolicy
from tserve.archive.fetch.rules import Rules
from tserve.archive.integrity import Integrity
from tserve.archive.keep import Keep
from tserve.archive.quota import Quota
from tserve.domain.browsers import Browsers
from tserve.domain.devices import Placement
from tserve.domain.plan import PoolSpec
from tserve.domain.registry import Registry
from tserve.domain.versions import Key
from tserve.errors import BadConfiguration
from tserve.http.app import make_app
from tserve.http.guard import Guard
from tserve.http.health import health_routes
from tserve.http.inference import inference_routes
from tserve.http.kserve import open_inference_routes, readiness_routes
from tserve.http.listener import serve
from tserve.http.management import management_routes
from tserve.http.metrics import metrics_routes
from tserve.http.routes import Table
from tserve.http.token import token_routes
from tserve.metrics.catalogue import read_catalogue
from tserve.metrics.files import MetricsFiles
from tserve.metrics.recorder import Metrics
from tserve.net.descriptors import connections_of
from tserve.net.listening import bind
from tserve.net.poller import Poller
from tserve.net.timers import Timers
from tserve.net.tls import Tls
from tserve.runtime.devices import NvmlDevices
from tserve.runtime.environments import Environments
from tserve.runtime.family import Family, adopt
from tserve.runtime.fresh import FreshLauncher
from tserve.runtime.prepared import PreparedLauncher
from tserve.runtime.reconcile import Reconciler
from tserve.runtime.vetted import VettedLauncher
from tserve.runtime.zygote import ZygoteLauncher
from tserve.services.authorization import Authorization
from tserve.services.dependencies import Dependencies
from tserve.services.describe import Describe
from tserve.services.desired import pool_spec
from tserve.services.gauges import Gauges
from tserve.services.health import Health
from tserve.services.history import History
from tserve.services.inference import Inference
from tserve.services.keys import KeyFile, new_keys
from tserve.services.management import Management
from tserve.services.measuring import Measuring
from tserve.services.named_tokens import NamedTokens
from tserve.services.open_inference import OpenInference
from tserve.services.pages import Pages
from tserve.services.startup import load_models
from tserve.services.use_cases import UseCases
from tserve.services.vetting import Vetting
from tserve.settings import Address, Settings
from tserve.store.gateway import SqliteStore
from tserve.store.upgrade import open_state

ENDPOINTS = "endpoints.json"
ENVIRONMENTS = "environments"
KEY_FILE = "key_file.json"
LOGS = "logs"
DRAIN_S = 20.0  # what requests and workers in hand get at SIGTERM
HARD_S = 2.0  # after that connections are closed under their clients
LAST_RESORT_S = 10  # whatever still stands this long after both ends with the process
_log = logging.getLogger("tserve")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.  Raises StartError."""
    with open_state(settings.state_dir) as database, ExitStack() as stack:
        server = _Server(settings, database)
        (settings.state_dir / ENDPOINTS).unlink(missing_ok=True)  # a killed server's
        stack.enter_context(server.keys())
        sockets = {role: stack.enter_context(bound) for role, bound in _bind(settings).items()}
        return trio.run(server.run, sockets)


def _bind(settings: Settings) -> dict[tuple[str, ...], socket.socket]:
    """One socket per address, under the roles that share it: inference and management may (spec/server.md 17)."""
    roles: dict[Address | str, list[str]] = {}
    for role in ("inference", "management", *(["metrics"] if settings.enable_metrics_api else [])):
        address: Address = getattr(settings, role)
        # Port 0 is a port of its own for everyone who asks for it.
        roles.setdefault(address if address.port else role, []).append(role)
    bound: dict[tuple[str, ...], socket.socket] = {}
    for shared in roles.values():
        address = getattr(settings, shared[0])
        bound[tuple(shared)] = bind(address.host, address.port)
    if settings.enable_grpc:
        for address in (settings.grpc_inference, settings.grpc_management):
            bind(address.host, address.port).close()  # gRPC binds later: better to know now
    return bound


def _make_tls(settings: Settings) -> tuple[Tls | None, Tls | None]:
    """For the `https` addresses, and for gRPC; None where nobody asks for it.  Raises BadConfiguration."""
    secure = any(address.secure for address in (settings.inference, settings.management, settings.metrics))
    http = Tls(settings.https_certificates, protocols=["http/1.1"]) if secure else None
    grpc = settings.enable_grpc and settings.enable_grpc_ssl
    return http, Tls(settings.grpc_certificates, protocols=["h2"]) if grpc else None


class _Server:
    def __init__(self, settings: Settings, database: Path) -> None:
        self._settings = settings
        self._store = SqliteStore(database)
        self._keep = Keep(
            settings.state_dir,
            settings.model_store,
            allowed_urls=settings.allowed_urls,
            rules=_rules(settings),
            integrity=_integrity(settings),
            quota=Quota(
                settings.max_archive_entries,
                settings.max_archive_size,
                settings.max_archive_ratio,
                settings.min_free_space,
            ),
        )
        self._devices = NvmlDevices(most=settings.number_of_gpu, visible=settings.cuda_visible_devices)
        self._catalogue = read_catalogue(settings.metrics_config)
        self._poller, self._timers = Poller(), Timers()
        self._tls, self._grpc_tls = _make_tls(settings)
        ports = 5 if settings.enable_grpc else 3
        self._most_connections = connections_of(ports, wanted=settings.max_connections)
        if self._most_connections < settings.max_connections:
            _log.warning(
                "max_connections is %d, not %d: this process may open no more files",
                self._most_connections,
                settings.max_connections,
            )
        life_s = settings.token_expiration_min * 60
        self._authorization = Authorization(
            new_keys(life_s) if settings.tokens_on else None, metrics_need_token=settings.require_metrics_token
        )
        self._key_file = KeyFile(settings.key_file or settings.state_dir / KEY_FILE, self._authorization, life_s)
        self._named_tokens = NamedTokens(self._store, self._authorization)
        self._stop = trio.Event()
        self._hurry = trio.CancelScope()
        self._drained_by = math.inf
        self._loading = trio.CancelScope()

    def keys(self) -> AbstractContextManager[None]:
        """On the disk, while the server is."""
        return self._key_file.kept() if self._settings.tokens_on else nullcontext()

    async def run(self, sockets: dict[tuple[str, ...], socket.socket]) -> int:
        """The whole life of the server: 0 when everything in hand was finished, 1 when it had to be cut short."""
        self._registry = Registry(await self._store.load())
        self._history = History(self._store, self._registry)
        await self._named_tokens.load()
        versions = list(self._registry)
        await self._keep.prepare({version.digest for version in versions}, {version.url for version in versions})
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen_to_signals)
            if self._tls is not None or self._grpc_tls is not None:
                nursery.start_soon(self._reload_certificates)
            await nursery.start(self._history.run)  # out here it outlives the workers, also those that are cut short
            with self._hurry:
                await self._serve(sockets)
            nursery.cancel_scope.cancel()
        cut_short = self._hurry.cancelled_caught or trio.current_time() >= self._drained_by
        await self._store.close()
        return 1 if cut_short else 0

    async def _serve(self, sockets: dict[tuple[str, ...], socket.socket]) -> None:
        settings, registry = self._settings, self._registry
        adopt()
        files = (
            None
            if settings.metrics_mode == "prometheus"
            else MetricsFiles(settings.metrics_logs or settings.state_dir / LOGS)
        )
        metrics = Metrics(
            self._catalogue,
            mode=settings.metrics_mode,
            auto_detect=settings.model_metrics_auto_detect,
            files=files,
            version=__version__,
        )
        family = Family(metrics.take_emitted, poller=self._poller)
        fresh = FreshLauncher(family)
        hidden = settings.hidden_variables
        zygote = ZygoteLauncher(family, fresh, forks=settings.worker_start == "zygote", hidden_env=hidden)
        environments = Environments(
            settings.state_dir / ENVIRONMENTS,
            family,
            timeout_s=float(settings.environment_timeout),
            python=settings.python,
            options=settings.pip_options,
            hidden=hidden,
        )
        dependencies = Dependencies(environments, registry, self._keep, settings)
        vetting = Vetting(registry, settings, self._keep.integrity)
        reconciler = Reconciler(
            self._desired,
            VettedLauncher(PreparedLauncher(zygote, environments), vetting.vet),
            first_slot_number=settings.initial_worker_port,
            report=self._history.report,
            place=Placement().place,
            metrics=metrics,
        )
        devices = self._devices
        management = Management(
            self._store, registry, self._keep, reconciler, settings, self._history, devices, dependencies
        )
        gauges = Gauges(metrics, registry, reconciler)
        metrics.live = gauges.read
        interval_s = None if settings.disable_system_metrics else float(settings.metric_time_interval)
        measuring = Measuring(metrics, gauges, self._devices, files, interval_s)
        inference = Inference(registry, reconciler, self._timers, metrics)
        describe = Describe(registry, reconciler, management, settings, devices, inference)
        health = Health(registry, reconciler)
        protocol = OpenInference(registry, health, envelope=settings.service_envelope or "")
        pages = Pages(self._store, registry, offsets_only=settings.list_page_tokens == "offset")
        await pages.load()
        use_cases = UseCases(management, describe, inference, pages, self._history, health, protocol)
        tables: dict[str, Table] = {
            "management": [
                *management_routes(
                    management, describe, inference, pages, self._history, model_api=settings.enable_model_api
                ),
                *readiness_routes(protocol),
                *(token_routes(self._key_file) if settings.tokens_on else ()),
            ],
            "inference": [
                *(open_inference_routes(protocol) if settings.ts_open_inference_protocol else ()),
                *inference_routes(inference, health, management),
            ],
            "metrics": metrics_routes(metrics),
        }
        tables = {role: [*health_routes(health), *table] for role, table in tables.items()}
        async with family.looked_after(), trio.open_nursery() as nursery:
            nursery.start_soon(self._poller.run)
            nursery.start_soon(self._timers.run)
            await nursery.start(zygote.run)
            await nursery.start(reconciler.run)
            await nursery.start(management.run)
            await nursery.start(devices.run)
            await nursery.start(measuring.run)
            if self._authorization.is_on:
                nursery.start_soon(self._named_tokens.run)
            await dependencies.release()  # what an earlier run left behind
            if len(registry):
                await devices.detect()
            for version in list(registry):
                await reconciler.wake(version.key)
            with self._loading:
                await load_models(management, self._keep, settings)
            if not self._stop.is_set():
                await self._listen(sockets, tables, use_cases, metrics, on_ready=zygote.warm)
            await reconciler.drain(drain_s=max(0.0, self._drained_by - trio.current_time()))
            nursery.cancel_scope.cancel()

    def _desired(self, key: Key) -> PoolSpec | None:
        version = self._registry.get(key)
        if version is None:
            return None
        archive = self._registry.archive(version.digest)
        model_dir = self._keep.model_dir(version.digest)
        return pool_spec(version, archive, model_dir, self._settings, gpus=self._devices.count())

    async def _listen(
        self,
        sockets: dict[tuple[str, ...], socket.socket],
        tables: dict[str, Table],
        use_cases: UseCases,
        metrics: Metrics,
        *,
        on_ready: Callable[[], None],
    ) -> None:
        """Listen until told to stop, then until the last request is answered or its time is over."""
        settings = self._settings
        browsers = Browsers(_names(settings), dict(settings.cors_headers).get("access-control-allow-origin", ""))
        urls = _urls(settings, sockets)  # now, since the sockets are closed as soon as a signal comes
        async with trio.open_nursery() as nursery:
            for roles, bound in sockets.items():
                app = make_app(
                    roles,
                    [tables[role] for role in ("management", "inference", "metrics") if role in roles],
                    max_request_size=settings.max_request_size,
                    cors=settings.cors_headers,
                    guard=Guard(roles, browsers, self._authorization),
                    metrics=metrics,
                )
                tls = self._tls if getattr(settings, roles[0]).secure else None
                serving = partial(
                    serve,
                    app,
                    bound,
                    tls=tls,
                    most_connections=self._most_connections,
                    shutdown=self._stop,
                    drain_s=DRAIN_S,
                    hard_s=HARD_S,
                )
                await nursery.start(serving)
            if settings.enable_grpc:
                urls |= await self._listen_grpc(nursery, use_cases, metrics)
            with _endpoints_file(settings.state_dir / ENDPOINTS, urls):
                gc.freeze()  # modules stay: later collections need not walk them
                gc.enable()
                on_ready()
                _log.info("ready: %s", ", ".join(f"{role} {url}" for role, url in urls.items()))
                await self._stop.wait()

    async def _listen_grpc(self, nursery: trio.Nursery, use_cases: UseCases, metrics: Metrics) -> dict[str, str]:
        """The addresses.  Only now, and in a thread: its import takes a tenth of a second; HTTP is served by then."""
        grpc = await trio.to_thread.run_sync(importlib.import_module, "tserve.grpc.listeners")
        listeners = grpc.make_listeners(
            self._settings, use_cases, self._authorization, tls=self._grpc_tls, most_connections=self._most_connections
        )
        serving = partial(
            grpc.serve,
            listeners,
            poller=self._poller,
            timers=self._timers,
            shutdown=self._stop,
            drain_s=DRAIN_S,
            answered=metrics.grpc_answered,
        )
        ports = await nursery.start(serving)
        return {name: Address(listeners[name].address.host, port).netloc for name, port in ports.items()}

    async def _reload_certificates(self) -> None:
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                for tls in filter(None, (self._tls, self._grpc_tls)):
                    try:
                        tls.reload()
                    except BadConfiguration as e:
                        _log.error("the certificates stay as they are: %s", e)
                    else:
                        _log.info("certificates are read anew")

    async def _listen_to_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                if self._stop.is_set():
                    _log.warning("%s again: not waiting any longer", signal.Signals(number).name)
                    self._hurry.cancel()
                else:
                    _log.info("%s: finishing what is in hand", signal.Signals(number).name)
                    # The kernel ends the process if something keeps it from ending by itself.
                    signal.alarm(int(DRAIN_S + HARD_S) + LAST_RESORT_S)
                    self._drained_by = trio.current_time() + DRAIN_S
                    self._stop.set()
                    self._loading.cancel()


def _names(settings: Settings) -> set[str]:
    """What clients may call this server in `Host`, beside numbers."""
    listeners = {address.host for address in (settings.inference, settings.management, settings.metrics)}
    return {*settings.allowed_hosts, *listeners, socket.gethostname()}


def _rules(settings: Settings) -> Rules:
    """What downloads may do; the settings say MiB."""
    networks = [ipaddress.ip_network(network) for network in settings.allowed_networks]
    return Rules(
        addresses=AddressPolicy(networks, allow_all=settings.allow_private_addresses),
        connect_s=float(settings.download_connect_timeout),
        idle_s=float(settings.download_idle_timeout),
        total_s=float(settings.download_timeout),
        retries=settings.download_retries,
        most_bytes=settings.max_download_size << 20,
        free_bytes=settings.min_free_space << 20,
        s3_endpoint=settings.s3_endpoint_url,
    )


def _integrity(settings: Settings) -> Integrity:
    """What is asked of archives.  Raises BadConfiguration."""
    integrity = Integrity(
        settings.digest_required,
        settings.signature_required,
        settings.trusted_keys,
        {given.sha256 for given in settings.model_settings.values() if given.sha256 is not None},
    )
    integrity.check()
    return integrity


def _urls(settings: Settings, sockets: dict[tuple[str, ...], socket.socket]) -> dict[str, str]:
    urls = {}
    for roles, bound in sockets.items():
        for role in roles:
            urls[role] = replace(getattr(settings, role), port=bound.getsockname()[1]).url
    return urls


@contextmanager
def _endpoints_file(path: Path, urls: dict[str, str]) -> Iterator[None]:
    """Where tools find the addresses as chosen, for as long as the server accepts connections."""
    written = path.with_suffix(".tmp")
    written.write_text(json.dumps(urls, indent=2) + "\n")
    os.replace(written, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
