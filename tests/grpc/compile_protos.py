"""Compile tserve/grpc/protos to tserve/grpc/descriptors.binpb; to be run after each change of a proto.

python tests/grpc/compile_protos.py
"""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

GRPC = Path(__file__).resolve().parents[2] / "tserve" / "grpc"
WELL_KNOWN = Path(str(resources.files(grpc_tools))) / "_proto"


def compiled(protos: Path) -> bytes:
    """The descriptors of all protos below a folder, those that they import first."""
    files = sorted(str(file.relative_to(protos)) for file in protos.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as work:
        out = Path(work, "descriptors.binpb")
        options = [f"-I{protos}", f"-I{WELL_KNOWN}", "--include_imports", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *options, *files]) != 0:
            raise SystemExit("protoc failed")
        return out.read_bytes()


if __name__ == "__main__":
    (GRPC / "descriptors.binpb").write_bytes(compiled(GRPC / "protos"))
