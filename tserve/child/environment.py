"""Makes the environment of a model that brings requirements: a virtual environment that also sees all of this Python.

Run by the Python whose packages it is to see.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import traceback
import venv
from pathlib import Path

from tserve.child.main import die_with, line_buffered
from tserve.domain.environments import MARK, NO_ENVIRONMENT, NOT_INSTALLED, python_of

_SCRATCH = "tmp"  # a pip that is killed leaves its folders there
# They would have pip install elsewhere than into the environment.
_ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")


def main(argv: list[str]) -> None:
    """`argv`: the server's pid, the folder to be, the model's folder and the name of its file of requirements."""
    server, folder, model_dir, requirements = argv
    die_with(int(server))
    line_buffered()
    environment = Path(folder)
    try:
        _make(environment)
    except Exception:
        traceback.print_exc()
        sys.exit(NO_ENVIRONMENT)
    if not _install(environment, model_dir, requirements):
        sys.exit(NOT_INSTALLED)
    _mark(environment)


def _make(environment: Path) -> None:
    with_pip = importlib.util.find_spec("pip") is None  # else the one that there is will do, and saves seconds
    environment.mkdir(parents=True)
    venv.EnvBuilder(symlinks=True, with_pip=with_pip).create(environment)
    place = {"base": str(environment), "platbase": str(environment)}
    # Of a Python that is a virtual environment itself, --system-site-packages would show its base's packages only.
    lines = [f"import site; site.addsitedir({str(path)!r})\n" for path in _packages()]
    Path(sysconfig.get_path("purelib", "venv", place), "_inherited.pth").write_text("".join(lines))


def _packages() -> list[Path]:
    """The folders of this Python's packages, in its order."""
    named = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        named = [site.getusersitepackages(), *named]
    return [Path(name).absolute() for name in dict.fromkeys(named) if Path(name).is_dir()]


def _install(environment: Path, model_dir: str, requirements: str) -> bool:
    """Relative paths in the file start at the model's folder, whose modules are not for pip to import (-P)."""
    scratch = environment / _SCRATCH
    scratch.mkdir()
    environ = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    pip = [str(python_of(environment)), "-P", "-m", "pip", "install", "--no-input", "--no-user"]
    quiet = ["--progress-bar", "off", "--disable-pip-version-check", "--no-warn-script-location"]
    parent = os.getpid()
    ended = subprocess.run(
        [*pip, *quiet, "-r", requirements],
        cwd=model_dir,
        env={**environ, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: die_with(parent),
        check=False,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    return ended.returncode == 0


def _mark(environment: Path) -> None:
    """Say that all is there, once it is on the disk: a loss of power must not leave a mark without what it marks."""
    descriptor = os.open(environment, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
        (environment / MARK).touch()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
