"""Digests and signatures on the real server: every way to ask for them, and what a restart makes of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tserve
from tests.e2e.archives import write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import Answer, Server, eventually, running
from tests.grpc.management_client import ManagementClient

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

OTHER = "0" * 64


def command(*arguments: str, cwd: Path, fails: int = 0) -> str:
    """`tserve archive …`: what it prints, on standard error where it fails."""
    line = [sys.executable, "-m", "tserve", "archive", *arguments]
    environ = {"PYTHONPATH": str(Path(tserve.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(line, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == fails, done.stderr
    return done.stderr if fails else done.stdout


def refused(answer: Answer, reason: str) -> dict[str, object]:
    assert (answer.status, answer.json["type"]) == (400, "IntegrityException"), answer.body
    assert answer.text.startswith("Integrity of the archive could not be established: ")
    cause: dict[str, object] = answer.json["tserve"]
    assert cause["reason"] == reason, cause
    return cause


def beyond(server: Server, name: str) -> dict[str, object]:
    shown: dict[str, object] = server.describe(name)[0]["tserve"]
    return shown


def test_digests_by_rest_grpc_and_command(make_server: MakeServer, store: Path) -> None:
    digest = hashlib.sha256(write(store, "echo.mar").read_bytes()).hexdigest()
    assert command("digest", "echo.mar", cwd=store) == f"{digest}  echo.mar\n"
    with running(make_server(grpc=True)) as server:
        cause = refused(
            server.register("echo.mar", sha256=OTHER, initial_workers=1, synchronous=True), "digest_mismatch"
        )
        assert (cause["expected"], cause["actual"]) == (f"sha256:{OTHER}", f"sha256:{digest}")
        for wrong in ("", "abc", digest + "0", f"sha1:{digest}"):
            answer = server.register("echo.mar", sha256=wrong)
            assert (answer.status, answer.json["type"]) == (400, "BadRequestException"), answer.body
            assert answer.json["tserve"]["field"] == "sha256"
        client = ManagementClient(server.urls["grpc_management"])
        told = client.call("RegisterModel", url="echo.mar", sha256=OTHER)
        assert (told.code, told.cause["reason"]) == ("INVALID_ARGUMENT", "digest_mismatch")
        assert (server.models(), server.kept(), server.incoming()) == ({}, set(), [])
        assert client.call("RegisterModel", url="echo.mar", sha256=digest, model_name="by-grpc").code == "OK"
        assert server.register("echo.mar", sha256=f"SHA256:{digest.upper()}", model_name="by-rest").status == 200
        for name in ("by-grpc", "by-rest"):
            assert beyond(server, name)["digest"] == f"sha256:{digest}"
        client.close()


def test_a_policy_of_digests(make_server: MakeServer, store: Path) -> None:
    digests = {name: hashlib.sha256(write(store, f"{name}.mar", name=name).read_bytes()).hexdigest() for name in "abc"}
    models = json.dumps({"a": {"1.0": {"sha256": digests["a"]}}, "b": {"1.0": {"sha256": digests["a"]}}})
    server = make_server("digest_required=true", f"models={models}", f"load_models=c.mar#sha256={digests['c']}")
    with running(server):
        assert server.models() == {"c": "c.mar"}
        assert server.register("a.mar").status == 200
        refused(server.register("b.mar"), "digest_mismatch")
        # What the call says of itself does not beat the configuration.
        refused(server.register("b.mar", sha256=digests["b"]), "digest_mismatch")
        refused(server.register("a.mar", model_name="copy"), "digest_required")
        assert server.register("b.mar", model_name="copy", sha256=digests["b"]).status == 200
        assert set(server.models()) == {"a", "c", "copy"}


def test_a_start_model_that_is_another_archive_is_left_out(make_server: MakeServer, store: Path) -> None:
    write(store, "echo.mar")
    write(store, "good.mar", name="good")
    with running(make_server(f"load_models=echo.mar#sha256={OTHER},good.mar")) as server:
        assert server.models() == {"good": "good.mar"}
        assert "Integrity of the archive could not be established: echo.mar" in server.log()


def test_signatures(make_server: MakeServer, store: Path, tmp_path: Path) -> None:
    (keys := tmp_path / "keys").mkdir()
    for name in ("signed", "stranger", "unsigned"):
        write(store, f"{name}.mar", name=name)
    key_id = command("keygen", "release", cwd=tmp_path).strip()
    command("keygen", "other", cwd=tmp_path)
    assert "cannot be written" in command("keygen", "release", cwd=tmp_path, fails=9)
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    (keys / "release.pub").write_bytes((tmp_path / "release.pub").read_bytes())
    command("sign", "--key", str(tmp_path / "release.key"), "signed.mar", cwd=store)
    command("sign", "--key", str(tmp_path / "other.key"), "stranger.mar", cwd=store)
    assert "no private key" in command("sign", "--key", str(tmp_path / "release.pub"), "signed.mar", cwd=store, fails=9)

    server = make_server("signature_required=true", f"trusted_keys={keys}", grpc=True)
    with running(server):
        assert server.register("signed.mar", initial_workers=1, synchronous=True).status == 200
        assert beyond(server, "signed")["signedBy"] == key_id
        refused(server.register("unsigned.mar"), "not_signed")
        refused(server.register("stranger.mar"), "untrusted_key")
        command("sign", "--key", str(tmp_path / "release.key"), "unsigned.mar", cwd=store)
        line = (store / "unsigned.mar.sig").read_text()
        (store / "unsigned.mar.sig").unlink()
        assert server.register("unsigned.mar", signature=line).status == 200
        client = ManagementClient(server.urls["grpc_management"])
        told = client.call("RegisterModel", url="stranger.mar", signature=line)
        assert (told.code, told.cause["reason"]) == ("INVALID_ARGUMENT", "bad_signature")
        client.close()

        # A key that is trusted no longer: what it signed stays registered, and gets no worker.
        (keys / "release.pub").rename(tmp_path / "revoked.pub")
        server.restart("kill")
        server.call("PUT", "/models/signed?min_worker=1")

        def failed() -> bool:
            return beyond(server, "signed").get("state") == "failed"

        eventually("no worker starts", failed)
        assert "untrusted_key" in json.dumps(server.describe("signed"))
        assert server.predict("signed").status == 503
        (tmp_path / "revoked.pub").rename(keys / "release.pub")
        assert server.call("POST", "/tserve/models/signed/retry").status == 202
        server.ready_workers("signed")
        assert server.predict("signed").body == b"signed 1.0 of 1"


def test_a_restart_with_another_digest(make_server: MakeServer, store: Path) -> None:
    write(store, "echo.mar")
    server = make_server()
    with running(server):
        assert server.register("echo.mar", initial_workers=1, synchronous=True).status == 200
        server.config = [*server.config, "models=" + json.dumps({"echo": {"1.0": {"sha256": OTHER}}})]
        server.restart("term")
        eventually("the reason is told", lambda: "digest_mismatch" in json.dumps(server.describe("echo")))
        assert server.predict("echo").status == 503


@pytest.mark.parametrize(
    "line", ["signature_required=true", "trusted_keys=/not/there", 'models={"a":{"1.0":{"sha256":"x"}}}']
)
def test_a_configuration_that_would_check_nothing_does_not_start(make_server: MakeServer, line: str) -> None:
    server = make_server(line)
    server.start(ready=False)
    assert server.ended() == 3
    assert line.partition("=")[0] in server.log()
