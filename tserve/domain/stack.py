"""Where Python code stood, read from what a worker printed: for ends that no exception tells of."""

from __future__ import annotations

import re

_HEAD = re.compile(r"^(?P<thread>.*(?<!C stack trace ))\(most recent call first\):$", re.MULTILINE)
_FRAME = re.compile(r'  File "(?P<file>.+)", line (?P<line>\d+)')


def innermost(output: str, folder: str) -> str:
    """`handler.py:12`: the innermost frame inside `folder` of the last stack that faulthandler wrote; else empty.

    Of several threads the one that crashed counts, or the main one, which faulthandler writes last.
    """
    heads = list(_HEAD.finditer(output))
    if not heads:
        return ""
    head = next((head for head in reversed(heads) if not head["thread"].startswith("Thread ")), heads[-1])
    prefix = folder.rstrip("/") + "/"
    for line in output[head.end() :].lstrip("\n").splitlines():
        frame = _FRAME.match(line)
        if frame is None:
            break
        if frame["file"].startswith(prefix):
            return f"{frame['file'].removeprefix(prefix)}:{frame['line']}"
    return ""
