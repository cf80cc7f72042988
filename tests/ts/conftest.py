"""A model folder as a worker sees it, the Context for it, and two tiny models of [a, b] -> 2a + 3b + 1."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ts.context import Context

LINEAR = """
import torch
from collections import OrderedDict

class TinyLinear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.drop = torch.nn.Dropout(0.9)

    def forward(self, x):
        return self.drop(self.layer(x))
"""


@pytest.fixture
def linear() -> str:
    """Source of an eager model; its dropout would show at once outside of evaluation mode."""
    return LINEAR


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Weights for it."""
    return {"layer.weight": torch.tensor([[2.0, 3.0]]), "layer.bias": torch.tensor([1.0])}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Context]]:
    """Lay out a model folder as a worker sees it, and give the Context for it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def prepare(files: dict[str, str] | None = None, yaml: Any = None, **model: str) -> Context:
        for name, text in (files or {}).items():
            (tmp_path / name).write_text(text)
        return Context("m", str(tmp_path), {"model": model}, 1, None, "0.12.0", model_yaml_config=yaml)

    yield prepare
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def script(tmp_path: Path, state: dict[str, torch.Tensor]) -> str:
    """A TorchScript model in the model folder, by its file name."""
    layer = torch.nn.Linear(2, 1)
    layer.load_state_dict({name.removeprefix("layer."): value for name, value in state.items()})
    torch.jit.save(torch.jit.script(layer), str(tmp_path / "linear.pt"))
    return "linear.pt"
