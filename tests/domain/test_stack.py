"""Finding the model's own line in what faulthandler printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tserve.domain.stack import innermost

BY_THREAD = """
loading ...
Thread 0x00007f01 (most recent call first):
  File "/m/background.py", line 9 in loop

Thread 0x00007f02 (most recent call first):
  File "/usr/lib/python3.11/socket.py", line 706 in readinto
  File "/m/pkg/net.py", line 12 in fetch
  File "/m/handler.py", line 3 in initialize
  File "/app/loader.py", line 40 in load
"""
CRASH = """Fatal Python error: Segmentation fault

Current thread 0x00007f03 (most recent call first):
  File "/m/handler.py", line 7 in handle

Thread 0x00007f04 (most recent call first):
  File "/m/background.py", line 9 in loop

Current thread's C stack trace (most recent call first):
  Binary file "/usr/bin/python", at _Py_DumpStack+0x31

Extension modules: numpy (total: 1)
"""


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (BY_THREAD, "pkg/net.py:12"),
        (CRASH, "handler.py:7"),
        (BY_THREAD + CRASH, "handler.py:7"),
        ("", ""),
        ('Traceback (most recent call last):\n  File "/m/handler.py", line 1, in <module>\n', ""),
        ('Stack (most recent call first):\n  File "/mine/handler.py", line 1 in f\n', ""),
        ("Stack (most recent call first):\n  <no Python frame>\n", ""),
        ('Stack (most recent call first):\n  <no Python frame>\n  File "/m/handler.py", line 1 in f\n', ""),
        ("Stack (most recent call first):", ""),
    ],
)
def test_innermost(output: str, found: str) -> None:
    assert innermost(output, "/m") == innermost(output, "/m/") == found


def test_of_a_real_crash(tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text(
        "import faulthandler, os\nfaulthandler.enable()\ndef f():\n    os.abort()\nf()\n"
    )
    ended = subprocess.run([sys.executable, tmp_path / "crash.py"], capture_output=True, text=True, check=False)
    assert innermost(ended.stderr, str(tmp_path)) == "crash.py:4"
