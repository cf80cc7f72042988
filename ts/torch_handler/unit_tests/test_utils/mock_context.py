"""A Context without a worker, for tests of handlers (spec/inference.md section 15)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ts.context import Context, RequestProcessor
from ts.metrics.metrics_store import MetricsStore
from ts.utils.util import get_yaml_config


class MockContext(Context):
    """The Context of a model folder, with a batch of one request in hand.

    `model_dir` counts from the working directory.  Set `explain` to True to ask for an explanation.  Metrics are kept
    in `metrics.store` and not emitted.
    """

    def __init__(
        self,
        model_pt_file: str | None = "model.pt",
        model_dir: str = "ts/torch_handler/unit_tests/models/tmp",
        model_file: str | None = "model.py",
        gpu_id: str | None = "0",
        model_name: str | None = "mnist",
        model_yaml_config_file: str | None = None,
    ) -> None:
        named = {"modelName": model_name, "serializedFile": model_pt_file, "modelFile": model_file}
        folder = Path.cwd() / model_dir
        super().__init__(
            model_name or "",
            str(folder),
            {"model": {key: value for key, value in named.items() if value}},
            1,
            int(gpu_id) if gpu_id and torch.cuda.is_available() else None,
            "0.12.0",
            model_yaml_config=get_yaml_config(str(folder / model_yaml_config_file)) if model_yaml_config_file else {},
        )
        self.explain = False
        self.request_ids = {0: "0"}
        self.metrics = MetricsStore(self.request_ids, model_name)
        self.request_processor = [RequestProcessor({})]

    def get_request_header(self, idx: int, key: str) -> Any:
        """As a Context; `explain` says what the attribute of that name does."""
        return str(self.explain) if key == "explain" else super().get_request_header(idx, key)
