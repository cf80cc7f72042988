"""The reason, the file and the sentence for what a model's code raises; tests/e2e/broken_archives.py has the rest."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tserve.child.diagnosis import LoadFailed
from tserve.child.loader import Model

Loader = Callable[..., Model]
HOPELESS = {"import_error", "missing_requirement", "missing_file", "bad_weights", "wrong_python", "syntax_error"}


def failure(loaded: Loader, source: str, files: dict[str, str] | None = None, **fields: Any) -> LoadFailed:
    with pytest.raises(LoadFailed) as caught:
        loaded("handler.py", {"handler.py": source, **(files or {})}, **fields)
    found = caught.value
    assert found.hopeless == (found.reason in HOPELESS)
    return found


def at_import(loaded: Loader, source: str, files: dict[str, str] | None = None, **fields: Any) -> tuple[str, str]:
    found = failure(loaded, source, files, **fields)
    return found.reason, found.file


# -- which error of several


@pytest.mark.parametrize(
    "wrap", ["raise RuntimeError('no') from e", "raise RuntimeError('no')", "log.error(e)"], ids=["from", "in", "typo"]
)
def test_an_error_around_the_true_one(loaded: Loader, wrap: str) -> None:
    """Whether it names its cause, comes up while that is handled, or is a slip in the handling."""
    source = f"try:\n    import not_installed\nexcept Exception as e:\n    {wrap}\n"
    assert at_import(loaded, source) == ("missing_requirement", "handler.py:2")


def test_the_innermost_place_of_a_wrapped_error(loaded: Loader) -> None:
    net = "def build():\n    return {}['size']\n"
    source = "import net\ntry:\n    net.build()\nexcept KeyError as e:\n    raise RuntimeError('cannot build') from e\n"
    assert at_import(loaded, source, {"net.py": net}) == ("load_error", "net.py:2")


def test_a_fallback_that_fails_is_the_cause(loaded: Loader) -> None:
    source = """
def fallback():
    raise ValueError("slow path, too")

try:
    import not_installed
except ImportError:
    fallback()
"""
    assert at_import(loaded, source) == ("load_error", "handler.py:3")


def test_a_context_that_was_suppressed(loaded: Loader) -> None:
    source = "try:\n    import not_installed\nexcept ImportError:\n    raise ValueError('other') from None\n"
    assert at_import(loaded, source) == ("load_error", "handler.py:4")


def test_errors_that_are_each_others_cause(loaded: Loader) -> None:
    source = "a, b = ValueError('a'), ValueError('b')\na.__cause__, b.__cause__ = b, a\nraise a\n"
    assert at_import(loaded, source) == ("load_error", "handler.py:3")


def test_an_error_without_words(loaded: Loader) -> None:
    source = "class Dumb(Exception):\n    def __str__(self):\n        raise ValueError\n\nraise Dumb\n"
    assert at_import(loaded, source) == ("load_error", "handler.py:5")


def test_no_line_of_the_model_but_its_handler(loaded: Loader) -> None:
    assert at_import(loaded, "class Handler:\n    def __init__(self, size): ...\n") == ("load_error", "handler.py")


# -- code that is in the way of a diagnosis

MISFIT = "raise RuntimeError('size mismatch for layer')"


@pytest.mark.parametrize(
    "source",
    [
        "prompt = 'x' * 300\n",
        "prompt = 'x' * 4095\n",
        "prompt = 'a\\0b'\n",
        "prompt = '\\udc80'\n",
        "class P:\n    @property\n    def __class__(self):\n        raise SystemExit\n\np = P()\n",
        "class P(str):\n    def __str__(self):\n        raise KeyboardInterrupt\n\np = P('net.pt')\n",
    ],
    ids=["long", "longest", "null", "surrogate", "class", "str"],
)
def test_variables_that_are_no_paths(loaded: Loader, source: str) -> None:
    """The innermost of them are looked at first; what comes behind them counts all the same."""
    text = f"weights = 'net.pt'\ndef load():\n    {source.replace(chr(10), chr(10) + '    ')}\n    {MISFIT}\n\nload()\n"
    assert at_import(loaded, text, {"net.pt": "?"}) == ("bad_weights", "net.pt")


def test_a_message_that_quotes_a_long_text(loaded: Loader) -> None:
    found = failure(
        loaded, "raise RuntimeError(\"size mismatch for '%s' in 'net.pt'\" % ('k' * 300))\n", {"net.pt": "?"}
    )
    assert (found.reason, found.file) == ("bad_weights", "net.pt")


def test_a_message_of_megabytes(loaded: Loader) -> None:
    """Quotes of all of it would take half a minute to look for in the folder."""
    began = time.perf_counter()
    found = failure(loaded, "raise RuntimeError('size mismatch for ' + \"'a' \" * 3_000_000)\n")
    assert (found.reason, len(found.detail), len(str(found))) == ("bad_weights", 16 << 10, 16 << 10)
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("kind", ["PanicException", "KeyboardInterrupt", "GeneratorExit"])
def test_what_is_no_exception(loaded: Loader, kind: str) -> None:
    source = f"class PanicException(BaseException): ...\n\nraise {kind}('unwrap of None')\n"
    found = failure(loaded, source)
    assert (found.reason, found.file) == ("load_error", "handler.py:3")
    assert found.detail.endswith(f"{kind}: unwrap of None\n")


@pytest.mark.parametrize("raised", ["SystemExit(3)", "KeyboardInterrupt", "RecursionError"])
def test_words_that_raise(loaded: Loader, raised: str) -> None:
    source = f"class Odd(Exception):\n    def __str__(self):\n        raise {raised}\n\nraise Odd\n"
    assert at_import(loaded, source) == ("load_error", "handler.py:5")


@pytest.mark.parametrize("raised", ["ValueError", "SystemExit", "KeyboardInterrupt"])
def test_an_error_that_cannot_be_looked_into(loaded: Loader, raised: str) -> None:
    """The traceback is told all the same."""
    source = f"""
class Odd(ImportError):
    @property
    def path(self):
        raise {raised}

raise Odd("the true cause")
"""
    found = failure(loaded, source)
    assert (found.reason, found.file) == ("load_error", "")
    assert found.detail.endswith("Odd: the true cause\n")


def test_an_error_that_cannot_be_printed(loaded: Loader) -> None:
    source = """
import traceback

def broken(*args, **kwargs):
    raise MemoryError

traceback.format_exception, kept = broken, traceback.format_exception
raise RuntimeError("no room")
"""
    kept = traceback.format_exception
    try:
        found = failure(loaded, source)
    finally:
        traceback.format_exception = kept
    assert (found.reason, found.file, found.detail) == ("load_error", "handler.py:8", "RuntimeError\n")


@pytest.mark.parametrize(
    "stderr",
    [
        "class Log:\n    def write(self, text): ...\n\nsys.stderr = Log()\n",
        "class Log:\n    def write(self, text): raise SystemExit\n\nsys.stderr = Log()\n",
        "sys.stderr = open('/dev/null', 'w')\nsys.stderr.close()\n",
    ],
    ids=["no flush", "raises", "closed"],
)
def test_the_log_has_it_in_spite_of_the_model(
    loaded: Loader, stderr: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", sys.stderr)  # to be put back
    found = failure(loaded, f"import sys\n{stderr}\nraise RuntimeError('the true cause')\n")
    assert found.reason == "load_error"
    said = capfd.readouterr().err
    assert "Traceback" in said
    assert said.endswith("RuntimeError: the true cause\n")


# -- imports


def test_a_requirement_that_the_archive_lists_or_not(loaded: Loader) -> None:
    source = "import not_installed.part\n"
    sentence = "handler.py:1 needs the module 'not_installed', which is neither in the archive nor installed"
    assert failure(loaded, source).detail.endswith(sentence)


@pytest.mark.parametrize(
    ("lines", "verb"),
    [("Not-Installed[fast]==1.0 ; python_version > '3'\n", "lists it but is"), ("not-installed-either\n", "is")],
)
def test_requirements_that_are_not_installed(loaded: Loader, lines: str, verb: str) -> None:
    manifest = {"model": {"requirementsFile": "needs.txt"}}
    found = failure(loaded, "import not_installed\n", {"needs.txt": lines}, manifest=manifest)
    assert found.detail.endswith(f"; needs.txt {verb} not installed, since install_py_dep_per_model is off")


@pytest.mark.parametrize(("lines", "verb"), [("not-installed\n", "lists it and"), ("other\n", "does not list it, and")])
def test_requirements_that_are_installed(loaded: Loader, lines: str, verb: str) -> None:
    """Whose file of requirements does not bring the module."""
    manifest = {"model": {"requirementsFile": "needs.txt"}}
    files = {"needs.txt": lines}
    found = failure(loaded, "import not_installed\n", files, manifest=manifest, requirements="needs.txt")
    assert found.reason == "missing_requirement"
    assert found.detail.endswith(f"; needs.txt {verb} is installed")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import distribution.latin", "'distribution.latin', which the archive does not have"),
        ("import distribution.lation", "did you mean 'distribution.nation'?"),
        ("import helpes", "did you mean 'helpers'?"),
        ("import json.encode", "which the installed 'json' does not have"),
    ],
)
def test_an_import_of_what_is_not_there(loaded: Loader, source: str, sentence: str) -> None:
    files = {"helpers.py": "", "distribution/__init__.py": "", "distribution/nation.py": ""}
    found = failure(loaded, source, files)
    assert (found.reason, found.file) == ("import_error", "handler.py:1")
    assert sentence in found.detail


@pytest.mark.parametrize(
    "text", ["bad magic number in 'fast': b'x'", "/m/fast.so: undefined symbol: PyUnicodeUCS4_AsUTF8String"]
)
def test_a_module_of_another_python(loaded: Loader, text: str) -> None:
    assert at_import(loaded, f"raise ImportError({text!r})")[0] == "wrong_python"


def test_a_library_that_does_not_fit_into_memory(loaded: Loader) -> None:
    source = "raise ImportError('libtorch.so: failed to map segment from shared object')"
    found = failure(loaded, source)
    assert (found.reason, found.code) == ("out_of_memory", 507)


# -- files


def test_a_text_that_the_code_parses_is_no_source_file(loaded: Loader) -> None:
    assert at_import(loaded, "import ast\nast.literal_eval('1 +')\n") == ("load_error", "handler.py:2")
    assert at_import(loaded, "compile('x = 1\\0', 'labels', 'exec')\n") == ("load_error", "handler.py:1")


def test_a_file_outside_of_the_archive_may_still_come(loaded: Loader, tmp_path: Path) -> None:
    assert at_import(loaded, f"open({str(tmp_path / 'mounted.txt')!r})") == ("load_error", "handler.py:1")
    assert at_import(loaded, "open('../mounted.txt')") == ("load_error", "handler.py:1")


def test_a_missing_program_is_no_missing_file(loaded: Loader) -> None:
    assert at_import(loaded, "import subprocess\nsubprocess.run(['not-a-program'])\n") == ("load_error", "handler.py:2")


@pytest.mark.parametrize(
    "raised",
    [
        "FileNotFoundError('No such file or directory: model.bin')",
        "FileNotFoundError('No such file or directory: \"model.bin\"')",
        "ValueError('The provided filename model.bin does not exist')",
    ],
)
def test_a_missing_file_that_a_library_puts_into_words(loaded: Loader, raised: str) -> None:
    assert at_import(loaded, f"raise {raised}") == ("missing_file", "model.bin")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\nwith open('data' + '.bin', 'rb') as file:\n    pickle.load(file)\n",
        "import pathlib, pickle\nother = 'more.bin'\npickle.loads(pathlib.Path('data.bin').read_bytes())\n",
        "import pickle\nfrom pathlib import Path\nname = Path('data.bin')\npickle.loads(name.read_bytes())\n",
        "class SafetensorError(Exception): ...\nraise SafetensorError('Error in \"data.bin\": header too large')\n",
        "raise RuntimeError('Error(s) in loading state_dict for Net:')\n",
    ],
    ids=["open", "in the line", "named", "quoted", "manifest"],
)
def test_weights_are_found_by_what_the_code_had_in_hand(loaded: Loader, source: str) -> None:
    """An open file or a path in a variable, a name in the line or in the message, or what the manifest says."""
    manifest = {"model": {"serializedFile": "data.bin"}} if "state_dict" in source else None
    files = {"data.bin": "noise", "more.bin": "noise"}
    assert at_import(loaded, source, files, manifest=manifest) == ("bad_weights", "data.bin")


def test_weights_that_no_one_names(loaded: Loader) -> None:
    assert at_import(loaded, "import pickle\npickle.loads(b'noise')\n") == ("bad_weights", "handler.py:2")


def test_an_end_of_file_elsewhere_is_no_matter_of_weights(loaded: Loader) -> None:
    assert at_import(loaded, "raise EOFError('the peer hung up')") == ("load_error", "handler.py:1")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "; it is empty"),
        ("version https://git-lfs.github.com/spec/v1\n", "; it is a Git LFS pointer and not the file itself"),
        ("<!DOCTYPE html><title>404", "; it is an HTML page"),
    ],
)
def test_what_weights_are_instead(loaded: Loader, content: str, sentence: str) -> None:
    source = "import pickle\nwith open('data.bin', 'rb') as file:\n    pickle.load(file)\n"
    found = failure(loaded, source, {"data.bin": content})
    assert found.detail.endswith(f"data.bin cannot be read, says handler.py:3{sentence}")


def test_a_config_that_counts_as_none_is_named(loaded: Loader) -> None:
    source = "def handle(data, context):\n    context.model_yaml_config['labels']\n"
    found = failure(loaded, source, {"c.yaml": "labels: [\n"}, config_file="c.yaml")
    assert (found.reason, found.file) == ("bad_config", "c.yaml")
    assert "KeyError: 'labels'" in found.detail
    assert "\n" not in found.detail.rpartition("c.yaml cannot be read")[2]


def test_a_config_that_is_well_is_not_blamed(loaded: Loader) -> None:
    source = "def handle(data, context):\n    context.model_yaml_config['labels']\n"
    assert at_import(loaded, source, {"c.yaml": "a: 1"}, config_file="c.yaml") == ("load_error", "handler.py:2")
