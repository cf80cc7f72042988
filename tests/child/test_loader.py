"""Finding and loading a handler (spec/inference.md section 10)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tserve
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
SHOWS_DATA = """
seen = []

def handle(data, context):
    seen.append(data)
    return None if data is None else [data for _ in data]
"""
NET = """
import torch

class Net(torch.nn.Module):
    def forward(self, x):
        return x.sum(dim=1, keepdim=True)
"""


@pytest.fixture
def forget() -> Iterator[None]:
    """Modules that are no files of the model are forgotten after the test, too."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in ("handler", "base_handler") or name.startswith("outside_"):
            del sys.modules[name]


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
    assert said(model) == [folder, folder, pythonpath("/inherited", folder), "beside", "beside"]


def pythonpath(*folders: str) -> str:
    """With the folder of tserve, too, unless that is one of installed packages."""
    home = Path(tserve.__file__).parents[1]
    return os.pathsep.join([*folders, *([] if home.name.endswith("-packages") else [str(home)])])


def test_what_it_starts_finds_the_modules_for_handlers(loaded: Loader) -> None:
    source = """
import subprocess, sys

def handle(data, context):
    code = "import ts.context; print(ts.context.Context.__name__)"
    return [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/").stdout.strip()]
"""
    assert said(loaded("handler.py", {"handler.py": source})) == ["Context"]


@pytest.mark.parametrize("decode", [True, False])
def test_variables(loaded: Loader, decode: bool) -> None:
    source = "import os\nSEEN = dict(os.environ)\n" + FUNCTION
    loaded("handler.py", {"handler.py": source}, decode_input=decode)
    seen = sys.modules["handler"].SEEN
    assert seen["TS_DECODE_INPUT_REQUEST"] == str(decode).lower()
    assert (seen["TS_IPEX_ENABLE"], seen["TS_IPEX_GPU_ENABLE"]) == ("false", "false")


# -- handlers outside the archive


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the server's PYTHONPATH."""
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))  # as an interpreter has it from its start
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that nobody has heard of."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def speaks(word: str) -> str:
    return f"def fn(data, context):\n    return None if data is None else ['{word}' for _ in data]\nhandle = fn\n"


@pytest.mark.parametrize("handler", ["outside_a", "outside_a.py", "outside_a:fn", "outside_a.py:fn"])
def test_a_handler_of_the_pythonpath(loaded: Loader, outside: Path, handler: str, forget: None) -> None:
    (outside / "outside_a.py").write_text(speaks("outside"))
    assert said(loaded(handler, {"beside.py": ""})) == ["outside"]


def test_a_package_of_the_pythonpath(loaded: Loader, outside: Path, forget: None) -> None:
    (outside / "outside_b").mkdir()
    (outside / "outside_b" / "part.py").write_text(speaks("part"))
    assert said(loaded("outside_b.part:fn")) == ["part"]


def test_the_archive_beats_the_pythonpath_which_beats_the_stock_handlers(
    loaded: Loader, outside: Path, forget: None
) -> None:
    (outside / "handler.py").write_text(speaks("outside"))
    (outside / "base_handler.py").write_text(speaks("outside"))
    assert said(loaded("handler:fn", {"handler.py": speaks("archive")})) == ["archive"]
    assert said(loaded("base_handler:fn")) == ["outside"]


def test_a_folder_of_the_pythonpath_that_came_late(
    loaded: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: None
) -> None:
    """The interpreter that workers are forked from has looked for it in vain."""
    late = tmp_path / "late"
    monkeypatch.setattr(sys, "path", [str(late), *sys.path])
    with pytest.raises(ModuleNotFoundError):
        __import__("outside_late")
    late.mkdir()
    (late / "outside_late.py").write_text(speaks("late"))
    assert said(loaded("outside_late:fn")) == ["late"]


def test_a_folder_named_with_a_function(loaded: Loader, elsewhere: Path, outside: Path, forget: None) -> None:
    """It comes first in what the handler's own processes see (section 16.2)."""
    (elsewhere / "outside_c.py").write_text("import os\nSEEN = os.environ['PYTHONPATH']\n" + speaks("elsewhere"))
    model = loaded(f"{elsewhere}/outside_c.py:fn")
    assert said(model) == ["elsewhere"]
    folder = model.context.system_properties["model_dir"]
    assert pythonpath(str(elsewhere), str(outside), folder) == sys.modules["outside_c"].SEEN
    assert sys.path[:2] == [folder, str(elsewhere)]


def test_the_archive_beats_a_folder_named_with_a_function(loaded: Loader, elsewhere: Path) -> None:
    (elsewhere / "handler.py").write_text(speaks("elsewhere"))
    assert said(loaded(f"{elsewhere}/handler.py:fn", {"handler.py": speaks("archive")})) == ["archive"]


def test_a_folder_of_the_archive_named_with_a_function(loaded: Loader) -> None:
    files = {"part/outside_d.py": "def fn(data, context):\n    return data and [__file__]\n"}
    model = loaded("part/outside_d.py:fn", files)
    assert said(model) == [os.path.join(model.context.system_properties["model_dir"], "part", "outside_d.py")]  # noqa: PTH118


def test_a_folder_counts_only_with_a_function(loaded: Loader, elsewhere: Path) -> None:
    (elsewhere / "outside_e.py").write_text(speaks("elsewhere"))
    failure = refusal(loaded, f"{elsewhere}/outside_e.py", {})
    assert failure.reason == "handler_not_found"
    assert f"not in {elsewhere}: a folder counts only where a function is named" in failure.detail


def test_it_says_where_it_looked(loaded: Loader, outside: Path) -> None:
    failure = refusal(loaded, "missing:fn", {"a.py": ""})
    assert failure.detail == (
        f"no module 'missing' for handler 'missing:fn', sought in the archive, in PYTHONPATH ({outside}) and in "
        "ts.torch_handler; the archive has a"
    )


def test_a_handler_elsewhere_with_the_name_of_another_module(loaded: Loader, elsewhere: Path) -> None:
    (elsewhere / "json.py").write_text(speaks("elsewhere"))
    failure = refusal(loaded, f"{elsewhere}/json.py:fn", {})
    assert failure.reason == "handler_not_found"
    assert failure.detail == (
        f"{elsewhere}/json.py cannot be imported: there is another module 'json'; rename the handler's"
    )


def test_an_error_in_a_handler_elsewhere_is_named(loaded: Loader, elsewhere: Path) -> None:
    (elsewhere / "outside_f.py").write_text("import json, no_such_module\n")
    failure = refusal(loaded, f"{elsewhere}/outside_f.py:fn", {})
    assert failure.reason == "missing_requirement"
    assert f"{elsewhere}/outside_f.py" in failure.detail


@pytest.mark.parametrize(
    "handler", ["a\0/b.py:fn", f"/{'x' * 5000}/b.py:fn", f"{'x' * 300}/b.py:fn", "//b:fn", "/b:fn"]
)
def test_folders_that_cannot_be(loaded: Loader, handler: str) -> None:
    assert refusal(loaded, handler, {}).reason == "handler_not_found"


# -- envelopes


def test_an_envelope_is_around_requests_only(loaded: Loader) -> None:
    model = loaded("handler.py", {"handler.py": SHOWS_DATA}, envelope="body")
    assert sys.modules["handler"].seen == [None]
    model.context.request_processor = [RequestProcessor({})]
    assert model.entry([{"body": b"one"}], model.context) == [[b"one"]]


def test_an_envelope_around_a_class(loaded: Loader) -> None:
    source = "class Handler:\n    def handle(self, data, context):\n        return [repr(data)]\n"
    model = loaded("handler.py", {"handler.py": source}, envelope="body")
    model.context.request_processor = [RequestProcessor({})]
    assert model.entry([{"body": "one"}], model.context) == ["['one']"]


@pytest.mark.parametrize("name", ["json", "kserve", "kservev2"])
def test_envelopes_by_their_names(loaded: Loader, name: str) -> None:
    model = loaded("handler.py", {"handler.py": SHOWS_DATA}, envelope=name)
    assert type(model.entry.__self__).__module__ == f"ts.torch_handler.request_envelope.{name}"


@pytest.mark.parametrize("name", ["missing", "base", "rows", "body.py", "..context", "body "])
def test_no_such_envelope(loaded: Loader, name: str) -> None:
    failure = refusal(loaded, "handler.py", {"handler.py": FUNCTION}, envelope=name)
    assert (failure.reason, failure.hopeless) == ("bad_envelope", True)
    assert failure.detail.startswith(f"there is no service_envelope {name!r}, but body, json, kserve, kservev2")


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
