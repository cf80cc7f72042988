"""Finding and loading a handler (spec/inference.md section 10)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ts.context import RequestProcessor
from tserve.child.diagnosis import LoadFailed
from tserve.child.loader import Model
from tserve.domain.stack import innermost

Loader = Callable[..., Model]

FUNCTION = """
seen = []

def handle(data, context):
    seen.append(data)
    return None if data is None else [f"function of {context.model_name}" for _ in data]

def other(data, context):
    return None if data is None else ["other" for _ in data]

not_callable = 7
"""
CLASS = """
from collections import OrderedDict  # an imported class does not count

class Handler:
    def __init__(self):
        self.seen = []

    def initialize(self, context):
        self.seen.append(context.manifest)

    def handle(self, data, context):
        return [f"class that saw {self.seen}" for _ in data]
"""
NET = """
import torch

class Net(torch.nn.Module):
    def forward(self, x):
        return x.sum(dim=1, keepdim=True)
"""


def said(model: Model) -> Any:
    return model.entry([{"body": b""}], model.context)


def refusal(loaded: Loader, handler: str, files: dict[str, str], **fields: object) -> LoadFailed:
    with pytest.raises(LoadFailed) as caught:
        loaded(handler, files, **fields)
    assert caught.value.report() == {
        "ok": False,
        "reason": caught.value.reason,
        "detail": caught.value.detail,
        "file": caught.value.file,
        "code": caught.value.code,
        "hopeless": caught.value.hopeless,
    }
    return caught.value


# -- entry points


@pytest.mark.parametrize("handler", ["handler", "handler.py", "handler:handle", "some/dir/handler.py:handle"])
def test_function(loaded: Loader, handler: str) -> None:
    model = loaded(handler, {"handler.py": FUNCTION})
    assert said(model) == ["function of m"]
    assert sys.modules["handler"].seen[0] is None, "called once with None, to initialize"


@pytest.mark.parametrize("handler", ["handler.py:other", "/some/dir/handler.py:other", "dir/handler:other"])
def test_named_function(loaded: Loader, handler: str) -> None:
    assert said(loaded(handler, {"handler.py": FUNCTION})) == ["other"]


def test_class(loaded: Loader) -> None:
    model = loaded("handler.py", {"handler.py": CLASS}, manifest={"model": {"a": 1}})
    assert said(model) == ["class that saw [{'model': {'a': 1}}]"]
    assert said(model) == ["class that saw [{'model': {'a': 1}}]"], "initialized once"


@pytest.mark.parametrize("handler", ["handler.py:missing", "handler.py:not_callable", "handler.py:"])
def test_a_missing_function_falls_back_to_the_class(loaded: Loader, handler: str) -> None:
    assert said(loaded(handler, {"handler.py": CLASS + "\nnot_callable = 7\n"})) == ["class that saw [None]"]


def test_a_class_may_do_without_initialize(loaded: Loader) -> None:
    source = "class Handler:\n    def handle(self, data, context):\n        return ['bare']\n"
    assert said(loaded("handler.py", {"handler.py": source})) == ["bare"]


def test_a_module_in_a_package(loaded: Loader) -> None:
    assert said(loaded("pkg.handler", {"pkg/__init__.py": "", "pkg/handler.py": FUNCTION})) == ["function of m"]


def test_a_stock_handler_by_its_name_alone(loaded: Loader) -> None:
    """No such file in the archive: it is looked for in ts.torch_handler."""
    model = loaded("base_handler", {"net.py": NET}, manifest={"model": {"modelFile": "net.py"}})
    model.context.request_processor = [RequestProcessor({})]
    assert model.entry([[1.0, 2.0]], model.context) == [[3.0]]


def test_a_file_of_the_archive_beats_a_stock_handler(loaded: Loader) -> None:
    assert said(loaded("base_handler", {"base_handler.py": FUNCTION})) == ["function of m"]


# -- what the handler finds


def test_surroundings(loaded: Loader, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/inherited")
    source = """
import os, subprocess, sys
import beside

def handle(data, context):
    child = subprocess.run([sys.executable, "-c", "import beside; print(beside.NAME)"], capture_output=True, text=True)
    return [os.getcwd(), sys.path[0], os.environ["PYTHONPATH"], beside.NAME, child.stdout.strip()]
"""
    model = loaded("handler.py", {"handler.py": source, "beside.py": "NAME = 'beside'"})
    folder = str(model_dir)
    assert said(model) == [folder, folder, f"/inherited{os.pathsep}{folder}", "beside", "beside"]


def test_context(loaded: Loader, model_dir: Path) -> None:
    yaml = "handler:\n  words: [a, b]\nminWorkers: 1\n"
    context = loaded(
        "handler.py",
        {"handler.py": FUNCTION, "model-config.yaml": yaml},
        manifest={"createdOn": "x"},
        config_file="model-config.yaml",
        limit_max_image_pixels=False,
    ).context
    assert (context.model_name, context.manifest) == ("m", {"createdOn": "x"})
    assert context.model_yaml_config == {"handler": {"words": ["a", "b"]}, "minWorkers": 1}
    assert context.system_properties["model_dir"] == str(model_dir)
    assert context.system_properties["batch_size"] == 4
    assert context.system_properties["gpu_id"] is None
    assert context.system_properties["limit_max_image_pixels"] is False


@pytest.mark.parametrize("yaml", [None, "a: [", "a: \x00", "\ttabs: no"])
def test_a_yaml_that_cannot_be_read_counts_as_none(
    loaded: Loader, yaml: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"handler.py": FUNCTION} | ({"c.yaml": yaml} if yaml is not None else {})
    assert loaded("handler.py", files, config_file="c.yaml").context.model_yaml_config == {}
    assert "Failed to read c.yaml" in capsys.readouterr().err


def test_no_manifest_and_no_yaml(loaded: Loader) -> None:
    context = loaded("handler.py", {"handler.py": FUNCTION}).context
    assert (context.manifest, context.model_yaml_config) == (None, {})


# -- refusals


def test_two_classes(loaded: Loader) -> None:
    source = "class One:\n    pass\nclass Two:\n    pass\n"
    failure = refusal(loaded, "handler.py:fn", {"handler.py": source})
    assert (failure.reason, failure.hopeless) == ("handler_not_found", True)
    assert failure.detail == (
        "handler 'handler.py:fn': expected a function entry point or exactly one class, found One, Two"
    )


def test_neither_function_nor_class(loaded: Loader) -> None:
    failure = refusal(loaded, "handler.py", {"handler.py": "from collections import OrderedDict\n"})
    assert (failure.reason, failure.hopeless) == ("handler_not_found", True)
    assert failure.detail.endswith("exactly one class, found none")


def test_a_class_without_handle(loaded: Loader) -> None:
    failure = refusal(loaded, "handler.py", {"handler.py": "class Handler:\n    handle = 3\n"})
    assert (failure.reason, failure.hopeless) == ("handler_not_found", True)
    assert "class Handler" in failure.detail


@pytest.mark.parametrize("handler", ["missing", "missing.py:handle", "no.such.package"])
def test_no_such_module(loaded: Loader, handler: str) -> None:
    failure = refusal(loaded, handler, {"b.py": "", "a.py": "", "notes.txt": ""})
    assert (failure.reason, failure.hopeless) == ("handler_not_found", True)
    assert repr(handler) in failure.detail
    assert failure.detail.endswith("the archive has a, b")


@pytest.mark.parametrize("handler", ["", ":handle", "dir/", ".py"])
def test_a_handler_that_names_no_module(loaded: Loader, handler: str) -> None:
    failure = refusal(loaded, handler, {})
    assert (failure.reason, failure.hopeless) == ("handler_not_found", True)


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("import handler.part", "No module named 'handler.part'"),
        ("from collections import NoSuchThing", "cannot import name 'NoSuchThing'"),
        ("raise ModuleNotFoundError('of my own')", "of my own"),
    ],
)
def test_an_import_error_in_user_code_is_named(
    loaded: Loader, source: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not taken for a missing handler: the traceback shows the line."""
    failure = refusal(loaded, "handler.py", {"handler.py": source})
    assert (failure.reason, failure.hopeless, failure.code) == ("import_error", True, 500)
    printed = capsys.readouterr().err
    for text in (missing, source, "handler.py"):
        assert text in failure.detail
        assert text in printed


def test_an_import_error_while_initializing(loaded: Loader) -> None:
    source = "def handle(data, context):\n    import not_installed\n"
    failure = refusal(loaded, "handler.py", {"handler.py": source})
    assert (failure.reason, failure.file) == ("missing_requirement", "handler.py:2")


def test_syntax_error(loaded: Loader) -> None:
    failure = refusal(loaded, "handler.py", {"handler.py": "def handle(data, context):\n    return data +\n"})
    assert (failure.reason, failure.hopeless) == ("syntax_error", True)
    assert "return data +" in failure.detail
    assert "handler.py" in failure.detail


@pytest.mark.parametrize(
    ("raised", "reason", "code"),
    [
        ("RuntimeError('no weights')", "load_error", 500),
        ("ValueError('CUDA is a word')", "load_error", 500),
        ("RuntimeError('CUDA error: out of memory')", "out_of_memory", 507),
        ("RuntimeError('CUDA error: device-side assert')", "gpu_error", 507),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", "out_of_memory", 507),
        ("OSError(12, 'Cannot allocate memory')", "out_of_memory", 507),
        ("ConnectionRefusedError('no registry')", "load_error", 500),
        ("RecursionError()", "load_error", 500),
        ("MemoryError()", "out_of_memory", 507),
        ("Exception()", "load_error", 500),
    ],
)
def test_what_initializing_raises(loaded: Loader, raised: str, reason: str, code: int) -> None:
    source = f"class Handler:\n    def initialize(self, c):\n        raise {raised}\n    def handle(self, d, c): ...\n"
    failure = refusal(loaded, "handler.py", {"handler.py": source})
    assert (failure.reason, failure.code, failure.hopeless) == (reason, code, False)
    assert failure.file == "handler.py:3"
    assert f"raise {raised}" in failure.detail


@pytest.mark.parametrize(("said", "code"), [("3", 3), ("", 0), ("None", 0), ("'no licence'", 1)])
def test_an_exit_while_loading(loaded: Loader, said: str, code: int) -> None:
    failure = refusal(loaded, "handler.py", {"handler.py": f"import sys\nsys.exit({said})"})
    assert (failure.reason, failure.file, failure.hopeless) == ("exited", "handler.py:2", False)
    assert failure.detail.endswith(f"exit code {code} at handler.py:2")


def test_an_end_behind_pythons_back_says_where(
    loaded: Loader, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    loaded("handler.py", {"handler.py": "import os\n\ndef handle(data, context):\n    os._exit(4)\n"})
    assert left == [4]
    printed = capfd.readouterr().err
    assert printed.startswith("os._exit(4) while the model is loaded")
    assert innermost(printed, str(Path.cwd())) == "handler.py:4"
    os._exit(5)
    assert capfd.readouterr().err == "", "not after the load"


def test_what_the_handler_forks_may_end_without_a_word(loaded: Loader, capfd: pytest.CaptureFixture[str]) -> None:
    source = "import os\n\ndef handle(data, context):\n    pid = os.fork() or os._exit(0)\n    os.waitpid(pid, 0)\n"
    loaded("handler.py", {"handler.py": source})
    assert capfd.readouterr().err == ""


def test_a_runtime_that_is_not_served(loaded: Loader) -> None:
    failure = refusal(loaded, "handler.py", {"handler.py": FUNCTION}, runtime="LSP")
    assert (failure.reason, failure.hopeless) == ("unsupported_runtime", True)
    assert failure.file == "MAR-INF/MANIFEST.json"


def test_a_long_traceback_is_cut_at_its_front(loaded: Loader) -> None:
    """The error itself stands at the end."""
    failure = refusal(loaded, "handler.py", {"handler.py": "raise ValueError('x' * 50_000 + ' the point')"})
    assert len(failure.detail) == 16 << 10
    assert failure.detail.rstrip().endswith("the point")
