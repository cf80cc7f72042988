"""The real server as a subprocess: start, wait until it is ready, call, stop, kill; and what it leaves on the disk."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import tserve

MARK = "E2E_SERVER_MARK"  # in the environment of a server, and so of every process that comes of it
START_S = 30.0
ROLES = ("inference", "management", "metrics")


def eventually(what: str, holds: Callable[[], object], *, within_s: float = START_S) -> Any:
    """Wait for a condition; what it came to."""
    deadline = time.monotonic() + within_s
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.01)
    return value


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The sentence of a command's or an error's answer."""
        return str(self.json.get("status", self.json.get("message")))


@dataclass
class Server:
    """One state folder and the servers that run on it, one after another.

    `config` are further lines of the properties file, `program` how Python runs the command.  Ports are chosen by the
    system, anew at each start.  Servers of tests that have no use for gRPC start sooner without it.
    """

    folder: Path
    store: Path
    config: Sequence[str] = ()
    program: Sequence[str] = ("-m", "tserve")
    timeout_s: float = 60.0
    grpc: bool = False
    process: subprocess.Popen[bytes] | None = None
    urls: dict[str, str] = field(default_factory=dict)
    mark: str = ""

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def endpoints(self) -> Path:
        return self.state / "endpoints.json"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    # -- life

    def spawn(self, *arguments: str, config: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """A server process on this state folder, not waited for; its log goes to `folder`/server.log."""
        self.folder.mkdir(exist_ok=True)
        properties = self.folder / "config.properties"
        addresses = [f"{role}_address=http://127.0.0.1:0" for role in ROLES]
        grpc = ["grpc_inference_port=0", "grpc_management_port=0", f"enable_grpc={str(self.grpc).lower()}"]
        properties.write_text("\n".join([*addresses, *grpc, *self.config, *config, ""]))
        environ = {key: value for key, value in os.environ.items() if not key.startswith("TS_")}
        environ |= {"PYTHONPATH": str(Path(tserve.__file__).parents[1]), MARK: self.mark}
        command = [sys.executable, *self.program, "start"]
        command += ["--model-store", str(self.store), "--state-dir", str(self.state), "--ts-config", str(properties)]
        with (self.folder / "server.log").open("ab") as log:
            # In a session of its own, as a service is: other tests make pytest the reaper of what a server leaves.
            return subprocess.Popen(
                [*command, *arguments], cwd=self.folder, env=environ, stdout=log, stderr=log, start_new_session=True
            )

    def start(self, *arguments: str, ready: bool = True) -> None:
        """`ready=False` does not wait for the server to accept connections."""
        assert self.process is None
        self.endpoints.unlink(missing_ok=True)  # a killed server's
        self.mark = uuid.uuid4().hex
        self.process = self.spawn(*arguments)
        if ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        process = self.process
        assert process is not None
        eventually("the server is ready", lambda: self.endpoints.exists() or process.poll() is not None)
        assert process.poll() is None, f"the server ended with {process.returncode}:\n{self.log()[-2000:]}"
        self.urls = json.loads(self.endpoints.read_text())

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.ended()

    def ended(self) -> int:
        """Wait for the end of the process; its exit code."""
        assert self.process is not None
        code = self.process.wait(self.timeout_s)
        self.process = None
        return code

    def restart(self, how: str, *arguments: str) -> None:
        """`how`: `term`, which must end cleanly, or `kill`."""
        if how == "kill":
            self.kill()
        else:
            assert self.stop() == 0, self.log()[-2000:]
        self.start(*arguments)

    def discard(self) -> None:
        """End whatever still runs."""
        if self.process is not None:
            self.kill()

    # -- calls

    def connect(self, role: str = "management") -> http.client.HTTPConnection:
        address = urlsplit(self.urls[role])
        return http.client.HTTPConnection(address.hostname or "", address.port, timeout=self.timeout_s)

    def call(
        self,
        method: str,
        path: str,
        *,
        role: str = "management",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> Answer:
        """One request on a connection of its own; `query` are parameters, None ones are left out."""
        with closing(self.connect(role)) as connection:
            return exchange(connection, method, target(path, **query), body=body, headers=headers)

    def register(self, url: str, **query: Any) -> Answer:
        return self.call("POST", "/models", url=url, **query)

    def scale(self, name: str, version: str | None = None, **query: Any) -> Answer:
        return self.call("PUT", path_of(name, version), **query)

    def unregister(self, name: str, version: str | None = None) -> Answer:
        return self.call("DELETE", path_of(name, version))

    def set_default(self, name: str, version: str) -> Answer:
        return self.call("PUT", path_of(name, version) + "/set-default")

    def describe(self, name: str, version: str | None = None) -> list[dict[str, Any]]:
        answer = self.call("GET", path_of(name, version))
        assert answer.status == 200, answer
        described: list[dict[str, Any]] = answer.json
        return described

    def predict(self, name: str, version: str | None = None, *, body: bytes = b"x") -> Answer:
        path = path_of(name, version).replace("/models/", "/predictions/", 1)
        return self.call("POST", path, role="inference", body=body)

    def page(self, **query: Any) -> dict[str, Any]:
        answer = self.call("GET", "/models", **query)
        assert answer.status == 200, answer
        page: dict[str, Any] = answer.json
        return page

    def models(self) -> dict[str, str]:
        """Name to url of everything in the list, over all of its pages, in the list's order."""
        listed: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self.page(next_page_token=token)
            listed |= {model["modelName"]: model["modelUrl"] for model in page["models"]}
            token = page.get("nextPageToken")
            if token is None:
                return listed

    def registry(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Every version as described: name to version to description."""
        return {
            name: {version["modelVersion"]: version for version in self.describe(name, "all")} for name in self.models()
        }

    def ready_workers(self, name: str, version: str | None = None) -> list[int]:
        """Process ids."""
        (described,) = self.describe(name, version)
        return [worker["pid"] for worker in described["workers"] if worker["status"] == "READY"]

    # -- what is there

    def log(self) -> str:
        with suppress(FileNotFoundError):
            return (self.folder / "server.log").read_text(errors="replace")
        return ""

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{quote(str(self.state / 'state.db'))}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()

    def kept(self) -> set[str]:
        """Digests of the archives on the disk."""
        return set(names_in(self.state / "archives"))

    def incoming(self) -> list[str]:
        """Work in progress of registrations."""
        return names_in(self.state / "incoming")

    def check_whole(self) -> None:
        """The database is sound, the archives on the disk are those that versions stand on, nothing is left over."""
        assert self.rows("PRAGMA integrity_check") == [("ok",)]
        assert self.rows("PRAGMA foreign_key_check") == []
        referenced = {digest for (digest,) in self.rows("SELECT DISTINCT digest FROM versions")}
        assert {digest for (digest,) in self.rows("SELECT digest FROM archives")} == referenced
        assert self.kept() == referenced
        assert self.incoming() == []


def names_in(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return sorted(os.listdir(folder))
    return []


def processes_of(mark: str) -> dict[int, str]:
    """Living processes of the server with this mark, itself among them: pid to command line."""
    entry = f"{MARK}={mark}".encode()
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        process = Path("/proc", pid)
        with suppress(OSError):
            if entry in (process / "environ").read_bytes().split(b"\0"):
                found[int(pid)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def path_of(name: str, version: str | None = None) -> str:
    path = "/models/" + quote(name, safe="")
    return path if version is None else f"{path}/{quote(version, safe='')}"


def target(path: str, **query: Any) -> str:
    given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
    pairs = {name: value for name, value in given.items() if value is not None}
    return f"{path}?{urlencode(pairs)}" if pairs else path


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    connection.request(method, path, body=body, headers=dict(headers or {}))
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


@contextmanager
def running(server: Server, *arguments: str) -> Iterator[Server]:
    """Start, and whatever happens end, a server."""
    try:
        server.start(*arguments)
        yield server
    finally:
        server.discard()
