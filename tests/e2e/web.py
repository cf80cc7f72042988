"""A web server of one folder that can be told to stop in the middle of its answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Web:
    """`asked` are the paths that were asked for; while `gate` is not set, answers stop after half of the body."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    connections: int = 0
    gate: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(folder: Path, host: str = "127.0.0.1") -> Iterator[Web]:
    web = Web()
    web.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            web.connections += 1
            super().setup()

        def do_GET(self) -> None:
            web.asked.append(self.path)
            file = folder / self.path.partition("?")[0].lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            body = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body[: len(body) // 2])
                web.gate.wait()
                self.wfile.write(body[len(body) // 2 :])
            except OSError:  # the client has left
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    web.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield web
    finally:
        web.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
