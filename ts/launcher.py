"""Start a server, register models, stop it: what tools and tests of TorchServe users import from here.

The server runs as a process of its own, by the command `tserve start`, and ends with the program that started it.
"""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

START_S = 120.0
STOP_S = 90.0
_DEFAULT = {"inference": "http://localhost:8080", "management": "http://localhost:8081"}
_READY = re.compile(r" ready: (.*)")
_ADDRESS = re.compile(r"(\w+) (https?://[^\s,]+)")
_LAST_LINES = 20
# What is asked here is on this machine; a proxy of the environment is for elsewhere.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Response:
    """What a server answered."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def ok(self) -> bool:
        return self.status_code < 400

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        return json.loads(self.content)


def start(
    model_store: str | None = None,
    snapshot_file: str | None = None,
    no_config_snapshots: bool = False,
    plugin_folder: str | None = None,
    disable_token: bool = False,
    models: str | Iterable[str] | None = None,
    enable_model_api: bool = False,
) -> SimpleQueue[str | None]:
    """Start a server, after stopping the one that this program started before, and wait until it answers.

    `snapshot_file` is a properties file, `models` one or more archives, as `tserve start` takes them.  With
    `no_config_snapshots` the server begins with nothing and nothing of it is kept.  Returns the lines of its log as
    they come, None after the last.  Raises RuntimeError, with the end of the log, if it does not start.
    """
    global _running
    stop()
    arguments: list[str] = []
    for option, value in (
        ("--model-store", model_store),
        ("--ts-config", snapshot_file),
        ("--plugins-path", plugin_folder),
    ):
        if value:
            arguments += [option, str(value)]
    if disable_token:
        arguments.append("--disable-token-auth")
    if enable_model_api:
        arguments.append("--enable-model-api")
    if models:
        arguments += ["--models", *([models] if isinstance(models, str) else models)]
    _running = _Server(arguments, forgets=no_config_snapshots)
    try:
        _running.wait_until_it_answers()
    except BaseException:
        stop()
        raise
    return _running.lines


def stop() -> None:
    """End the server that this program started, if there is one: what it has in hand is finished."""
    global _running
    server, _running = _running, None
    if server is not None:
        server.stop()


def register_model(model_name: str, url: str) -> Response:
    """Register an archive with one worker and wait for that."""
    return register_model_with_params(
        {"model_name": model_name, "url": url, "initial_workers": "1", "synchronous": "true"}
    )


def register_model_with_params(params: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Response:
    """Register with the parameters of the Management API, at the server started here, else at port 8081.

    A refusal is a Response, too.  Raises OSError if no server answers.
    """
    address = (_running.addresses if _running else _DEFAULT)["management"]
    pairs = params.items() if isinstance(params, Mapping) else params
    return _ask(f"{address}/models?{urllib.parse.urlencode(list(pairs))}", method="POST")


class _Server:
    """One server process, the folder of its state if it has one of its own, and what its log has said."""

    def __init__(self, arguments: list[str], *, forgets: bool) -> None:
        self.lines: SimpleQueue[str | None] = SimpleQueue()
        self.addresses = dict(_DEFAULT)
        self._folder = tempfile.TemporaryDirectory(prefix="tserve-") if forgets else None
        if self._folder is not None:
            arguments = [*arguments, "--state-dir", self._folder.name]
        self._said: list[str] = []
        self._known = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tserve", "start", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name="server log", daemon=True)
        self._reader.start()

    def wait_until_it_answers(self) -> None:
        """Raises RuntimeError."""
        self._known.wait(START_S)
        try:
            if self._process.poll() is None:
                _ask(f"{self.addresses['inference']}/ping", timeout_s=START_S)
                return
        except OSError:  # it went away after all
            pass
        raise RuntimeError("The server has not started:\n" + "\n".join(self._said))

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_S)
        if not self._reader.is_alive() and self._process.stdout is not None:
            self._process.stdout.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            line = line.rstrip("\n")
            if not self._known.is_set():
                self._said = [*self._said, line][-_LAST_LINES:]
                ready = _READY.search(line)
                if ready:
                    self.addresses.update(_ADDRESS.findall(ready[1]))
                    self._known.set()
            print(line)
            self.lines.put(line)
        self._process.wait()
        self._known.set()
        self.lines.put(None)


def _ask(url: str, *, method: str = "GET", timeout_s: float | None = None) -> Response:
    request = urllib.request.Request(url, method=method)
    try:
        with _opener.open(request, timeout=timeout_s) as answer:
            return Response(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return Response(refusal.code, dict(refusal.headers), refusal.read())


_running: _Server | None = None
atexit.register(stop)
