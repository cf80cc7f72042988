"""Make the archive from the weights that are here.

python pack.py [--export-path ../../model_store]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export-path", type=Path, default=HERE.parents[1] / "model_store")
    given = parser.parse_args()
    command = [archiver(), "--model-name", "streaming", "--version", "1.0", "--force"]
    command += ["--model-file", "model.py", "--serialized-file", "writer.pt"]
    command += ["--handler", "handler.py", "--extra-files", "author.py", "--config-file", "model-config.yaml"]
    command += ["--export-path", str(given.export_path.resolve())]
    with tempfile.TemporaryDirectory() as scratch:
        # The tool stages files in <temporary folder>/streaming and deletes what is there: give it one of its own.
        subprocess.run(command, cwd=HERE, env=os.environ | {"TMPDIR": scratch}, check=True)
    print(f"wrote {given.export_path / 'streaming.mar'}")


def archiver() -> str:
    """The command of this environment, which need not be the active one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    tool = shutil.which("torch-model-archiver", path=path)
    if tool is None:
        sys.exit("torch-model-archiver is missing: pip install torch-model-archiver")
    return tool


if __name__ == "__main__":
    main()
