"""The program `tserve`: parsing, what `start` does before the server, messages and exit codes, docs/command.md."""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tserve
from tserve.cli import start
from tserve.cli.main import build_parser, exit_code_of, main
from tserve.errors import (
    BadConfiguration,
    CannotSign,
    PortTaken,
    SchemaTooNew,
    StartError,
    StateLocked,
    StateUnusable,
    TokenRefused,
)
from tserve.settings import Options

DOCS = Path(__file__).parents[2] / "docs" / "command.md"


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The real program, from a folder of its own and without any setting of this environment."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TS_")}
    environ["PYTHONPATH"] = str(Path(tserve.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("tserve")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


# ---- parsing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Options()),
        ("--model-store s --state-dir d --ts-config c", Options(model_store="s", state_dir="d", ts_config="c")),
        ("--models renamed=noop.mar tinyscript.mar", Options(models=("renamed=noop.mar", "tinyscript.mar"))),
        ("--models all --ncs", Options(models=("all",))),
        ("--disable-token-auth --enable-model-api", Options(disable_token_auth=True, enable_model_api=True)),
        ("--dt", Options(disable_token_auth=True)),
        ("--disable-token --enable", Options(disable_token_auth=True, enable_model_api=True)),
        ("--key-file k", Options(key_file="k")),
        ("--model-s=s", Options(model_store="s")),
        ("--ncs --no-config-snapshots --foreground --plugins-path p --ppath p --cpp-log-config c", Options()),
        (
            "--log-config l --workflow-store w",
            Options(without_effect=("--workflow-store", "--log-config")),
        ),
    ],
)
def test_start_options(line: str, expected: Options) -> None:
    assert start.options_of(build_parser().parse_args(["start", *line.split()])) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("stop-it", "invalid choice: 'stop-it'"),
        ("start --model x", "ambiguous option: --model could match"),
        ("start --models", "expected at least one argument"),
        ("start --port 1", "unrecognized arguments: --port 1"),
        ("start extra", "unrecognized arguments: extra"),
    ],
)
def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("usage: tserve")
    assert message in captured.err
    assert captured.out == ""


def test_the_program_as_a_process(tmp_path: Path) -> None:
    version = command("-m", "tserve", "--version", cwd=tmp_path)
    assert (version.returncode, version.stdout, version.stderr) == (0, "tserve 0.1.0\n", "")
    usage = command("-m", "tserve", cwd=tmp_path)
    assert (usage.returncode, usage.stdout) == (2, "")
    assert usage.stderr.startswith("usage: tserve")
    refused = command("-m", "tserve", "start", "--model-store", "nowhere", cwd=tmp_path)
    message = "tserve: --model-store directory not found: nowhere\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (3, "", message)
    assert not list(tmp_path.iterdir()), "a refused start leaves nothing behind"


def test_parsing_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
from tserve.cli.main import build_parser
build_parser().parse_args(["start", "--models", "all"])
heavy = {"trio", "quart", "hypercorn", "sqlalchemy", "alembic", "yaml", "javaproperties", "torch", "grpc"}
print(*sorted(heavy & sys.modules.keys()))
"""
    done = command("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


# ---- starting ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("restored_logging")
def test_start_reads_environment_and_working_directory_and_logs_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TS_CONFIG_FILE", "ts.properties")
    (tmp_path / "ts.properties").write_text("job_queue_size=7\nNUM_WORKERS=1\nipex_enable=true\n")
    settings = start.prepare(build_parser().parse_args(["start", "--model-store", "."]))
    assert (settings.job_queue_size, settings.model_store) == (7, tmp_path)
    logged = [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()]
    assert logged == [
        "WARNING tserve.cli without effect in this release: ipex_enable",
        "WARNING tserve.cli unknown keys, without effect: NUM_WORKERS",
    ]


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        ("", "job_queue_size=many\n", r"tserve: job_queue_size=many \(.*config\.properties\): allowed is a whole"),
        ("", "inference_address=unix:/a\n", r"tserve: inference_address=unix:/a .* not built yet, not ignored"),
        ("", "service_envelope=kserv\n", r"tserve: service_envelope=kserv .*: allowed is body or json or kserve or "),
        ("--ts-config gone.properties", "", r"tserve: --ts-config file not found: gone\.properties$"),
        ("--model-store gone", "", r"tserve: --model-store directory not found: gone$"),
    ],
)
def test_bad_configuration_exits_with_3(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    text: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TS_CONFIG_FILE", raising=False)
    (tmp_path / "model_store").mkdir()
    (tmp_path / "config.properties").write_text(text)
    assert main(["start", *line.split()]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(message, captured.err.removesuffix("\n"))
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("system", ["darwin", "win32", "freebsd14"])
def test_other_systems_are_refused(system: str) -> None:
    with pytest.raises(BadConfiguration, match=f"^tserve runs on Linux only; this system is {system}$"):
        start.refuse_foreign_platform(system)


def test_a_system_without_pidfds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(BadConfiguration, match=r"needs pidfds .* refuses them: .*Function not implemented"):
        start.refuse_foreign_platform("linux")
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(BadConfiguration, match="needs pidfds"):
        start.refuse_foreign_platform("linux")


# ---- exit codes and documentation ----------------------------------------------------------------------------------

CODES = [
    *((StartError, 1), (BadConfiguration, 3), (PortTaken, 4)),
    *((StateLocked, 5), (SchemaTooNew, 6), (StateUnusable, 7), (TokenRefused, 8), (CannotSign, 9)),
]


@pytest.mark.parametrize(("error", "code"), CODES)
def test_a_start_error_becomes_a_message_and_its_code(
    capsys: pytest.CaptureFixture[str], error: type[StartError], code: int
) -> None:
    def run() -> int:
        raise error("what went wrong")

    assert exit_code_of(run) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "tserve: what went wrong\n")


def test_the_code_of_a_command_that_ran_is_its_own() -> None:
    assert exit_code_of(lambda: 9) == 9


def test_a_bug_leaves_with_its_traceback(tmp_path: Path) -> None:
    code = "import sys; from tserve.cli.main import exit_code_of; sys.exit(exit_code_of(lambda: int('x')))"
    done = command("-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_documented_exit_codes() -> None:
    documented = [int(code) for code in re.findall(r"^\| (\d) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)]
    known = {0, 2} | {code for _, code in CODES}
    assert {error for error, _ in CODES} == {StartError, *StartError.__subclasses__()}
    assert documented == sorted(known)


def test_documented_options() -> None:
    """The table of `start` names exactly the flags its parser has."""
    documented = set()
    for row in re.findall(r"^\| (`--.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE):
        documented |= set(re.findall(r"`(--[a-z-]+)", row))
    parser = argparse.ArgumentParser()
    start.add(parser.add_subparsers())
    shown = parser._subparsers
    assert shown is not None
    (subparser,) = shown._group_actions[0].choices.values()  # type: ignore[union-attr]
    flags = {flag for action in subparser._actions for flag in action.option_strings}
    assert documented == flags - {"-h", "--help"}
