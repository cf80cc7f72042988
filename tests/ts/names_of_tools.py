"""How everything else of `ts` is used: a check for each name, of what it names and a folder to work in."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.ts.names import asks_for, context_of, defaults, has, parameters
from ts.context import Context

# -- context, utils, handler_utils


def context_class(cls: Any, folder: Path) -> None:
    assert parameters(cls)[:7] == [
        *("model_name", "model_dir", "manifest", "batch_size", "gpu", "mms_version", "limit_max_image_pixels")
    ]
    context = cls("m", str(folder), {}, 4, None, "0.12.0")
    context.cache = {}
    assert context.system_properties["server_name"] == "MMS"


def timed(function: Any, folder: Path) -> None:
    emitted = []
    sink = SimpleNamespace(add_time=lambda name, value, *rest: emitted.append(name))

    class Handler:
        context = SimpleNamespace(model_yaml_config={"handler": {"profile": True}}, metrics=sink)

        @function
        def inference(self, data: Any) -> Any:
            return data + 1

    assert Handler().inference(1) == 2
    assert emitted == ["ts_handler_inference"]


def micro_batching(cls: Any, folder: Path) -> None:
    assert parameters(cls) == ["parent_handler", "micro_batch_size", "parallelism"]
    assert defaults(cls) == {"micro_batch_size": 1, "parallelism": None}
    parent = SimpleNamespace(preprocess=list, inference=list, postprocess=lambda rows: [row * 2 for row in rows])
    batching = cls(parent, micro_batch_size=2, parallelism={"inference": 2})
    assert (batching.micro_batch_size, batching.parallelism["inference"]) == (2, 2)
    assert batching(data=[1, 2, 3], context=None) == batching.handle([1, 2, 3]) == [2, 4, 6]
    assert batching.get_micro_batch_idx() is None
    batching.shutdown()


def import_class(function: Any, folder: Path) -> None:
    assert parameters(function) == ["class_name", "module_prefix"]
    assert function("OrderedDict", module_prefix="collections").__name__ == "OrderedDict"


def send_intermediate(function: Any, folder: Path) -> None:
    assert parameters(function) == ["ret", "req_id_map", "message", "code", "context"]
    context, sent = context_of(folder), []
    with pytest.raises(RuntimeError, match="belongs to no worker"):
        function(["x"], context.request_ids, "Intermediate Prediction success", 200, context)
    context._send_pieces = sent.append
    function(["x"], context.request_ids, "Intermediate Prediction success", 200, context)
    assert sent == [["x"]]


def old_send_intermediate(function: Any, folder: Path) -> None:
    with pytest.warns(PendingDeprecationWarning, match=r"use ts\.handler_utils\.utils\.send_intermediate"):
        send_intermediate(function, folder)


def ds_engine(function: Any, folder: Path) -> None:
    assert parameters(function) == ["model", "ctx"]
    if not has("deepspeed"):
        asks_for("deepspeed", lambda: function(None, context_of(folder)))


def pipeline_driver(function: Any, folder: Path) -> None:
    assert parameters(function) == ["model", "world_size", "ctx"]
    if not has("pippy"):
        asks_for("torchpippy", lambda: function(None, 2, context_of(folder)))


def rpc_workers(function: Any, folder: Path) -> None:
    assert parameters(function) == ["local_rank", "world_size", "ctx"]
    with pytest.raises(ValueError, match=r"MASTER_ADDR|environment variable"):
        function(0, 1, context_of(folder))


def batch_streamer(cls: Any, folder: Path) -> None:
    tokenizer = SimpleNamespace(decode=lambda tokens, **options: "".join(chr(token) for token in tokens))
    streamer = cls(tokenizer, batch_size=2, skip_special_tokens=True)
    streamer.put(torch.tensor([104, 32]))
    streamer.put(torch.tensor([105, 120]))
    streamer.end()
    assert ["".join(row) for row in zip(*streamer, strict=True)] == ["hi", " x"]


def tokenizer(function: Any, folder: Path) -> None:
    assert function("basic_english")("Hello, you!") == ["hello", ",", "you", "!"]
    assert function(None)("a b") == ["a", "b"]
    if not has("spacy"):
        asks_for("spacy", lambda: function("spacy", language="en"))


def ngrams(function: Any, folder: Path) -> None:
    assert sorted(function(["a", "b"], 2)) == ["a", "a b", "b"]


def class_labels(function: Any, folder: Path) -> None:
    assert parameters(function) == ["probs", "mapping", "lbl_classes"]
    assert function([[0.1, 0.9]], {"0": "no", "1": "yes"}, [[1, 0]]) == [{"yes": 0.1, "no": 0.9}]


def cleanup(pattern: Any, folder: Path) -> None:
    assert pattern.sub("", "<p>a&nbsp;b</p>") == "ab"


def pt2_backend(function: Any, folder: Path) -> None:
    assert function("inductor") is True
    assert function("mine") is False


def classes_of(function: Any, folder: Path) -> None:
    assert parameters(function) == ["module", "parent_class"]
    module = importlib.import_module("ts.metrics.metric_type_enum")
    assert [each.__name__ for each in function(module)] == ["MetricTypes"]
    assert function(module, Context) == []


def label_mapping(function: Any, folder: Path) -> None:
    (folder / "index_to_name.json").write_text('{"0": ["n01", "tench"]}')
    assert function(str(folder / "index_to_name.json")) == {"0": "tench"}


def prediction_exception(cls: Any, folder: Path) -> None:
    error = cls("no picture", 513)
    assert (error.message, error.error_code, str(error)) == ("no picture", 513, "no picture : 513")
    assert cls("x").error_code == 500


def yaml_config(function: Any, folder: Path) -> None:
    (folder / "config.yaml").write_text("a: [1]")
    assert function(str(folder / "config.yaml")) == {"a": [1]}


def backends(enum: Any, folder: Path) -> None:
    assert enum.OPENVINO.value == "openvino"
    assert len(enum) == 14


def deprecated(function: Any, folder: Path) -> None:
    old = function("1.0", "new")(lambda: "still works")
    with pytest.warns(PendingDeprecationWarning, match=r"deprecated in 1\.0; use new"):
        assert old() == "still works"


# -- metrics, service, launcher, version


def dimension(cls: Any, folder: Path) -> None:
    made = cls("Level", "Host")
    assert (made.name, made.value, str(made)) == ("Level", "Host", "Level:Host")


def metric(cls: Any, folder: Path) -> None:
    from ts.metrics.dimension import Dimension

    text = str(cls("a", 1, "percent", [Dimension("Level", "Host")]))
    assert text.startswith("a.Percent:1|#Level:Host|#")
    assert "|#hostname:" in text


def metric_types(enum: Any, folder: Path) -> None:
    assert [(each.name, each.value) for each in enum] == [
        *(("COUNTER", "counter"), ("GAUGE", "gauge"), ("HISTOGRAM", "histogram"))
    ]


def memory_usage(function: Any, folder: Path) -> None:
    logger = logging.getLogger("ts.metrics.process_memory_metric")
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        function(io.StringIO(f"{os.getpid()}\n"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    (line,) = told
    assert line.startswith(f"{os.getpid()}:")
    assert int(line.partition(":")[2]) > 1 << 20


def units(cls: Any, folder: Path) -> None:
    assert cls().units["GB"] == "Gigabytes"


def metrics_store(cls: Any, folder: Path) -> None:
    assert parameters(cls) == ["request_ids", "model_name"]
    store = cls({0: "id"}, "m")
    store.add_percent("a", 3)
    assert str(store.store[0]).startswith("a.Percent:3|#ModelName:m,Level:Model|#")


def caching_metric(cls: Any, folder: Path) -> None:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        cls("a", "ms", ["k"]).add_or_update(1, ["v"], "id")
    assert out.getvalue().startswith("[METRICS]a.Milliseconds:1|#k:v|#type:COUNTER|#hostname:")
    assert out.getvalue().endswith(",id\n")


def service(cls: Any, folder: Path) -> None:
    made = cls("m", str(folder), None, lambda data, context: [data, context.request_ids], None, 2)
    assert made.context.model_name == "m"
    parameter = [{"name": b"data", "value": b"\xff", "contentType": b""}]
    text = [{"name": "body", "value": b"x", "contentType": "text/plain"}]
    batch = [
        {"requestId": b"one", "parameters": parameter, "headers": [{"name": b"h", "value": b"v"}]},
        {"requestId": "two", "parameters": text},
    ]
    assert made.predict(batch) == [[{"data": b"\xff"}, {"body": "x"}], {0: "one", 1: "two"}]
    assert made.context.get_request_header(0, "h") == "v"
    assert made.context.get_request_header(1, "body") == {"content-type": "text/plain"}
    with pytest.raises(ValueError, match="Received invalid inputs"):
        cls.retrieve_data_for_inference(None)


def emit_metrics(function: Any, folder: Path) -> None:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        function(["a.Count:1|#"])
    assert out.getvalue() == "[METRICS]a.Count:1|#\n"


def launcher_start(function: Any, folder: Path) -> None:
    """tests/ts/test_ts_launcher.py starts servers; here only that the command is run, which refuses this folder."""
    with pytest.raises(RuntimeError, match="nowhere"):
        function(model_store=str(folder / "nowhere"), no_config_snapshots=True, disable_token=True)


def launcher_stop(function: Any, folder: Path) -> None:
    assert function() is None


def launcher_register(function: Any, folder: Path) -> None:
    _with_nobody_at(lambda: function("m", "m.mar"))


def launcher_register_with(function: Any, folder: Path) -> None:
    _with_nobody_at(lambda: function((("url", "m.mar"),)))


def _with_nobody_at(call: Callable[[], Any]) -> None:
    from ts import launcher

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(launcher._DEFAULT, "management", "http://127.0.0.1:9")
        with pytest.raises(OSError, match="refused"):
            call()


def version(text: Any, folder: Path) -> None:
    assert text == "0.12.0"
