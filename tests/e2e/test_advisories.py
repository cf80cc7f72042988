"""What the server that tserve replaces was attacked through: who can reach it, and who may do what there.

- CVE-2023-43654 and what led up to it: the management port on every interface (loopback is the default here).
- CVE-2024-35199: gRPC bound to all interfaces whatever the configuration and the documentation said.
- Tokens that came to some surfaces only (gRPC, and others, were forgotten): pytorch/serve #3234 and #3238.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.archives import write
from tests.e2e.server import Server, running
from tests.e2e.sockets import listening
from tests.e2e.tokens import Bearer, ask, refusal
from tserve.settings import Settings

MakeServer = Callable[..., Server]


@pytest.mark.fresh
def test_a_default_start_listens_on_loopback_only(make_server: MakeServer, store: Path) -> None:
    """HTTP, gRPC and whatever workers may open, by the kernel's table of sockets."""
    write(store, "echo.mar")
    server = make_server("load_models=echo.mar", "default_workers_per_model=1")
    server.grpc = True
    with running(server):
        assert server.describe("echo")
        found = listening(server.pid)
        assert len(found) == 5, found
        assert {address for address, _ in found} == {"127.0.0.1"}
        ports = {int(url.rpartition(":")[2]) for url in server.urls.values()}
        assert {port for _, port in found} == ports


def test_the_defaults_of_all_addresses_are_loopback() -> None:
    """As settings have them: the test above says its ports, so its addresses, too."""
    settings = Settings(model_store=Path(), state_dir=Path())
    assert settings.open_addresses == {}
    for address in (settings.inference, settings.management, settings.metrics):
        assert ipaddress.ip_address(address.host).is_loopback
    for address in (settings.grpc_inference, settings.grpc_management):
        assert ipaddress.ip_address(address.host).is_loopback


@pytest.mark.fresh
def test_cve_2024_35199_grpc_binds_to_the_address_it_was_given(make_server: MakeServer) -> None:
    server = make_server("grpc_inference_address=127.0.0.2", "grpc_management_address=127.0.0.3")
    server.grpc = True
    with running(server):
        by_port = {port: address for address, port in listening(server.pid)}
        assert by_port[int(server.urls["grpc_inference"].rpartition(":")[2])] == "127.0.0.2"
        assert by_port[int(server.urls["grpc_management"].rpartition(":")[2])] == "127.0.0.3"


@pytest.mark.fresh
@pytest.mark.parametrize(
    "line",
    [
        *(f"{role}_address=http://0.0.0.0:0" for role in ("inference", "management", "metrics")),
        *(f"grpc_{role}_address=0.0.0.0" for role in ("inference", "management")),
    ],
)
def test_one_address_for_others_turns_tokens_on_for_every_surface(make_server: MakeServer, line: str) -> None:
    """No surface without authentication (pytorch/serve #3234, #3238): the one that others reach is not the only one."""
    server = make_server(line)
    server.grpc = True
    stranger = Bearer(None)
    with running(server):
        for role, path in (("management", "/models"), ("inference", "/ping")):
            assert refusal(server.call("GET", path, role=role)) == "no_token"
        for listener, method in (("grpc_management", "ListModels"), ("grpc_inference", "Ping")):
            service = {
                "ListModels": "org.pytorch.serve.grpc.management.ManagementAPIsService",
                "Ping": "org.pytorch.serve.grpc.inference.InferenceAPIsService",
            }[method]
            address = server.urls[listener].replace("0.0.0.0", "127.0.0.1")
            assert ask(address, service, method, stranger) == ("PERMISSION_DENIED", "no_token")
        assert server.call("GET", "/tserve/livez").status == 200
