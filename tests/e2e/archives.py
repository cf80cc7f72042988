"""Tiny archives whose handlers import no torch, so that a worker is up in about 0.1 s."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

ECHO = """
def handle(data, context):
    if data is None:
        return None
    name = context.manifest["model"]["modelName"]
    version = context.manifest["model"]["modelVersion"]
    return [f"{name} {version} of {len(data)}" for _ in data]

def other(data, context):
    return None if data is None else ["other" for _ in data]

def headers(data, context):
    if data is None:
        return None
    asked = context.get_all_request_header
    return [{name: value for name, value in asked(i).items() if isinstance(value, str)} for i in range(len(data))]
"""

SLOW_LOAD = """
import time

def handle(data, context):
    if data is None:
        time.sleep({seconds})
        return None
    return ["slow" for _ in data]
"""

# The body of a request is a folder: the handler says there that it runs and waits until it may go on.
GATED = """
import pathlib, time

def handle(data, context):
    if data is None:
        return None
    for row in data:
        folder = pathlib.Path(bytes(row["body"]).decode())
        (folder / "running").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
    return ["through" for _ in data]
"""

# Loading says that it runs by a file beside the handler's folder of choice, and never ends.
STUCK_LOAD = """
import pathlib, time

def handle(data, context):
    pathlib.Path({mark!r}).touch()
    time.sleep(3600)
"""

TORCH = """
import torch

def handle(data, context):
    return None if data is None else [str(torch.ones(2).sum().item()) for _ in data]
"""

FAILS_TO_LOAD = """
def handle(data, context):
    raise RuntimeError("this model cannot be loaded")
"""


def write(
    store: Path,
    file: str,
    handler: str = ECHO,
    *,
    name: str | None = "echo",
    version: str = "1.0",
    padding_mb: float = 0,
    config: str | None = None,
) -> Path:
    """Write `store`/`file`; `padding_mb` of incompressible bytes in some files make its intake take a while."""
    model: dict[str, object] = {"modelVersion": version, "handler": "handler.py"}
    if name is not None:
        model["modelName"] = name
    if config is not None:
        model["configFile"] = "model-config.yaml"
    path = store / file
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("handler.py", handler)
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        if config is not None:
            archive.writestr("model-config.yaml", config)
        noise = random.Random(file)
        for number in range(round(padding_mb * 4)):
            archive.writestr(f"weights/{number}.bin", noise.randbytes(1 << 18))
    return path


def contents(path: Path) -> dict[str, bytes]:
    """What an archive holds, or an unpacked folder: file path to bytes."""
    if path.is_dir():
        # A worker's interpreter may leave compiled modules beside the sources.
        files = [file for file in path.rglob("*") if file.is_file() and file.parent.name != "__pycache__"]
        return {str(file.relative_to(path)): file.read_bytes() for file in files}
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist() if not entry.is_dir()}
