"""A loaded handler as older tools hold it: the entry point, its context, and the requests of a batch in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from ts.context import Context, RequestProcessor
from ts.metrics.emission import emit
from ts.utils.util import PredictionException
from ts.version import __version__

__all__ = ["PredictionException", "Service", "emit_metrics"]

Retrieved = tuple[list[RequestProcessor], list[dict[str, Any]], dict[int, str]]


class Service:
    """For tests of handlers; the worker has its own way of doing this."""

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any] | None,
        entry_point: Callable[[Any, Context], Any],
        gpu: int | None,
        batch_size: int | None,
        limit_max_image_pixels: bool = True,
        metrics_cache: Any = None,
    ) -> None:
        self._context = Context(
            model_name, model_dir, manifest, batch_size, gpu, __version__, limit_max_image_pixels, metrics_cache
        )
        self._entry_point = entry_point

    @property
    def context(self) -> Context:
        return self._context

    @staticmethod
    def retrieve_data_for_inference(batch: list[dict[str, Any]] | None) -> Retrieved:
        """Headers, rows and ids of the requests of a batch.

        A request is a dict of `requestId`, `parameters` (dicts of `name`, `value` and `contentType`) and, perhaps,
        `headers` (dicts of `name` and `value`).  Text and JSON are decoded.  Raises ValueError without a batch.
        """
        if batch is None:
            raise ValueError("Received invalid inputs")
        processors, rows, ids = [], [], {}
        for place, request in enumerate(batch):
            ids[place] = _text(request["requestId"])
            headers: dict[str, Any] = {}
            row = {}
            for parameter in request.get("parameters") or ():
                name, content_type = _text(parameter["name"]), _text(parameter.get("contentType") or "")
                headers[name] = {"content-type": content_type}
                row[name] = _decoded(parameter["value"], content_type)
            headers |= {_text(header["name"]): _text(header["value"]) for header in request.get("headers") or ()}
            processors.append(RequestProcessor(headers))
            rows.append(row)
        return processors, rows, ids

    def predict(self, batch: list[dict[str, Any]]) -> Any:
        """What the entry point returns for a batch; its errors pass.  Status and headers are in the context."""
        processors, rows, ids = self.retrieve_data_for_inference(batch)
        self._context.request_processor = processors
        self._context.request_ids = ids
        metrics = getattr(self._context, "metrics", None)
        if metrics is not None:
            metrics.set_request_ids(ids.values())
        return self._entry_point(rows, self._context)


def emit_metrics(metrics: Iterable[Any] | None) -> None:
    """Emit metrics that were kept, such as those of a `MetricsStore`."""
    for metric in metrics or ():
        emit(str(metric))


def _text(value: Any) -> str:
    return bytes(value).decode() if isinstance(value, (bytes, bytearray)) else str(value)


def _decoded(value: Any, content_type: str) -> Any:
    if content_type == "application/json":
        return json.loads(value)
    if content_type.startswith("text") and isinstance(value, (bytes, bytearray)):
        return bytes(value).decode()
    return value
