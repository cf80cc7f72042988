"""What an import of `ts` costs, and what a missing `ts` module says."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ts
import ts.version

ROOT = Path(ts.__file__).parent.parent


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_version_is_the_contract_handlers_see() -> None:
    assert ts.__version__ == ts.version.__version__ == "0.12.0"


def test_torch_and_tserve_stay_out_until_the_handler_asks() -> None:
    done = python(
        "import sys, ts, ts.version, ts.context, ts.utils.util, ts.torch_handler, ts.service, ts.launcher\n"
        "import ts.metrics.metric_cache_yaml_impl, ts.metrics.metrics_store, ts.metrics.process_memory_metric\n"
        "import ts.handler_utils.timer, ts.handler_utils.micro_batching, ts.handler_utils.utils\n"
        "import ts.handler_utils.text_utils, ts.handler_utils.hf_batch_streamer, ts.protocol.otf_message_handler\n"
        "import ts.handler_utils.distributed.deepspeed, ts.handler_utils.distributed.pt_pippy\n"
        "print([name for name in ('torch', 'tserve', 'trio') if name in sys.modules])"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_base_handler_needs_torch_alone() -> None:
    done = python(
        "import sys, ts.torch_handler.base_handler\n"
        "optional = ('torchvision', 'captum', 'onnxruntime', 'tserve', 'trio')\n"
        "print([name for name in optional if name in sys.modules], 'torch' in sys.modules)"
    )
    assert done.stdout.strip() == "[] True", done.stderr


@pytest.mark.parametrize("name", ["ts.nothing_here", "ts.torch_handler.nothing_here", "ts.utils.nothing_here"])
def test_missing_module_is_named_with_what_there_is(name: str) -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(name)
    assert caught.value.name == name
    assert f"No module named {name!r}" in str(caught.value)
    there_is = set(str(caught.value).partition("are ")[2].rstrip(".").split(", "))
    assert {"ts.context", "ts.utils.util", "ts.torch_handler.base_handler", "ts.metrics", "ts.service"} <= there_is
    assert not [listed for listed in there_is if "._" in listed or listed == "ts"]


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("from ts.foo import x", "ts.foo"),
        ("import ts.torch_handler.foo", "ts.torch_handler.foo"),
        ("from ts.handler_utils.distributed.foo import x", "ts.handler_utils.distributed.foo"),
        ("import ts.metrics.system_metrics", "ts.metrics.system_metrics"),
    ],
)
def test_statements_of_handlers_get_the_same_sentence(statement: str, missing: str) -> None:
    with pytest.raises(
        ModuleNotFoundError, match=rf"^No module named '{missing}': tserve .* ts\.handler_utils\.timer,"
    ):
        exec(statement, {})


def test_a_name_that_a_module_lacks_keeps_pythons_own_message() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'x' from 'ts\.context'"):
        exec("from ts.context import x", {})


def test_a_deep_import_names_the_first_missing_package() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'ts\.nothing_here'.*ts\.context"):
        importlib.import_module("ts.nothing_here.deeper")


def test_every_listed_module_imports() -> None:
    for name in ts._modules():
        assert importlib.import_module(name).__name__ == name


@pytest.mark.parametrize("name", ["nothing_here_either", "tserve_nothing", "email.nothing_here"])
def test_other_names_keep_pythons_own_message(name: str) -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(name)
    assert "tserve does not provide it" not in str(caught.value)
