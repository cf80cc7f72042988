"""What the model's yaml or the environment asks for to make a model faster: `torch.compile`, or IPEX.

A model that cannot be made faster runs as it is, and the log says so (spec/inference.md section 13).
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

import torch

from ts.utils.util import check_valid_pt2_backend

logger = logging.getLogger(__name__)


def faster(model: Any, config: Any) -> Any:
    """`model`, compiled or optimised if `config`, the model's yaml, or TS_IPEX_ENABLE says so."""
    options = compile_options(config)
    if options is not None:
        return _compiled(model, options)
    if os.environ.get("TS_IPEX_ENABLE") == "true":
        return _with_ipex(model)
    return model


def compile_options(config: Any) -> dict[str, Any] | None:
    """The keyword arguments of `torch.compile` that yaml `pt2` gives; None if the model is not to be compiled.

    Read are `{compile: {enable: true, backend: ..., mode: ...}}`, and the old forms `"backend"` and `{backend: ...}`.
    """
    asked = config.get("pt2") if isinstance(config, dict) else None
    if not asked:
        return None
    if isinstance(asked, str):
        return _deprecated({"backend": asked})
    if isinstance(asked, dict) and "compile" in asked:
        asked = asked["compile"]
        if isinstance(asked, dict):
            options = dict(asked)
            return options if options.pop("enable", False) is True else None
    elif isinstance(asked, dict):
        return None if "export" in asked else _deprecated(dict(asked))
    logger.warning("yaml `pt2` must be `{compile: {enable: true, backend: ...}}`; %r is ignored", asked)
    return None


def _deprecated(options: dict[str, Any]) -> dict[str, Any]:
    logger.warning("This form of yaml `pt2` is deprecated; write `pt2: {compile: {enable: true, ...}}`")
    return options


def _compiled(model: Any, options: dict[str, Any]) -> Any:
    if "backend" in options:
        check_valid_pt2_backend(options["backend"])
    try:
        compiled = torch.compile(model, **options)
    except Exception as error:  # whatever a backend of any vendor raises
        logger.warning(
            "torch.compile with %s failed, so the model runs without: %s: %s", options, type(error).__name__, error
        )
        return model
    logger.info("The model is compiled by torch.compile with %s", options)
    return compiled


def _with_ipex(model: Any) -> Any:
    try:
        optimised = importlib.import_module("intel_extension_for_pytorch").optimize(model)
    except ModuleNotFoundError:
        logger.warning(
            "TS_IPEX_ENABLE is true, but intel_extension_for_pytorch is not installed: "
            "pip install intel_extension_for_pytorch"
        )
        return model
    except Exception as error:  # its errors are of no common kind
        logger.warning("IPEX failed, so the model runs without: %s: %s", type(error).__name__, error)
        return model
    logger.info("The model is optimised by IPEX")
    return optimised
