"""Why a model cannot be loaded: from what its code raised to a reason, the file to look at and a sentence.

Each rule knows one kind of error and gives a Finding or None.  torch and its kin are known by name and text only, so
that a handler without torch stays without it.  The reasons are listed in docs/errors.md.
"""

from __future__ import annotations

import errno
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tserve.child.files import MANIFEST, ModelFiles, meant
from tserve.child.words import text_of, traceback_of
from tserve.domain.plan import WorkerSpec

_DETAIL_LIMIT = 16 << 10
_RUNS = "this worker runs Python " + ".".join(map(str, sys.version_info[:3]))


class LoadFailed(Exception):
    """The model cannot be loaded: `reason` is a code of docs/errors.md, `hopeless` that another try cannot help.

    `file` is the one to look at, relative to the model folder, with its line where there is one: `handler.py:12`.
    """

    def __init__(self, reason: str, detail: str, *, file: str = "", code: int = 500, hopeless: bool = False) -> None:
        detail = detail[-_DETAIL_LIMIT:]
        super().__init__(detail)
        self.reason, self.detail, self.file = reason, detail, file
        self.code, self.hopeless = code, hopeless

    def report(self) -> dict[str, Any]:
        return {
            "ok": False,
            "reason": self.reason,
            "detail": self.detail,
            "file": self.file,
            "code": self.code,
            "hopeless": self.hopeless,
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """What one error says; `sentence` is added to its traceback, `file` empty where the error came up counts."""

    reason: str
    sentence: str = ""
    file: str = ""
    code: int = 500
    hopeless: bool = True


Rule = Callable[[BaseException, str, ModelFiles], Finding | None]


def diagnose(error: BaseException, spec: WorkerSpec) -> LoadFailed:
    """What to report of an error that the model's code raised.  The first error of its chain that a rule knows counts.

    Called where it is handled, in the model folder.  May raise what code of the error's own does, such as `__class__`.
    """
    files = ModelFiles(spec)
    chain = list(_chain(error))
    detail = traceback_of(error)
    for each in chain:
        text = text_of(each)
        for rule in _RULES:
            finding = rule(each, text, files)
            if finding is not None:
                file = finding.file or files.place(each) or files.handler_file()
                detail = f"{detail}{finding.sentence}"
                return LoadFailed(finding.reason, detail, file=file, code=finding.code, hopeless=finding.hopeless)
    places = [place for each in chain if (place := files.place(each))]
    return LoadFailed("load_error", detail, file=places[-1] if places else files.handler_file())


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on; what came up while another one was handled only if it wraps it.

    It does when it was raised in the very call that caught the other one: a fallback that fails for a reason of its
    own does so further down.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        cause = current.__cause__
        if cause is None and not current.__suppress_context__ and _wraps(current, current.__context__):
            cause = current.__context__
        current = cause


def _wraps(outer: BaseException, inner: BaseException | None) -> bool:
    if inner is None:
        return False
    frames = [frame for frame, _ in traceback.walk_tb(outer.__traceback__)]
    return bool(frames) and any(frame is frames[-1] for frame, _ in traceback.walk_tb(inner.__traceback__))


# -- the process


def _exit(error: BaseException, text: str, files: ModelFiles) -> Finding | None:
    if not isinstance(error, SystemExit):
        return None
    code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    where = files.place(error)
    sentence = f"the model's code ended the process with exit code {code}{where and f' at {where}'}"
    return Finding("exited", sentence, hopeless=False)


def _memory(error: BaseException, text: str, files: ModelFiles) -> Finding | None:
    full = "can't allocate memory", "annot allocate memory", "out of memory", "failed to map segment from shared object"
    kinds = (RuntimeError, ImportError)
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, kinds) and any(words in text for words in full))
    ):
        return Finding("out_of_memory", code=507, hopeless=False)
    if isinstance(error, RuntimeError) and "CUDA" in text:  # 507 is recorded (spec/inference.md section 10)
        return Finding("gpu_error", code=507, hopeless=False)
    return None


# -- the code

_PYTHON_2 = ("Missing parentheses in call to", "multiple exception types must be parenthesized", "leading zeros in ")
_NEWER = (((3, 12), re.compile(r"\s*(type\s+\w+.*=|(async\s+)?def\s+\w+\s*\[|class\s+\w+\s*\[)")),)
# Modules that were part of Python, and up to which version.
_GONE = {
    "2.7": "__builtin__ cPickle commands ConfigParser cStringIO httplib Queue StringIO urllib2 urlparse",
    "3.11": "asynchat asyncore distutils imp smtpd",
    "3.12": "aifc audioop cgi cgitb chunk crypt imghdr lib2to3 mailcap nntplib pipes sndhdr sunau telnetlib uu xdrlib",
}


def _syntax(error: BaseException, text: str, files: ModelFiles) -> Finding | None:
    nulls = isinstance(error, (SyntaxError, ValueError)) and "null bytes" in text
    name = _file_with_nulls(files) if nulls else files.name_of(getattr(error, "filename", None))
    if not isinstance(error, SyntaxError) and not (nulls and name):
        return None
    if not files.has(name):  # of a text that the code itself had parsed
        return None
    said = error.msg if isinstance(error, SyntaxError) else text
    line = getattr(error, "lineno", None)
    file = f"{name}:{line}" if line else name
    if said.startswith(_PYTHON_2):
        return Finding("wrong_python", f"{file} is written for Python 2; {_RUNS}", file)
    source = getattr(error, "text", None) or ""
    for version, pattern in _NEWER:
        if sys.version_info < version and pattern.match(source):
            needed = ".".join(map(str, version))
            return Finding("wrong_python", f"{file} is written for Python {needed} or newer; {_RUNS}", file)
    return Finding("syntax_error", f"{file} is not valid Python: {said} ({_RUNS})", file)


def _file_with_nulls(files: ModelFiles) -> str:
    """Python does not say which file it was."""
    return next((name for name in files.names() if name.endswith(".py") and b"\0" in files.start_of(name)), "")


def _import(error: BaseException, text: str, files: ModelFiles) -> Finding | None:
    if not isinstance(error, ImportError):
        return None
    binary = files.name_of(error.path)
    if "bad magic number" in text or re.search(r"undefined symbol: _?Py", text):
        return Finding("wrong_python", f"{binary or 'a module'} is compiled for another Python; {_RUNS}", binary)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing_module(error.name, files.place(error) or files.handler_file(), files)
    return Finding("import_error", file="" if binary.endswith(".py") else binary)


def _missing_module(name: str, place: str, files: ModelFiles) -> Finding:
    top = name.partition(".")[0]
    modules = files.modules()
    compiled = next((each for each in files.names() if re.match(rf"{re.escape(top)}\..*\b(so|pyd|pyc)$", each)), None)
    if compiled is not None:
        return Finding("wrong_python", f"{compiled} is compiled for another Python; {_RUNS}", compiled)
    if top in {module.partition(".")[0] for module in modules}:
        return Finding(
            "import_error", f"{place} imports {name!r}, which the archive does not have{meant(name, modules)}"
        )
    if top != name and _is_installed(top):
        return Finding("import_error", f"{place} imports {name!r}, which the installed {top!r} does not have")
    for last, gone in _GONE.items():
        if top in gone.split():
            return Finding("wrong_python", f"{place} imports {name!r}, which Python had up to {last}; {_RUNS}")
    if meant(name, modules):
        return Finding("import_error", f"{place} imports {name!r}, which is not there{meant(name, modules)}")
    need = f"{place or 'the model'} needs the module {top!r}, which is neither in the archive nor installed"
    return Finding("missing_requirement", need + _about_requirements(top, files))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):  # of a module that user code put there itself
        return module in sys.modules


def _about_requirements(module: str, files: ModelFiles) -> str:
    name = next((name for name in (files.named("requirementsFile"), "requirements.txt") if files.has(name)), None)
    if name is None:
        return ""
    lines = files.start_of(name, 1 << 20).decode("utf-8", "replace").splitlines()
    packages = {re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0].lower().replace("-", "_") for line in lines}
    lists_it = module.lower().replace("-", "_") in packages
    if files.installed:
        return f"; {name} {'lists it and' if lists_it else 'does not list it, and'} is installed"
    return f"; {name} {'lists it but is' if lists_it else 'is'} not installed, since install_py_dep_per_model is off"


# -- the files


def _missing_file(error: BaseException, text: str, files: ModelFiles) -> Finding | None:
    name = ""
    if isinstance(error, FileNotFoundError):
        quoted = re.search(r"No such file or directory: ['\"]?(.+?)['\"]?$", text)
        name = files.name_of(error.filename or (quoted and quoted[1]))
        frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        if Path(frames[-1] if frames else "").name == "subprocess.py":  # a program, which is no business of the archive
            name = ""
    elif isinstance(error, ValueError) and (quoted := re.match(r"The provided filename (.+) does not exist", text)):
        name = files.name_of(quoted[1])
    elif isinstance(error, RuntimeError):
        return _missing_by_base_handler(text, files)
    if not name or files.has(name):
        return None
    where = files.place(error)
    sentence = f"{name!r} is missing{where and f', which {where} asks for'}; {files.contents()}"
    return Finding("missing_file", sentence + meant(name, files.names()), name)


def _missing_by_base_handler(text: str, files: ModelFiles) -> Finding | None:
    """Its sentences say all there is to say (ts/torch_handler/base_handler.py)."""
    if text.startswith("Missing the model.py file"):
        return Finding("missing_file", file=files.named("modelFile"))
    if text.startswith("No model weights could be loaded: the manifest's serializedFile is "):
        return Finding("missing_file", file=files.named("serializedFile"))
    if text.startswith(
        ("No model weights could be loaded: the archive has", "No model weights could be loaded: the manifest names")
    ):
        return Finding("missing_file", file=MANIFEST)
    return None


def _model_file(error: BaseException, text: str, files: ModelFiles) -> Finding | None:
    known = "Expected only one class as model definition.", "The model file "
    if isinstance(error, (ValueError, RuntimeError)) and text.startswith(known):
        return Finding("bad_model_file", file=files.named("modelFile"))
    return None


_WEIGHT_TYPES = ("UnpicklingError", "SafetensorError", "InvalidProtobuf", "InvalidGraph", "BadZipFile")
_WEIGHT_TEXTS = re.compile(
    r"No model weights could be loaded|PytorchStreamReader failed|Error\(s\) in loading state_dict|size mismatch for |"
    r"The weights of .* do not fit |Invalid magic number; corrupt file|unexpected EOF|unsupported pickle protocol|"
    r"Expected state_dict to be dict-like|Ran out of input|contains pickled \(object\) data|"
    r"Can't get attribute .* on <module"
)
_MISFIT = re.compile(r"loading state_dict|size mismatch for |do not fit |dict-like")
_READING_WEIGHTS = ("serialization.py", "_weights_only_unpickler.py", "_npyio_impl.py", "pickle.py")


def _weights(error: BaseException, text: str, files: ModelFiles) -> Finding | None:
    frames = [Path(frame.f_code.co_filename).name for frame, _ in traceback.walk_tb(error.__traceback__)]
    ended = isinstance(error, EOFError) and bool(frames) and frames[-1] in _READING_WEIGHTS
    if not (type(error).__name__ in _WEIGHT_TYPES or ended or _WEIGHT_TEXTS.search(text)):
        return None
    named = files.named("serializedFile")
    file = files.quoted_in(text) or files.in_hand(error) or (named if files.has(named) else "")
    where = files.place(error)
    fault = "does not fit the model" if _MISFIT.search(text) else "cannot be read"
    sentence = f"{file or 'a file'} {fault}{where and f', says {where}'}{_looks_like(file, files)}"
    return Finding("bad_weights", sentence, file)


def _looks_like(file: str, files: ModelFiles) -> str:
    start = files.start_of(file, 64).lstrip().lower() if file else b"?"
    if not start:
        return "; it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "; it is a Git LFS pointer and not the file itself"
    if start.startswith((b"<!doctype", b"<html")):
        return "; it is an HTML page"
    return ""


_RULES: tuple[Rule, ...] = (_exit, _memory, _syntax, _import, _missing_file, _model_file, _weights)
