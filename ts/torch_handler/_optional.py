"""Packages that only some handlers need: imported when one does, asked for by name when they are not there."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, package: str, purpose: str) -> Any:
    """Import `module`.  Raises ModuleNotFoundError with `purpose`, a clause such as "X reads images", and the command.

    An ImportError from within an installed package passes as it is: installing it again would not help.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ModuleNotFoundError(
            f"{purpose} with the package {package}, which is not installed: pip install {package}",
            name=error.name,
        ) from error
