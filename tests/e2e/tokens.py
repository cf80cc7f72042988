"""Tokens of every kind for a running server, and what a refusal looks like over HTTP and gRPC."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

import tserve
from tests.e2e.server import Answer, Server
from tests.grpc.inference_client import begin
from tserve.domain.access import Scope
from tserve.domain.tokens import new_token
from tserve.grpc.messages import POOL
from tserve.store.tokens import TokenBook

ON = ("disable_token_authorization=false", "require_metrics_token=true", "ts_open_inference_protocol=true")
REASONS = {"no_token", "malformed", "wrong_token", "wrong_tokens", "expired", "wrong_scope", "no_rule"}
NAMES = {Scope.MANAGEMENT: "management", Scope.INFERENCE: "inference", Scope.TOKEN: "API"}


@dataclass(frozen=True)
class Bearer:
    """The header that a client sends, none if None, and what it is good for."""

    header: str | None
    scopes: frozenset[Scope] = frozenset()

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.header is None else {"Authorization": self.header}

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [] if self.header is None else [("authorization", self.header)]


def keys(server: Server) -> dict[str, Any]:
    """The key file."""
    found: dict[str, Any] = json.loads((server.state / "key_file.json").read_text())
    return found


def key(server: Server, scope: Scope) -> Bearer:
    return Bearer(f"Bearer {keys(server)[NAMES[scope]]['key']}", frozenset([scope]))


def named(server: Server, name: str, *scopes: Scope, life_s: float | None = None) -> Bearer:
    now = time.time()
    text, token = new_token(name, frozenset(scopes), now=now, expires_at=None if life_s is None else now + life_s)
    TokenBook(server.state).add(token)
    return Bearer(f"Bearer {text}", frozenset(scopes) if life_s is None or life_s > 0 else frozenset())


def command(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`tserve token …` on the state folder of a server."""
    line = [sys.executable, "-m", "tserve", "token", *arguments, "--state-dir", str(server.state)]
    environ = {"PYTHONPATH": str(Path(tserve.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(line, cwd=server.folder, env=environ, capture_output=True, text=True, check=False)


def refusal(answer: Answer) -> str | None:
    """Why a token was not good enough; None for what was let in, whatever became of it."""
    if answer.status not in (400, 429, 500) or answer.headers.get("content-type") != "application/json":
        return None
    if not answer.body:  # HEAD
        return "unsaid" if answer.status in (400, 429) else None
    why = answer.json.get("tserve", {}).get("reason")
    return why if why in REASONS else None


def ask(address: str, service: str, method: str, bearer: Bearer) -> tuple[str, str | None]:
    """The status of a call without a message or with an empty one, and why the token was not good enough."""
    described = POOL.FindServiceByName(service).methods_by_name[method]
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        request: Any = iter([b""]) if described.client_streaming else b""
        call = begin(channel, method, request, service=service, metadata=bearer.metadata)
        try:
            if call.streams:
                for _ in call:
                    call.cancel()  # the first reply says enough
                    return "OK", None
                return "OK", None
            call.call.result()
        except grpc.RpcError:
            trailing = dict(call.call.trailing_metadata() or ())
            why = json.loads(trailing.get("tserve-cause", "{}")).get("reason")
            return call.call.code().name, why if why in REASONS else None
        return "OK", None
