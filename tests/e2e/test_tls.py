"""TLS on every port: with PEM files and keystores, clients' certificates, and new ones while it runs."""

from __future__ import annotations

import signal
import socket
import ssl
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509 import load_pem_x509_certificate

from tests.e2e.archives import write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import ROLES, Server, eventually
from tests.grpc.inference_client import ask

pytestmark = pytest.mark.e2e

HTTPS = [f"{role}_address=https://127.0.0.1:0" for role in ROLES]
ECHO = """
def handle(data, context):
    return data and [bytes(row.get("body") or row.get("data")) for row in data]
"""
GRPC = {"model_name": "echo", "input": {"data": b"hello"}}


@dataclass
class Authority:
    """A certificate authority in `folder`, whose certificate is ca.pem; server.pem and server.key are the server's."""

    folder: Path

    def __post_init__(self) -> None:
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(self.folder / "ca.pem")
        self.issue()

    def issue(self) -> None:
        made = self.ca.issue_cert("127.0.0.1", "localhost")
        made.private_key_pem.write_to_path(self.folder / "server.key")
        (self.folder / "server.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))

    def keystore(self, password: str) -> None:
        key = load_pem_private_key((self.folder / "server.key").read_bytes(), None)
        certificate = load_pem_x509_certificate((self.folder / "server.pem").read_bytes())
        data = pkcs12.serialize_key_and_certificates(
            b"server",
            key,  # type: ignore[arg-type]
            certificate,
            None,
            BestAvailableEncryption(password.encode()),
        )
        (self.folder / "server.p12").write_bytes(data)

    def context(self, *, with_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if with_certificate:
            self.ca.issue_cert("someone@example.org").configure_cert(context)
        return context

    @property
    def lines(self) -> list[str]:
        return [f"certificate_file={self.folder}/server.pem", f"private_key_file={self.folder}/server.key"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "tls"
    folder.mkdir()
    return Authority(folder)


def connect(url: str, context: ssl.SSLContext) -> closing[HTTPSConnection]:
    at = urlsplit(url)
    assert at.scheme == "https"
    assert at.hostname is not None
    return closing(HTTPSConnection(at.hostname, at.port, context=context, timeout=30))


def ask_https(connection: HTTPSConnection, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def serial(url: str, context: ssl.SSLContext) -> str:
    with connect(url, context) as connection:
        connection.connect()
        return str(connection.sock.getpeercert()["serialNumber"])  # type: ignore[union-attr]


def fetch(url: str, context: ssl.SSLContext, path: str) -> int:
    with connect(url, context) as connection:
        return ask_https(connection, "GET", path)[0]


@pytest.fixture
def server(make_server: MakeServer, store: Path, authority: Authority) -> Server:
    write(store, "echo.mar", ECHO)
    made = make_server(*HTTPS, *authority.lines, "enable_grpc_ssl=true", grpc=True)
    made.start()
    return made


def test_every_port(server: Server, authority: Authority) -> None:
    context, body = authority.context(), bytes(range(256)) * 4096
    with connect(server.urls["management"], context) as management:
        status, said = ask_https(management, "POST", "/models?url=echo.mar&initial_workers=1&synchronous=true")
        assert status == 200, said
    with connect(server.urls["inference"], context) as inference:
        for _ in range(3):
            assert ask_https(inference, "POST", "/predictions/echo", body) == (200, body)
        assert inference.sock.version() in ("TLSv1.3", "TLSv1.2")
    assert fetch(server.urls["metrics"], context, "/metrics") == 200
    credentials = grpc.ssl_channel_credentials((authority.folder / "ca.pem").read_bytes())
    with grpc.secure_channel(server.urls["grpc_inference"], credentials) as channel:
        assert ask(channel, "Predictions", **GRPC).bodies == [b"hello"]
        large = {"model_name": "echo", "input": {"data": body * 3}}
        assert ask(channel, "Predictions", **large).bodies == [body * 3]
    with grpc.insecure_channel(server.urls["grpc_inference"]) as channel:
        assert ask(channel, "Predictions", **GRPC).code == "UNAVAILABLE"
    assert server.stop() == 0


def test_plain_http_is_told_so(server: Server) -> None:
    at = urlsplit(server.urls["inference"])
    with socket.create_connection((at.hostname, at.port), timeout=30) as plain:
        plain.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
        said = b""
        while part := plain.recv(4096):
            said += part
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")
    assert b"connection: close" in head
    assert b"x-request-id" not in head
    assert body == b'{\n  "status": "This TorchServe instance only accepts HTTPS requests"\n}\n'


def test_handshakes_that_stall_or_break_cost_nobody_else(server: Server, authority: Authority) -> None:
    stalled = []
    for url in (server.urls["inference"], f"//{server.urls['grpc_inference']}"):
        at = urlsplit(url)
        for said in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01" + b"\xff" * 600):
            client = socket.create_connection((at.hostname, at.port), timeout=30)
            client.sendall(said)
            stalled.append(client)
            with socket.create_connection((at.hostname, at.port), timeout=30) as leaving:
                leaving.sendall(said)
    assert fetch(server.urls["inference"], authority.context(), "/ping") == 200
    for client in stalled:
        client.close()
    assert "Traceback" not in server.log()


def test_new_certificates_while_it_runs(server: Server, authority: Authority) -> None:
    url, context = server.urls["inference"], authority.context()
    before = serial(url, context)
    with connect(url, context) as held:
        assert ask_https(held, "GET", "/ping")[0] == 200
        authority.issue()
        assert serial(url, context) == before, "nobody has asked for it yet"
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        after = eventually("the new certificate", lambda: (found := serial(url, context)) != before and found)
        (authority.folder / "server.key").write_text("no key")
        server.process.send_signal(signal.SIGHUP)
        eventually("the error in the log", lambda: "the certificates stay as they are" in server.log())
        assert serial(url, context) == after
        assert ask_https(held, "GET", "/ping")[0] == 200


def test_clients_with_certificates(make_server: MakeServer, store: Path, authority: Authority) -> None:
    authority.keystore("opensesame")
    (authority.folder / "server.key").unlink()
    store_lines = [f"keystore={authority.folder}/server.p12", "keystore_pass=opensesame"]
    client_ca = f"tls_client_ca={authority.folder}/ca.pem"
    server = make_server(*HTTPS, *store_lines, client_ca, "enable_grpc_ssl=true", grpc=True)
    server.start()
    url = server.urls["management"]
    assert fetch(url, authority.context(with_certificate=True), "/models") == 200
    for context in (authority.context(), trusting_another(authority)):
        with pytest.raises((ssl.SSLError, ConnectionError)):  # with TLS 1.3 the first answer tells
            fetch(url, context, "/models")
    root = (authority.folder / "ca.pem").read_bytes()
    with grpc.secure_channel(server.urls["grpc_inference"], grpc.ssl_channel_credentials(root)) as channel:
        assert ask(channel, "Predictions", **GRPC).code == "UNAVAILABLE"
    mine = authority.ca.issue_cert("someone@example.org")
    key, chain = mine.private_key_pem.bytes(), b"".join(part.bytes() for part in mine.cert_chain_pems)
    with grpc.secure_channel(server.urls["grpc_inference"], grpc.ssl_channel_credentials(root, key, chain)) as channel:
        assert ask(channel, "Predictions", **GRPC).code != "UNAVAILABLE"
    assert "opensesame" not in server.log()


def trusting_another(authority: Authority) -> ssl.SSLContext:
    """A client whose certificate a stranger has signed."""
    context = authority.context()
    trustme.CA().issue_cert("someone@example.org").configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "server.key").write_text("no key"), "allowed are PEM files that belong together"),
        (lambda folder: trustme.CA().issue_cert("h").private_key_pem.write_to_path(folder / "server.key"), "belong"),
        (lambda folder: (folder / "server.pem").write_text(""), "allowed are PEM files that belong together"),
    ],
    ids=["no key", "another's key", "no certificate"],
)
def test_files_that_cannot_be_used(make_server: MakeServer, authority: Authority, change: object, said: str) -> None:
    assert callable(change)
    change(authority.folder)
    server = make_server(*HTTPS, *authority.lines)
    process = server.spawn()
    assert process.wait(30) == 3
    assert said in server.log()
    assert "Traceback" not in server.log()


def test_a_keystore_with_another_password(make_server: MakeServer, authority: Authority) -> None:
    authority.keystore("opensesame")
    server = make_server(*HTTPS, f"keystore={authority.folder}/server.p12")
    assert server.spawn().wait(30) == 3
    assert "allowed is a PKCS #12 file that keystore_pass opens" in server.log()


def test_an_encrypted_key(make_server: MakeServer, authority: Authority) -> None:
    path = authority.folder / "server.key"
    key = load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    server = make_server(*HTTPS, *authority.lines)
    assert server.spawn().wait(30) == 3
    assert "allowed is a PEM file without a password" in server.log()
