"""What the server and the process that makes a model's environment must agree on."""

from __future__ import annotations

from pathlib import Path

MARK = "complete"  # in the folder of an environment that has all; without it nothing in there counts
NO_ENVIRONMENT, NOT_INSTALLED = 3, 4  # exit codes: the environment could not be made, pip failed in it


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"
