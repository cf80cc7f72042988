"""Replay the recorded answers of the server that tserve replaces against this tserve.

    python tests/golden/run.py [arguments of replay.py]

`expected.json` holds the decided differences (case id -> row of docs/compatibility.md), `waiting.json` the cases
whose feature is not built yet, `left_out.json` those that are not replayed at all, each with its reason.  A waiting
case that passes must leave its list.
"""

from __future__ import annotations

import fnmatch
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parents[2] / "shared" / "golden"
GROUPS = [
    "register",
    "register-workers",
    "describe",
    "list",
    "set-default",
    "unregister",
    "scale",
    "scale-in-flight",
    "archive",
    "health",
    "startup",
    "snapshot",
    "routes",
    "openapi",
    "inference",
    "handler-input",
    "handler-results",
    "custom-status",
    "describe-custom",
    "stream",
    "tensor",
    "kserve",
    "envelope",
    "batch",
    "limits",
    "recovery",
    "metrics",
    "grpc-management",
    "grpc-inference",
    "token",
    "model-api-off",
    "default-mode",
    "urls",
    "s3",
]


def main() -> int:
    replay = GOLDEN / "replay.py"
    if not replay.is_file():
        print("golden replay skipped: the recorded answers are not beside this checkout")
        return 0
    expected = json.loads((HERE / "expected.json").read_text())
    waiting = json.loads((HERE / "waiting.json").read_text())
    with tempfile.TemporaryDirectory(prefix="golden-") as work:
        merged, report = Path(work, "expected.json"), Path(work, "report.json")
        merged.write_text(json.dumps(expected | waiting))
        start = (
            f"{shlex.quote(sys.executable)} -m tserve start --ts-config {{config}} --model-store {{model_store}} "
            "--state-dir {work}/state --key-file key_file.json {flags}"  # the file where upstream has it
        )
        command = [sys.executable, str(replay), "--launch", start, "--resume-launch", start]
        command += ["--work", work, "--expected", str(merged), "--json-report", str(report)]
        command += [word for case in _cases() for word in ("--id", case)]
        code = subprocess.run([*command, *sys.argv[1:]], check=False).returncode
        passed = {case["id"] for case in json.loads(report.read_text()) if case["ok"] and "expected" not in case}
    for case in sorted(passed & waiting.keys()):
        print(f"{case} passes now and must leave waiting.json")
        code = 1
    return code


def _cases() -> list[str]:
    """The ids of all cases of the groups built so far."""
    left_out = json.loads((HERE / "left_out.json").read_text())
    ids = [case["id"] for group in GROUPS for case in json.loads((GOLDEN / f"cases-{group}.json").read_text())]
    return [case for case in ids if not any(fnmatch.fnmatchcase(case, pattern) for pattern in left_out)]


if __name__ == "__main__":
    sys.exit(main())
