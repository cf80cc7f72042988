"""What a handler may do that it should not, and what its clients are to be told: the table of test_hostile_handlers."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Misdeed:
    """`code` runs in the handler with `i`, the place of the request; what it sets `result` to is returned for that.

    `status` and `message` are the answer's, `detail` is in what the answer says beside it; `dies` that the process
    ends.  `all_of_it` that the neighbours in its batch share its fate, as the contract has it.
    """

    code: str
    status: int = 200
    message: str = ""
    detail: str = ""
    dies: bool = False
    all_of_it: bool = False


def raises(error: str, detail: str, *, status: int = 503, message: str = "Prediction failed") -> Misdeed:
    return Misdeed(f"raise {error}", status, message, detail, all_of_it=True)


def unencodable(value: str, detail: str) -> Misdeed:
    return Misdeed(f"result = {value}", 503, "Unsupported model output data type.", detail)


def deadly(code: str, detail: str, *, status: int = 500) -> Misdeed:
    return Misdeed(code, status, "Worker died.", detail, dies=True, all_of_it=True)


SLEEP = "617.25"  # seconds, of the processes that are left behind
MISDEEDS = {
    # what ends its process, before anything is left behind that would keep it from ending
    "exits": deadly("sys.exit(3)", "exit code 3"),
    "exits behind Python's back": deadly("os._exit(13)", "exit code 13"),
    "aborts": deadly("os.abort()", "SIGABRT"),
    "kills itself": deadly("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    "crashes": deadly("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "leaves while it is encoded": deadly("result = Leaving(a=1)", "exit code 7"),
    "closes its socket": deadly("os.closerange(3, 64)", ""),
    # what it prints
    "prints a lot": Misdeed("print('x' * 100_000)\nfor _ in range(5000): print('line')"),
    "prints binary": Misdeed("os.write(1, bytes(range(256)) * 100); os.write(2, b'\\xff\\x00no end')"),
    "prints metrics of its own": Misdeed("print('[METRICS]x.Count:1|#Level:Host|#hostname:h,1'); print('[METRICS]')"),
    # what it does to its process
    "changes the folder": Misdeed("os.chdir('/')"),
    "removes its folder": Misdeed("d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)"),
    "closes descriptors": Misdeed("os.close(0); os.close(1); os.close(2)"),
    "closes descriptors by range": Misdeed("os.closerange(0, 3)"),
    "closes its output": Misdeed("sys.stdout.close(); sys.stderr.close()"),
    "replaces its output": Misdeed("sys.stdout = None; sys.stderr = open(os.devnull, 'w')"),
    "gives descriptor 1 to a file": Misdeed("os.close(1); tempfile.TemporaryFile()"),
    "ignores signals": Misdeed(
        "for s in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD): signal.signal(s, signal.SIG_IGN)"
    ),
    "handles signals": Misdeed(
        "signal.signal(signal.SIGTERM, lambda *_: None); signal.signal(signal.SIGALRM, lambda *_: None)"
    ),
    "leaks threads": Misdeed("for _ in range(20): threading.Thread(target=time.sleep, args=(600,)).start()"),
    "leaks a printing thread": Misdeed("threading.Thread(target=chatter, daemon=True).start()"),
    "streams later, from a thread": Misdeed(
        "threading.Thread(target=late, args=(context, dict(context.request_ids))).start()"
    ),
    "leaves a process": Misdeed(f"subprocess.Popen(['sleep', '{SLEEP}'])"),
    "forks, and the child returns": Misdeed("result = 'child' if os.fork() == 0 else 'parent'"),
    "forks, and the child stays": Misdeed("if os.fork() == 0: time.sleep(600)"),
    "forks, and the child raises": Misdeed("if os.fork() == 0: raise ValueError('in the child')"),
    "changes the environment": Misdeed("os.environ.clear(); os.umask(0o777); sys.setrecursionlimit(200)"),
    "changes the locale": Misdeed("locale.setlocale(locale.LC_ALL, 'C')"),
    "may hardly open files": Misdeed("resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"),
    "puts other functions into json": Misdeed("json.dumps = json.loads = json.JSONEncoder = json.JSONDecoder = None"),
    "puts other functions among the built-in ones": Misdeed("builtins.print = builtins.open = None"),
    "empties the search path": Misdeed("sys.path.clear(); sys.argv.clear()"),
    "runs an event loop": Misdeed("asyncio.run(asyncio.sleep(0))"),
    "leaves an alarm that nobody hears": Misdeed("signal.signal(signal.SIGALRM, signal.SIG_IGN); signal.alarm(1)"),
    "leaves an alarm": Misdeed("signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.alarm(1)"),
    # what it does to what it was given
    "empties its data": Misdeed("data[i].clear()"),
    "spoils the context": Misdeed("context.request_ids = None; context.stopping_criteria = None; context.manifest = 3"),
    "takes the metrics away": Misdeed("context.metrics = None"),
    "puts junk where its requests were": Misdeed(
        "context.request_processor = 'junk'", 503, "Prediction failed", "AttributeError", all_of_it=True
    ),
    "empties the context": Misdeed(
        "context.__dict__.clear()", 503, "Prediction failed", "AttributeError", all_of_it=True
    ),
    "sets a header that is no header": Misdeed(
        "context.set_response_header(i, 'X', 'a\\r\\nSet-Cookie: b')",
        503,
        "The handler set a header that HTTP does not",
    ),
    "sets headers without end": Misdeed(
        "for n in range(999): context.set_response_header(i, f'X-{n}', 'y' * 99)", 503, "The handler set more than"
    ),
    "sets a header of many megabytes": Misdeed(
        "context.set_response_header(i, 'X', 'y' * (70 << 20))", 503, "The handler set more than"
    ),
    "sets a header in Chinese": Misdeed(
        "context.set_response_header(i, 'X', '\u4e2d')", 503, "The handler set a header that HTTP does not"
    ),
    "sets what is the server's": Misdeed(
        "for name in ('Content-Length', 'Transfer-Encoding', 'Connection', 'x-request-id'):\n"
        "    context.set_response_header(i, name, '1')"
    ),
    "sets a header that is no text": Misdeed(
        "context.set_response_header(i, 'X', 3)", 503, "Prediction failed", "needs str", all_of_it=True
    ),
    "sets a status out of range": Misdeed(
        "context.set_response_status(1000, '', i)", 503, "The handler set a status that HTTP does not allow: 1000"
    ),
    "sets a status far out of range": Misdeed(
        "context.set_response_status(1e9, '', i)", 503, "The handler set a status that HTTP does not allow: 1000000000"
    ),
    "sets a phrase of two lines": Misdeed("context.set_response_status(200, 'fine\\r\\nX: y', i)"),
    "sets a negative status": Misdeed(
        "context.set_response_status(-1, '', i)", 503, "The handler set a status that HTTP does not allow: -1"
    ),
    "sets a status beyond all numbers": Misdeed(
        "context.set_response_status(10**40, '', i)", 503, "Unsupported model output data type.", "no HTTP status"
    ),
    "sets a status that is text": Misdeed(
        "context.set_response_status('teapot', '', i)", 503, "Unsupported model output data type.", "teapot"
    ),
    # what it raises
    "raises": raises("ValueError('of its own')", "ValueError: of its own"),
    "raises what cannot be shown": raises("Unspeakable()", "Unspeakable"),
    "raises many": raises("ExceptionGroup('two', [ValueError('a'), KeyError('b')])", "two"),
    "raises StopIteration": raises("StopIteration('end')", "StopIteration"),
    "raises KeyboardInterrupt": raises("KeyboardInterrupt", "KeyboardInterrupt"),
    "raises GeneratorExit": raises("GeneratorExit", "GeneratorExit"),
    "is cancelled": raises("asyncio.CancelledError", "CancelledError"),
    "panics": raises("Panic('in Rust')", "Panic: in Rust"),
    "raises what has no face": raises("FacelessError()", "FacelessError"),
    "recurses for ever": Misdeed("forever(0)", 503, "Prediction failed", "RecursionError", all_of_it=True),
    "runs out of memory": raises("MemoryError('pretended')", "MemoryError", status=507, message="Out of resources"),
    "runs out of GPU memory": raises("RuntimeError('CUDA out')", "CUDA out", status=507, message="Out of resources"),
    "refuses": raises("PredictionException('not this one', 422)", "not this one", status=422, message="not this one"),
    "refuses without a word": raises("Wordless('a')", "Wordless", status=500, message=""),
    "refuses one": Misdeed("result = PredictionException('not this one', 422)", 422, "not this one", "not this one"),
    # what it returns
    "returns a set": unencodable("{1, 2}", "set"),
    "returns an object": unencodable("object()", "object"),
    "returns bytes in a dict": unencodable("{'a': b'x'}", "bytes"),
    "returns a circle": unencodable("circle()", "Circular"),
    "returns half a character": unencodable("'\\ud800'", "surrogates"),
    "returns what fails to be read": unencodable("Explosive(a=1)", "boom"),
    "returns what panics": unencodable("Explosive(b=1)", "in Rust"),
    "returns a proxy of nothing": unencodable("weakref.proxy(Explosive())", "weakly-referenced object"),
    "returns a text that encodes itself": Misdeed("result = Text('done')"),
    "returns too much": Misdeed(
        "result = 'x' * 200_001", 500, "Response of 200001 bytes is larger than max_response_size"
    ),
    "returns nothing": Misdeed("whole = None", 503, "Invalid model predict output", "NoneType", all_of_it=True),
    "returns a generator": Misdeed(
        "whole = (r for r in 'ab')", 503, "Invalid model predict output", "generator", all_of_it=True
    ),
    "returns a dict": Misdeed("whole = {'a': 1}", 503, "Invalid model predict output", "dict", all_of_it=True),
    "returns a list without a length": Misdeed(
        "whole = Endless()", 503, "Prediction failed", "no length", all_of_it=True
    ),
    "returns nothing but a proxy of nothing": Misdeed(
        "whole = weakref.proxy(Explosive())", 503, "Prediction failed", "ReferenceError", all_of_it=True
    ),
    "returns too few": Misdeed(
        "whole = []", 503, "number of batch response mismatched", "0 answers for", all_of_it=True
    ),
    "returns too many": Misdeed(
        "whole = ['a'] * 9", 503, "number of batch response mismatched", "9 answers for", all_of_it=True
    ),
}

_HANDLER = """
import asyncio, builtins, json, locale, os, resource, signal, subprocess, sys, tempfile, threading, time, weakref
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException

class Unspeakable(Exception):
    def __str__(self): raise ValueError
    __repr__ = __str__

class Panic(BaseException): pass

class FacelessError(Exception):
    @property
    def __class__(self): raise RuntimeError("no face")

class Wordless(PredictionException):
    @property
    def message(self): raise RuntimeError("no word")
    @message.setter
    def message(self, message): pass

class Explosive(dict):
    def items(self): raise RuntimeError("boom") if "a" in self else Panic("in Rust")

class Endless(list):
    def __len__(self): raise RuntimeError("no length")

class Text(str):
    def encode(self, *args): return self

class Leaving(dict):
    def items(self): sys.exit(7)

def circle():
    ring = []
    ring.append(ring)
    return ring

def forever(n):
    return forever(n + 1) + 1

def chatter():
    for _ in range(1000):
        print("chatter")
        time.sleep(0.001)

def late(context, request_ids):
    time.sleep(0.02)
    try:
        send_intermediate_predict_response(["late"] * len(request_ids), request_ids, "", 200, context)
    except Exception as error:
        os.write(1, f"refused: {{error}}\\n".encode())

MISDEEDS = {misdeeds!r}
FOLDER = os.getcwd()

def handle(data, context):
    if data is None:
        return None
    sound = os.getcwd() == FOLDER and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    out, whole = [], out_of_use
    for i in range(len(data)):
        word = data[i].get("body")
        word = word["do"] if isinstance(word, dict) else None
        scope = dict(globals(), data=data, context=context, i=i, result="done", whole=out_of_use)
        if word is None:
            scope["result"] = {{"pid": os.getpid(), "sound": sound, "size": len(data)}}
        else:
            exec(MISDEEDS[word], scope)
        out.append(scope["result"])
        whole = scope["whole"] if scope["whole"] is not out_of_use else whole
    return out if whole is out_of_use else whole

out_of_use = object()
"""


def handler() -> str:
    """A module whose `handle` does to each request what its JSON asks for by name; bytes ask for a sound answer."""
    return _HANDLER.format(misdeeds={name: textwrap.dedent(misdeed.code) for name, misdeed in MISDEEDS.items()})
