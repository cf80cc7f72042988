"""A model folder, and a worker's state of mind that ends with the test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tserve.child.loader import Model, load
from tserve.domain.plan import WorkerSpec

Loader = Callable[..., Model]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


@pytest.fixture
def loaded(model_dir: Path) -> Iterator[Loader]:
    """`loaded("handler.py", {"handler.py": source}, …fields of WorkerSpec)` loads as a worker does."""
    folder, path, environment, modules = Path.cwd(), sys.path[:], dict(os.environ), set(sys.modules)

    def write_and_load(handler: str, files: dict[str, str] | None = None, **fields: object) -> Model:
        for name, text in (files or {}).items():
            (model_dir / name).parent.mkdir(exist_ok=True)
            (model_dir / name).write_text(text)
        return load(WorkerSpec("m", str(model_dir), handler, 4, **fields))  # type: ignore[arg-type]

    yield write_and_load
    os.chdir(folder)
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or model_dir).startswith(str(model_dir)):
            del sys.modules[name]
    sys.path_importer_cache.pop(str(model_dir), None)
