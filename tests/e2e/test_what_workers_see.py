"""Secrets and open files of the server stay with it, whichever way its workers start."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.archives import write
from tests.e2e.conftest import MakeServer
from tests.e2e.server import running

pytestmark = pytest.mark.e2e

SHOWS = """
import json, os, pathlib

def handle(data, context):
    if data is None:
        return None
    first = pathlib.Path("/proc/self/environ").read_bytes().decode().split(chr(0))
    files = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            files[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            pass  # the folder that is being listed
    return [json.dumps({"now": sorted(os.environ), "first": first, "files": files})] * len(data)
"""
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "STORE_PASS")
# A server with a file that every child would inherit, as a shell or a supervisor may leave one.
INHERITS = """
import os, sys
os.set_inheritable(os.open({file!r}, os.O_RDONLY), True)
from tserve.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("start", ["zygote", "fresh"])
def test_workers_see_no_secrets_and_no_files_of_the_server(
    make_server: MakeServer, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    for name in (*SECRETS, "AWS_REGION", "MY_NAME"):
        monkeypatch.setenv(name, "the-secret-of-" + name)
    write(store, "shows.mar", SHOWS, name="shows")
    (tmp_path / "left-open").touch()
    server = make_server(
        f"worker_start={start}", "keystore_pass=$$STORE_PASS$$", "disable_token_authorization=false", grpc=True
    )
    server.program = ("-c", INHERITS.format(file=str(tmp_path / "left-open")))
    with running(server):
        key = json.loads((server.state / "key_file.json").read_text())
        bearer = {role: {"Authorization": f"Bearer {key[role]['key']}"} for role in ("management", "inference")}
        query = {"url": "shows.mar", "initial_workers": 1, "synchronous": "true"}
        assert server.call("POST", "/models", headers=bearer["management"], **query).status == 200
        shown = server.call("POST", "/predictions/shows", role="inference", body=b"x", headers=bearer["inference"]).json
        assert {"AWS_REGION", "MY_NAME"} <= set(shown["now"])
        assert not set(SECRETS) & set(shown["now"])
        first = "\n".join(shown["first"])
        assert "the-secret-of-MY_NAME" in first
        assert not [name for name in SECRETS if f"the-secret-of-{name}" in first]
        for secret in (key["management"]["key"], key["inference"]["key"], key["API"]["key"]):
            assert secret not in json.dumps(shown)
        files = shown["files"]
        assert str(tmp_path / "left-open") in open_files(server.pid)
        theirs = {link for link in open_files(server.pid) if not link.startswith(("anon_inode:", "/dev/"))}
        assert set(files.values()) & theirs <= {files["1"], files["2"]}, files  # the pipe whose other end reads the log
        assert sorted(files, key=int)[:3] == ["0", "1", "2"]
        assert files["0"] == "/dev/null"


def open_files(pid: int) -> set[str]:
    links = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.add(str(each.readlink()))
    return links
