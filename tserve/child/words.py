"""What the model's code raised, in words, and said in the worker's log.

Both run code of the model's own, `__str__` and a replaced `sys.stderr`, which may fail in any way and must not hide why
the model failed: nothing here raises.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

TEXT_LIMIT = 64 << 10  # characters


def text_of(value: object) -> str:
    """`str(value)`, at most the first 64 Ki characters; empty where there is none."""
    try:
        return str(value)[:TEXT_LIMIT]
    except BaseException:  # whatever it is, it is not the error that is looked at
        return ""


def traceback_of(error: BaseException) -> str:
    """As Python prints it, at most the last 64 Ki characters; the type's name where it cannot be formatted."""
    try:
        return "".join(traceback.format_exception(error))[-TEXT_LIMIT:]
    except BaseException:  # no memory for it, for one
        return f"{type(error).__name__}\n"


def say(text: str) -> None:
    """Print a text to sys.stderr, or to what that was at first when the model's code has closed or replaced it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(2, f"{text}\n".encode(errors="backslashreplace"))
