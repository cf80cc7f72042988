"""Streaming, text and large-model functions of `ts.handler_utils` (spec/inference.md sections 6 and 15)."""

from __future__ import annotations

import importlib.util
import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ts.context import Context
from ts.handler_utils.distributed.deepspeed import get_ds_engine
from ts.handler_utils.distributed.pt_pippy import get_pipeline_driver
from ts.handler_utils.hf_batch_streamer import TextIteratorStreamerBatch
from ts.handler_utils.text_utils import get_tokenizer, ngrams_iterator
from ts.handler_utils.utils import import_class, send_intermediate_predict_response
from ts.utils.util import PredictionException

# -- send_intermediate_predict_response


class Worker:
    """A context as a worker with two requests in hand has it, and what was sent."""

    def __init__(self) -> None:
        self.sent: list[list[Any]] = []
        self.context = Context("m", "folder", None, 2, None, "0.12.0")
        self.context.request_ids = {0: "a", 1: "b", 2: "c"}
        self.context._send_pieces = self.sent.append

    def send(self, ret: Any, ids: dict[int, str] | None = None, code: int = 200) -> None:
        send_intermediate_predict_response(ret, ids, "Intermediate Prediction success", code, self.context)


def test_a_piece_goes_to_each_request() -> None:
    worker = Worker()
    worker.send(("x", "y", "z"), worker.context.request_ids)
    worker.send(["1", "2", "3"])
    assert worker.sent == [["x", "y", "z"], ["1", "2", "3"]]


def test_a_micro_batch_sends_to_its_own_requests() -> None:
    """The map is by place in the micro batch, as handlers of large models make it; the others get nothing to read."""
    worker = Worker()
    worker.send(["y", "z"], {0: "b", 1: "c"})
    worker.send(["x"], {0: "a"})
    assert worker.sent == [["", "y", "z"], ["x", "", ""]]
    with pytest.raises(ValueError, match="1 pieces for 2 requests"):
        worker.send(["y"], {0: "b", 1: "c"})


def test_a_single_text_is_no_list_of_pieces() -> None:
    worker = Worker()
    with pytest.raises(ValueError, match="one item per request"):
        worker.send("xyz", worker.context.request_ids)
    assert worker.sent == []


def test_another_code_ends_the_batch_with_it() -> None:
    worker = Worker()
    with pytest.raises(PredictionException) as caught:
        worker.send(["x", "y", "z"], None, 507)
    assert (caught.value.error_code, worker.sent) == (507, [])


def test_outside_of_a_worker_sending_says_so() -> None:
    for context in (Context("m", "folder", None, 2, None, "0.12.0"), SimpleNamespace(request_ids={0: "a"})):
        with pytest.raises(RuntimeError, match="belongs to no worker"):
            send_intermediate_predict_response(["x"], {0: "a"}, "", 200, context)


# -- import_class


def test_import_class_by_module_and_prefix() -> None:
    from json.decoder import JSONDecoder

    assert import_class("json.decoder.JSONDecoder") is JSONDecoder
    assert import_class("decoder.JSONDecoder", module_prefix="json") is JSONDecoder
    assert import_class("JSONDecoder", "json") is JSONDecoder


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("JSONDecoder",), "names no module"),
        (("json.Nothing",), "There is no 'Nothing' in json"),
        (("nothing_here.Class",), "No module named 'nothing_here'"),
    ],
)
def test_import_class_says_what_is_missing(arguments: tuple[str, ...], why: str) -> None:
    with pytest.raises(ImportError, match=why):
        import_class(*arguments)


# -- text_utils


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("You can now install TorchText using pip!", "you can now install torchtext using pip !"),
        ("It's 'fine'; (really)? \"No\".", "it ' s ' fine ' ( really ) ? no ."),
        ("one<br />two<br/>THREE: a,b\n\tc", "one two three a , b c"),
        ("", ""),
    ],
)
def test_basic_english(text: str, tokens: str) -> None:
    assert get_tokenizer("basic_english")(text) == tokens.split()


def test_other_tokenizers() -> None:
    assert get_tokenizer(None)(" It's  Fine. ") == ["It's", "Fine."]
    assert get_tokenizer(list) is list  # type: ignore[comparison-overlap]
    with pytest.raises(ValueError, match="no tokenizer 'klingon'; there are basic_english, spacy"):
        get_tokenizer("klingon")
    with pytest.raises(ValueError, match="language 'en', not 'de'"):
        get_tokenizer("basic_english", language="de")


def test_the_tokenizer_of_spacy_asks_for_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install spacy$"):
        get_tokenizer("spacy")


def test_ngrams() -> None:
    words = ["here", "we", "are"]
    assert list(ngrams_iterator(words, 1)) == words
    assert list(ngrams_iterator(words, 2)) == [*words, "here we", "we are"]
    assert list(ngrams_iterator(words, 9)) == [*words, "here we", "we are", "here we are"]
    assert list(ngrams_iterator([], 2)) == []


# -- hf_batch_streamer


class Tokenizer:
    """Token n is the n-th piece; token 0 is special."""

    pieces = ("</s>", "hel", "lo", " wor", "ld", " good", " day", "\n", "\ufffd", "你", "好")

    def encode(self, *pieces: str) -> list[int]:
        return [self.pieces.index(piece) for piece in pieces]

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(self.pieces[token] for token in tokens if token or not skip_special_tokens)


def streamer(rows: int, **options: Any) -> TextIteratorStreamerBatch:
    return TextIteratorStreamerBatch(tokenizer=Tokenizer(), batch_size=rows, skip_special_tokens=True, **options)


def test_rows_come_word_by_word() -> None:
    made = streamer(2)
    first = Tokenizer().encode("hel", "lo", " wor", "ld", "</s>")
    second = Tokenizer().encode(" good", " day", " day", "</s>", "</s>")
    for tokens in zip(first, second, strict=True):
        made.put(torch.tensor(tokens))
    made.end()
    assert list(made) == [["", " "], ["", "good "], ["hello ", "day "], ["world", "day"]]


def test_what_comes_is_the_whole_text() -> None:
    made = streamer(2)
    for tokens in ([1, 5], [2, 6], [3, 7], [4, 5], [0, 6]):
        made.put(torch.tensor(tokens))
    made.end()
    items = list(made)
    assert all(len(item) == 2 for item in items)
    assert ["".join(row) for row in zip(*items, strict=True)] == ["hello world", " good day\n good day"]
    assert len(items) > 2


def test_a_word_comes_once_it_is_complete() -> None:
    made = streamer(1, timeout=0.01)
    made.put([1])
    with pytest.raises(queue.Empty):
        next(made)
    made.put([2])
    made.put([3])
    assert next(made) == ["hello "]
    made.put([7])
    assert next(made) == ["wor\n"]
    made.put(Tokenizer().encode("你"))
    assert next(made) == ["你"]
    made.put(Tokenizer().encode("\ufffd"))
    with pytest.raises(queue.Empty):
        next(made)


def test_prompts_can_be_skipped_and_a_streamer_used_again() -> None:
    made = streamer(2, skip_prompt=True)
    for _ in range(2):
        made.put(torch.tensor([[1, 2], [5, 6]]))
        made.put(torch.tensor([5, 1]))
        made.end()
        assert list(made) == [[" ", ""], ["good", "hel"]]
    kept = streamer(1)
    kept.put(torch.tensor([[1, 2, 6]]))
    kept.end()
    assert "".join(texts[0] for texts in kept) == "hello day"


def test_another_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 2, not of 3"):
        streamer(2).put(torch.tensor([1, 2, 3]))


def test_iterating_waits_for_the_generating_thread() -> None:
    made = streamer(1, timeout=10)

    def generate() -> None:
        for token in (1, 2, 3, 4):
            made.put([token])
        made.end()

    threading.Thread(target=generate).start()
    assert [texts[0] for texts in made] == ["hello ", "world"]


# -- distributed


def context_of(folder: Path, yaml: Any) -> Context:
    return Context("m", str(folder), None, 1, None, "0.12.0", model_yaml_config=yaml)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="deepspeed is there")
def test_deepspeed_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install deepspeed"):
        get_ds_engine(None, context_of(tmp_path, {}))


def test_deepspeed_gets_the_files_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    stand_in = SimpleNamespace(init_inference=lambda model, **options: calls.append((model, options)) or "engine")
    monkeypatch.setitem(sys.modules, "deepspeed", stand_in)  # type: ignore[arg-type]
    for yaml in (None, {}, {"deepspeed": {"checkpoint": "c.json"}}):
        with pytest.raises(ValueError, match=r"deepspeed: \{config: <file>\}"):
            get_ds_engine("model", context_of(tmp_path, yaml))
    yaml = {"deepspeed": {"config": "ds.json"}}
    with pytest.raises(ValueError, match=r"no file 'ds\.json', which its yaml names in deepspeed\.config"):
        get_ds_engine("model", context_of(tmp_path, yaml))
    for name in ("ds.json", "c.json"):
        (tmp_path / name).write_text("{}")
    assert get_ds_engine("model", context_of(tmp_path, yaml)) == "engine"
    yaml["deepspeed"]["checkpoint"] = "c.json"
    get_ds_engine("model", context_of(tmp_path, yaml))
    config = {"config": str(tmp_path / "ds.json")}
    assert calls == [("model", config), ("model", {**config, "checkpoint": str(tmp_path / "c.json")})]


@pytest.mark.skipif(importlib.util.find_spec("pippy") is not None, reason="pippy is there")
def test_pippy_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install torchpippy"):
        get_pipeline_driver(None, 2, context_of(tmp_path, {}))


class Model:
    def forward(self, input_ids: Any, mask: Any = None, cache: bool = True) -> None: ...


@pytest.mark.parametrize("kind", ["HF", None])
def test_pippy_splits_the_model_as_the_yaml_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(
        sys.modules,
        "pippy",
        SimpleNamespace(  # type: ignore[arg-type]
            compile=lambda model, **options: calls.append(options) or "driver",
            split_into_equal_size=lambda stages: f"{stages} equal stages",
        ),
    )
    injected: list[Any] = []
    hf = SimpleNamespace(PiPPyHFTracer=lambda: "tracer", inject_pipeline_forward=lambda *given: injected.append(given))
    monkeypatch.setitem(sys.modules, "pippy.hf", hf)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="input_names"):
        get_pipeline_driver(Model(), 2, context_of(tmp_path, {"pippy": {}}))
    model = Model()
    yaml = {"pippy": {"input_names": ["input_ids"], "chunks": 3, "model_type": kind}}
    driver = get_pipeline_driver(model, 2, context_of(tmp_path, yaml))
    assert calls == [
        {
            "num_ranks": 2,
            "num_chunks": 3,
            "split_policy": "2 equal stages",
            "tracer": "tracer" if kind else None,
            "concrete_args": {"mask": None, "cache": True},
        }
    ]
    assert (driver, injected) == ((model, [(model, "driver")]) if kind else ("driver", []))


RPC = """
import json, os, socket, sys
import torch.distributed.rpc as rpc
from ts.context import Context
from ts.handler_utils.distributed.pt_pippy import initialize_rpc_workers

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
yaml = {"pippy": {"num_worker_threads": 4, "rpc_timeout": 30}}
initialize_rpc_workers(0, 1, Context("m", ".", None, 1, None, "0.12.0", model_yaml_config=yaml))
print(json.dumps([rpc.get_worker_info().name, rpc.rpc_sync("worker0", max, args=(3, 4))]))
rpc.shutdown()
"""


def test_rpc_workers_find_each_other() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RPC], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["worker0", 4]
