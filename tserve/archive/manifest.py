"""What the server reads of an unpacked archive: the manifest and the front-end keys of the model yaml.

Runs in the intake process, so it gives plain data with the field names of `Manifest` and `ModelConfig`.
Rules: spec/management.md section 3.5, its trap 34 and row 13 of section 12.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from tserve.archive.cpu_limit import TooSlow, cpu_limit
from tserve.archive.refusal import BadManifest

MAX_MANIFEST = 256 << 10  # a real one has some 300 bytes; all of it is stored and sent to each worker
MAX_NESTING = 64  # of a manifest: whoever passes it on has less room on the stack than who parsed it
MAX_CONFIG = 1 << 20
MAX_CONFIG_CPU_S = 10.0  # what the largest honest config takes; merge keys can ask for years
_MAX_WARNING = 200
_RUNTIMES = ("python", "python3", "LSP")
_KEYS = {
    "model_name": "modelName",
    "model_version": "modelVersion",
    "handler": "handler",
    "config_file": "configFile",
    "requirements_file": "requirementsFile",
    "envelope": "envelope",
}


class _Number(float):
    """A JSON number that remembers how it was written: version 1.10 is not 1.1."""

    text: str

    def __new__(cls, text: str) -> _Number:
        number = super().__new__(cls, text)
        if not math.isfinite(number):
            raise ValueError(f"number out of range: {text[:40]}")
        number.text = text
        return number


def read_manifest(folder: Path) -> dict[str, object]:
    """The fields of `Manifest`; none when the archive has no manifest.  Raises BadManifest for one that is broken."""
    try:
        with (folder / "MAR-INF" / "MANIFEST.json").open("rb") as file:
            content = file.read(MAX_MANIFEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except IsADirectoryError as error:
        raise BadManifest("bad_manifest", "MANIFEST.json is a folder") from error
    if len(content) > MAX_MANIFEST:
        raise BadManifest("bad_manifest", f"MANIFEST.json has more than {MAX_MANIFEST} bytes")
    try:
        text = content.decode("utf-8-sig", "replace")
        raw = json.loads(text, parse_float=_Number, parse_constant=_no_constant)
        _check_nesting(raw, MAX_NESTING)
        return _manifest_fields(raw) | {"raw": json.loads(mend(json.dumps(raw, ensure_ascii=False)))}
    except (ValueError, RecursionError) as error:
        raise BadManifest("bad_manifest", mend(f"MANIFEST.json cannot be parsed: {error}")) from error


def mend(text: str) -> str:
    """Lone surrogates, which no UTF-8 answer can carry, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _check_nesting(value: object, levels: int) -> None:
    if levels < 0:
        raise ValueError(f"it is nested more than {MAX_NESTING} deep")
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_nesting(inner, levels - 1)


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _manifest_fields(raw: object) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise ValueError("it is not an object")
    model = raw.get("model", {})
    if not isinstance(model, dict):
        raise ValueError("model is not an object")
    runtime = raw.get("runtime", "python")
    fields: dict[str, object] = {"runtime": runtime if runtime in _RUNTIMES else None}
    for field, key in _KEYS.items():
        if text := _text(key, model.get(key)):
            fields[field] = text
    return fields


def _text(key: str, value: object) -> str:
    """Numbers and booleans count as the text they were written as, null and missing as empty."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case _Number():
            return value.text
        case int():
            return str(value)
        case str():
            return mend(value)
    raise ValueError(f"model.{key} is not a text")


def read_config(folder: Path, config_file: object) -> tuple[dict[str, object] | None, list[str]]:
    """The written fields of `ModelConfig` and a warning for each thing left out.

    None when there is no config file or an unusable one: the model then registers as if it had none, as recorded.
    """
    if not isinstance(config_file, str):
        return None, []
    shown = f"configFile {config_file[:80]!a}"
    if "\0" in config_file or config_file.startswith("/") or ".." in config_file.split("/"):
        return None, [_short(f"{shown} leads out of the archive; ignored")]
    try:
        with (folder / config_file).open("rb") as file:
            content = file.read(MAX_CONFIG + 1)
    except OSError as error:
        return None, [_short(f"{shown} cannot be read ({error.strerror}); ignored")]
    if len(content) > MAX_CONFIG:
        return None, [_short(f"{shown} has more than {MAX_CONFIG} bytes; ignored")]
    problem, fields, warnings = _parse_config(content)
    if problem:
        return None, [_short(f"{shown} {problem[:120]}; ignored")]
    return fields, [_short(f"{shown}: {warning}") for warning in warnings]


def _parse_config(content: bytes) -> tuple[str, dict[str, object], list[str]]:
    import yaml  # late: most archives have no config file, and it doubles the time the process takes to start

    from tserve.domain.model_config import TENSORS, read_model_config

    # What the library raises over hostile text is not only its own errors (`!!int ""` is an IndexError).
    hostile = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)
    try:
        with cpu_limit(MAX_CONFIG_CPU_S):
            parsed = yaml.safe_load(content)  # not the C loader, which crashes on deep nesting
    except (yaml.YAMLError, TooSlow, *hostile) as error:
        return f"cannot be parsed: {error}", {}, []
    if not isinstance(parsed, Mapping):
        return "is not a mapping" if parsed is not None else "is empty", {}, []
    keys = {key: _flat(value) for key, value in parsed.items() if isinstance(key, str) and key not in TENSORS}
    tensors = {key: _tensors(parsed[key]) for key in TENSORS if key in parsed}
    config, warnings = read_model_config(keys | tensors)
    return "", {name: getattr(config, name) for name in config.given}, warnings


def _flat(value: object) -> object:
    """Front-end values are flat; nested ones may be bombs whose text, quoted in a warning, never ends."""
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if _scalar(item)}
    if isinstance(value, list):
        return value[:100] if all(_scalar(item) for item in value) else "a nested list"
    return value if _scalar(value) else f"a {type(value).__name__}"


def _tensors(value: object) -> object:
    """A list of objects, one level deeper: a shape is a list.  What is longer stays too long to be taken."""
    if not isinstance(value, list):
        return _flat(value)
    return [
        {k: _flat(v) for k, v in each.items()} if isinstance(each, Mapping) else _flat(each) for each in value[:100]
    ]


def _scalar(value: object) -> bool:
    return value is None or isinstance(value, (str, float, bool)) or (isinstance(value, int) and abs(value) < 2**64)


def _short(text: str) -> str:
    """One line for the log, whatever the archive put into it."""
    text = " ".join(text.split())
    return mend(text if len(text) <= _MAX_WARNING else text[:_MAX_WARNING] + "…")
