"""Archives that cannot be served, each with the true cause that a synchronous registration must name."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.archives import ECHO

MANIFEST = "MAR-INF/MANIFEST.json"
HANDLER = """
class Handler:
    def initialize(self, context):
        {body}

    def handle(self, data, context):
        return [""] * len(data)
"""
NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x)
"""
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
OTHER_PYTHON = b"\x03\xf3\r\n" + bytes(12)  # a compiled module of Python 2.7
NEWER_SYNTAX = "type Row = dict[str, bytes]\n" + ECHO

Content = str | bytes | Callable[[], bytes]


@dataclass(frozen=True)
class Broken:
    """What the archive is, and what its registration answers.

    `files` are those beside the manifest; `model` are further members of the manifest's model.  `where` is the `file`
    that the answer names; `says` is in its detail, and `prints` in the log tail.
    """

    name: str
    reason: str
    where: str
    says: str
    files: Mapping[str, Content]
    handler: str | None = "handler.py"
    model: Mapping[str, object] = field(default_factory=dict)
    status: int = 500
    startup_timeout: int | None = None
    prints: str = ""
    exit: str | None = None

    def write(self, store: Path) -> str:
        file = f"{self.name}.mar"
        named = {"modelName": self.name, "modelVersion": "1.0", **self.model}
        if self.handler is not None:
            named["handler"] = self.handler
        with zipfile.ZipFile(store / file, "w") as archive:
            archive.writestr(MANIFEST, json.dumps({"runtime": "python", "model": named}))
            for path, content in self.files.items():
                archive.writestr(path, content() if callable(content) else content)
        return file


def source(text: str, **others: Content) -> dict[str, Content]:
    """The handler's file, and others by name: `net_py` is net.py."""
    return {"handler.py": text} | {name.replace("_", ".", 1): content for name, content in others.items()}


def initializes(body: str, **others: Content) -> dict[str, Content]:
    """A handler whose `initialize` is `body`, which stands in line 4."""
    return source(HANDLER.format(body=body), **others)


def weights(*, layer: str = "layer", width: int = 3) -> Callable[[], bytes]:
    """A state dict with one linear layer."""

    def save() -> bytes:
        import torch

        content = io.BytesIO()
        torch.save({f"{layer}.weight": torch.zeros(1, width), f"{layer}.bias": torch.zeros(1)}, content)
        return content.getvalue()

    return save


def torches(call: str) -> dict[str, Content]:
    return initializes(f"import torch; self.model = {call}")


def stock(
    name: str,
    reason: str,
    where: str,
    says: str,
    files: Mapping[str, Content],
    *,
    model_file: str | None = "net.py",
    net: str | None = NET,
) -> Broken:
    """An archive for the stock handler: `net` in its model file, if it has one, and weights to go with that."""
    model = {"serializedFile": "model.pt"} | ({"modelFile": model_file} if model_file else {})
    code = {model_file: net} if model_file and net else {}
    return Broken(name, reason, where, says, {**code, **files}, handler="base_handler", model=model)


HANDLERS = [
    Broken("wrong-module", "handler_not_found", MANIFEST, "did you mean 'handler'?", source(ECHO), handler="handlr.py"),
    Broken("no-module-at-all", "handler_not_found", MANIFEST, "no Python modules", {"model.pt": b"x"}),
    Broken("no-handler-named", "handler_not_found", MANIFEST, "names no module", source(ECHO), handler=None),
    Broken(
        "misspelt-module-in-a-package",
        *("handler_not_found", MANIFEST, "did you mean 'serving.handler'?"),
        {"serving/__init__.py": "", "serving/handler.py": ECHO},
        handler="serving.handlr",
    ),
    Broken(
        "module-in-a-folder",
        *("handler_not_found", MANIFEST, "did you mean 'code.handler'?"),
        {"code/handler.py": ECHO},
        handler="code/handler.py",
    ),
    Broken("outside", "handler_not_found", MANIFEST, "'../../evil.py'", source(ECHO), handler="../../evil.py"),
    Broken(
        "name-of-another-module",
        *("handler_not_found", "json.py", "there is another module 'json'"),
        {"json.py": ECHO},
        handler="json.py",
    ),
    Broken(
        "misspelt-function",
        *("handler_not_found", "handler.py", "found none; did you mean 'handle'?"),
        source(ECHO),
        handler="handler.py:handel",
    ),
    Broken("not-callable", "handler_not_found", "handler.py", "'handle' is no function", source("handle = []\n")),
    Broken("two-classes", "handler_not_found", "handler.py", "found A, B", source("class A: ...\nclass B: ...\n")),
    Broken(
        "class-without-handle",
        *("handler_not_found", "handler.py", "did you mean 'handel'?"),
        source("class Handler:\n    def handel(self, data, context): ...\n"),
    ),
    Broken(
        "wrong-signature",
        *("load_error", "handler.py", "takes 1 positional argument but 2 were given"),
        source("def handle(data):\n    return data\n"),
    ),
]

IMPORTS = [
    Broken(
        "missing-requirement",
        *("missing_requirement", "handler.py:1", "handler.py:1 needs the module 'not_installed'"),
        source("import not_installed.part\n" + ECHO),
    ),
    Broken(
        "requirement-not-installed",
        *("missing_requirement", "handler.py:1", "requirements.txt lists it but is not installed"),
        source("import not_installed\n" + ECHO, requirements_txt="numpy\nnot-installed>=1.2  # it is\n"),
        model={"requirementsFile": "requirements.txt"},
    ),
    Broken(
        "requirement-when-initializing", "missing_requirement", "handler.py:4", "", initializes("import not_installed")
    ),
    Broken(
        "name-not-in-a-module",
        *("import_error", "handler.py:1", "cannot import name 'clean'"),
        source("from text import clean\n" + ECHO, text_py="def wash(): ...\n"),
    ),
    Broken(
        "misspelt-import",
        *("import_error", "handler.py:1", "did you mean 'preprocess'?"),
        source("import preproces\n" + ECHO, preprocess_py=""),
    ),
    Broken(
        "missing-part-of-a-package",
        *("import_error", "handler.py:1", "the installed 'json' does not have"),
        source("import json.fast\n" + ECHO),
    ),
    Broken(
        "relative-import",
        *("import_error", "handler.py:1", "no known parent package"),
        source("from . import net\n" + ECHO, net_py=""),
    ),
    Broken(
        "circular-import",
        *("import_error", "b.py:1", "circular import"),
        source("from a import f\n" + ECHO, a_py="from b import g\nf = 1\n", b_py="from a import f\ng = 1\n"),
    ),
    Broken(
        "broken-binary",
        *("import_error", "fast.so", "fast.so"),
        source("import fast\n" + ECHO, fast_so=b"\x7fELF but no more"),
    ),
]

SYNTAX = [
    Broken(
        "syntax-error",
        "syntax_error",
        "handler.py:2",
        "SyntaxError: invalid syntax",
        source("x = 1\ndef handle(:\n    pass\n"),
    ),
    Broken(
        "syntax-error-beside",
        *("syntax_error", "net.py:3", "net.py:3 is not valid Python"),
        source("import net\n" + ECHO, net_py="\n\ndef f()\n    pass\n"),
    ),
    Broken(
        "indentation",
        "syntax_error",
        "handler.py:2",
        "expected an indented block",
        source("def handle(a, b):\nx = 1\n"),
    ),
    Broken("tabs-and-spaces", "syntax_error", "handler.py:3", "tabs", source("def f():\n        a = 1\n\tb = 2\n")),
    Broken("null-bytes", "syntax_error", "handler.py", "null bytes", source(ECHO + "\0")),
    Broken(
        "encoding",
        "syntax_error",
        "handler.py:1",
        "can't decode byte 0xfc",
        {"handler.py": b'x = "gr\xfcn"\n' + ECHO.encode()},
    ),
    Broken("python-2", "wrong_python", "handler.py:2", "written for Python 2", source("x = 1\nprint 'hello'\n")),
    Broken("python-2-module", "wrong_python", "handler.py:1", "up to 2.7", source("import cPickle\n" + ECHO)),
    Broken(
        "newer-syntax",
        *("wrong_python", "handler.py:1", "Python 3.12 or newer; this worker runs Python 3."),
        source(NEWER_SYNTAX),
    )
    if sys.version_info < (3, 12)
    else Broken("newer-syntax", "syntax_error", "handler.py:1", "this worker runs Python 3.", source("kind Row = 1\n")),
    Broken(
        "compiled-for-another-python",
        *("wrong_python", "handler.pyc", "compiled for another Python; this worker runs Python 3."),
        {"handler.pyc": OTHER_PYTHON},
    ),
    Broken(
        "binary-of-another-python",
        *("wrong_python", "fast.cpython-36m-x86_64-linux-gnu.so", "this worker runs Python 3."),
        source("import fast\n" + ECHO) | {"fast.cpython-36m-x86_64-linux-gnu.so": b"\x7fELF"},
    ),
]

WEIGHTS = [
    stock("random-weights", "bad_weights", "model.pt", "model.pt cannot be read", {"model.pt": bytes(range(256)) * 20}),
    stock(
        "truncated-weights",
        *("bad_weights", "model.pt", "PytorchStreamReader failed"),
        {"model.pt": lambda: weights()()[:-200]},
    ),
    stock("empty-weights", "bad_weights", "model.pt", "; it is empty", {"model.pt": b""}),
    stock("weights-left-in-git-lfs", "bad_weights", "model.pt", "a Git LFS pointer", {"model.pt": LFS_POINTER}),
    stock(
        "wrong-shapes",
        *("bad_weights", "model.pt", "size mismatch for layer.weight"),
        {"model.pt": weights(width=7)},
    ),
    stock(
        "weights-of-another-class",
        *("bad_weights", "model.pt", 'Missing key(s) in state_dict: "layer.weight"'),
        {"model.pt": weights(layer="other")},
    ),
    stock(
        "no-torchscript",
        *("bad_weights", "model.pt", "is not a TorchScript file"),
        {"model.pt": weights()},
        model_file=None,
    ),
    stock("no-serialized-file", "missing_file", "model.pt", "but the model folder holds net.py", {}),
    stock("no-torchscript-file", "missing_file", "model.pt", "holds notes.txt", {"notes.txt": ""}, model_file=None),
    stock("no-model-file", "missing_file", "net.py", "Missing the model.py file", {"model.pt": weights()}, net=None),
    Broken(
        "nothing-to-load",
        *("missing_file", MANIFEST, "names no serializedFile or modelFile"),
        {"notes.txt": ""},
        handler="base_handler",
    ),
    stock(
        "no-model-class",
        *("bad_model_file", "net.py", "defines 0: none"),
        {"model.pt": weights()},
        net="import torch\n",
    ),
    stock(
        "two-model-classes",
        *("bad_model_file", "net.py", "defines 2: Net, Other"),
        {"model.pt": weights()},
        net=NET + "class Other: ...\n",
    ),
    Broken(
        "own-weights-code",
        *("bad_weights", "weights/a.pt", "says handler.py:4"),
        torches("torch.load('weights/a.pt', weights_only=True)") | {"weights/a.pt": b"noise"},
    ),
    Broken(
        "weights-behind-a-sentence",
        *("bad_weights", "labels.pkl", "labels.pkl cannot be read"),
        source(
            "import pickle\n"
            "def handle(data, context):\n"
            "    try:\n"
            "        with open('labels.pkl', 'rb') as file:\n"
            "            pickle.load(file)\n"
            "    except Exception:\n"
            "        raise RuntimeError('cannot initialize')\n",
            labels_pkl=b"noise",
        ),
    ),
    Broken(
        "gpu-only-weights",
        *("gpu_error", "handler.py:4", "CUDA"),
        initializes("raise RuntimeError('Attempting to deserialize object on a CUDA device')"),
        status=507,
    ),
]

LOADING = [
    Broken(
        "raises-in-initialize",
        *("load_error", "handler.py:4", "ValueError: no such colour"),
        initializes("raise ValueError('no such colour')"),
    ),
    Broken(
        "raises-at-import", "load_error", "handler.py:3", "ZeroDivisionError", source("x = 0\n\ny = 1 / x\n" + ECHO)
    ),
    Broken(
        "raises-in-a-module-beside",
        *("load_error", "net.py:2", "KeyError: 'size'"),
        initializes("import net; net.build({})", net_py="def build(options):\n    return options['size']\n"),
    ),
    Broken(
        "recursion",
        *("load_error", "handler.py:2", "RecursionError"),
        source("def f():\n    return f()\n\ndef handle(data, context):\n    f()\n"),
    ),
    Broken(
        "reads-a-missing-file",
        *(
            "missing_file",
            "labels.json",
            "'labels.json' is missing, which handler.py:4 asks for; the archive has handler.py",
        ),
        initializes("open('labels.json')"),
    ),
    Broken(
        "misspelt-data-file",
        *("missing_file", "data/vocab.txt", "did you mean 'data/vocabulary.txt'?"),
        initializes("open(context.system_properties['model_dir'] + '/data/vocab.txt')")
        | {"data/vocabulary.txt": "a\n"},
    ),
    Broken(
        "broken-config",
        *("bad_config", "model-config.yaml", "model-config.yaml cannot be read"),
        initializes("context.model_yaml_config['labels']") | {"model-config.yaml": "labels: [a, b\nother: {"},
        model={"configFile": "model-config.yaml"},
    ),
    Broken("exits", "exited", "handler.py:4", "exit code 3 at handler.py:4", initializes("import sys; sys.exit(3)")),
    Broken("exits-at-import", "exited", "handler.py:1", "exit code 1", source("raise SystemExit('no licence')\n")),
    Broken(
        "exits-at-once",
        *("died_loading", "handler.py:4", ""),
        initializes("import os; print('last words'); os._exit(4)"),
        prints="last words",
        exit="exit code 4",
    ),
    Broken(
        "aborts",
        *("died_loading", "handler.py:4", ""),
        initializes("import os; os.abort()"),
        prints="Fatal Python error: Aborted",
        exit="signal SIGABRT",
    ),
    Broken(
        "segmentation-fault",
        *("died_loading", "handler.py:4", ""),
        initializes("import ctypes; ctypes.string_at(0)"),
        prints="Fatal Python error: Segmentation fault",
        exit="signal SIGSEGV",
    ),
    Broken(
        "prints-and-hangs",
        *("startup_timeout", "handler.py:4", "startup_timeout, 2 s"),
        initializes("import time; print('fetching the weights'); time.sleep(3600)"),
        startup_timeout=2,
        prints="fetching the weights",
    ),
    Broken(
        "hangs-at-import",
        *("startup_timeout", "net.py:4", "startup_timeout, 2 s"),
        source(
            "import net\n" + ECHO,
            net_py="import threading\n\nlock = threading.Lock()\nlock.acquire(), lock.acquire()\n",
        ),
        startup_timeout=2,
    ),
    Broken(
        "out-of-memory",
        *("out_of_memory", "handler.py:4", "MemoryError"),
        initializes("raise MemoryError"),
        status=507,
    ),
    Broken(
        "asks-for-a-petabyte",
        *("out_of_memory", "handler.py:4", "MemoryError"),
        initializes("self.buffer = bytearray(10**15)"),
        status=507,
    ),
    Broken(
        "asks-torch-for-a-petabyte",
        *("out_of_memory", "handler.py:4", "can't allocate memory"),
        torches("torch.zeros(10**15)"),
        status=507,
    ),
]

BROKEN = [*HANDLERS, *IMPORTS, *SYNTAX, *WEIGHTS, *LOADING]


@dataclass(frozen=True)
class Refused:
    """An archive that is not taken in: its bytes, and what the answer says in its sentence and in its cause."""

    name: str
    content: Callable[[], bytes]
    status: int
    sentence: str
    reason: str
    says: str


def zipped(files: Mapping[str, str], *, cut: int | None = None) -> Callable[[], bytes]:
    def make() -> bytes:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        return content.getvalue()[:cut]

    return make


_SAVING = "Failed to save model: {name}.mar"
_PARSING = "Failed to parse signature.json."
_NAMED = json.dumps({"runtime": "python", "model": {"modelName": "m", "handler": "handler.py"}})
REFUSED = [
    Refused("truncated", zipped({MANIFEST: _NAMED, "handler.py": ECHO}, cut=-40), 500, _SAVING, "damaged", ""),
    Refused("cut-in-half", zipped({MANIFEST: _NAMED, "handler.py": ECHO}, cut=300), 500, _SAVING, "damaged", ""),
    Refused("leads-outside", zipped({"../evil.py": ECHO}), 500, _SAVING, "unsafe_entry", "../evil.py"),
    Refused(
        "no-json", zipped({MANIFEST: _NAMED[:-1]}), 400, _PARSING, "bad_manifest", "MANIFEST.json cannot be parsed"
    ),
    Refused(
        "manifest-of-another-form",
        zipped({MANIFEST: '{"model": []}'}),
        *(400, _PARSING, "bad_manifest", "model is not an object"),
    ),
    Refused(
        "handler-is-no-text",
        zipped({MANIFEST: '{"model": {"modelName": "m", "handler": ["handler.py"]}}'}),
        *(400, _PARSING, "bad_manifest", "model.handler is not a text"),
    ),
    Refused("no-name", zipped({"handler.py": ECHO}), 400, "Model name is not defined.", "no_model_name", ""),
]
