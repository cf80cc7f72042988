"""What a model wants installed, and the name of the environment that has it: equal wants share one."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 1 << 20
# Lines that mean the same wherever they stand: comments, packages by name, options that name no file.
_PLAIN = re.compile(
    r"#.*|[A-Za-z0-9][\w.-]*\s*(\[[^\]]*\]\s*)?([<>=!~;(#].*)?|"
    r"(-i|--index-url|--extra-index-url)[ =]\s*https?://.*|"
    r"--(no-index|pre|prefer-binary|require-hashes|(no-binary|only-binary|trusted-host|use-feature)[ =].*)"
)
_FILE = re.compile(r"\.(whl|zip|tar|tgz|tbz|txz|tar\.\w+)$")


class BadRequirements(Exception):
    """The file cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """`file` is relative to `model_dir`, a folder that is named after its content."""

    model_dir: str
    file: str


def environment_name(wanted: Requirements, python: str, options: Sequence[tuple[str, str]]) -> str:
    """64 hexadecimal digits that stand for the requirements, the Python that has them installed, and pip's options.

    Requirements that may name files of the model's folder count together with all of it.  Raises BadRequirements.
    """
    text = read_requirements(wanted)
    origin = "" if all(map(_is_plain, _lines(text))) else Path(wanted.model_dir).name
    try:
        real = os.path.realpath(python, strict=True)
        about = Path(real).stat()
    except OSError as error:
        raise BadRequirements(f"the Python of the workers cannot be found: {error}") from error
    # Another version of Python in the same place is another file.
    identity = [text, origin, python, real, about.st_size, about.st_mtime_ns, sorted(options)]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def read_requirements(wanted: Requirements) -> str:
    """Raises BadRequirements for what is not there, not in the model's folder, or too long."""
    folder = Path(wanted.model_dir).resolve()
    try:
        path = (folder / wanted.file).resolve()
        if not path.is_relative_to(folder):
            raise BadRequirements(f"{wanted.file} is not in the archive")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadRequirements(f"{wanted.file} cannot be read: {why}") from error
    if len(content) > MOST_BYTES:
        raise BadRequirements(f"{wanted.file} has more than {MOST_BYTES} bytes")
    return content.decode("utf-8-sig", "surrogateescape")


def _lines(text: str) -> Iterator[str]:
    yield from (line.strip() for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines())


def _is_plain(line: str) -> bool:
    return not line or (_PLAIN.fullmatch(line) is not None and _FILE.search(line.split()[0].split(";")[0]) is None)
