"""What the checks of `ts` names share."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ts.context import Context, RequestProcessor

Check = Callable[[Any, Path], None]


def context_of(folder: Path, model: dict[str, str] | None = None, yaml: Any = None) -> Context:
    """A context with a batch of one request in hand."""
    context = Context("m", str(folder), {"model": model or {}}, 1, None, "0.12.0", model_yaml_config=yaml)
    context.request_processor = [RequestProcessor({})]
    context.request_ids = {0: "id"}
    return context


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def defaults(function: Any) -> dict[str, Any]:
    given = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in given if each.default is not inspect.Parameter.empty}


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def asks_for(package: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}$"):
        call()
