"""What a handler knows of its model and of the batch in hand (spec/inference.md section 11).

One Context lives as long as its worker.  It is an ordinary mutable object: handlers hang attributes of their own on
it, and the worker sets `request_ids`, `request_processor` and, where it has one, `metrics`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


class RequestProcessor:
    """One request of the batch: the headers it came with, and the status and headers its response shall have."""

    def __init__(self, request_header: dict[str, Any]) -> None:
        self._request_header = request_header
        self._response_header: dict[str, str] = {}
        self._status_code = 200
        self._reason_phrase: str | None = None

    def get_request_property(self, key: str) -> Any:
        """The header spelt exactly `key`, or None.  The name of an input gives `{"content-type": ...}`."""
        return self._request_header.get(key)

    def get_request_properties(self) -> dict[str, Any]:
        return self._request_header

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        self._status_code = code
        self._reason_phrase = reason_phrase

    def get_response_status_code(self) -> int:
        return self._status_code

    def get_response_status_phrase(self) -> str | None:
        return self._reason_phrase

    def add_response_property(self, key: str, value: str) -> None:
        """Set one response header; a second value replaces the first.

        Raises TypeError unless both are `str`: the header could not be sent, and here the handler's line is known.
        """
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"A response header needs str for name and value, got {key!r}: {value!r}.")
        self._response_header[key] = value

    def get_response_headers(self) -> dict[str, str]:
        return self._response_header

    def get_response_header(self, key: str) -> str | None:
        return self._response_header.get(key)


class Context:
    """`idx` is always a request's place in the batch, the same as in the handler's `data`."""

    # There only once the worker, or the constructor, has set it.
    metrics: Any

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any] | None,
        batch_size: int | None,
        gpu: int | None,
        mms_version: str,
        limit_max_image_pixels: bool = True,
        metrics: Any = None,
        model_yaml_config: dict[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.model_yaml_config = model_yaml_config
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",  # handlers of TorchServe see the name of its ancestor
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }
        self.request_ids: dict[int, str] | None = None
        self.stopping_criteria: list[Any] | None = None
        self.cl_socket: Any = None
        self.header_key_sequence_id = os.environ.get("TS_REQUEST_SEQUENCE_ID", "ts_request_sequence_id")
        self.header_key_sequence_start = os.environ.get("TS_REQUEST_SEQUENCE_START", "ts_request_sequence_start")
        self.header_key_sequence_end = os.environ.get("TS_REQUEST_SEQUENCE_END", "ts_request_sequence_end")
        # Set by the worker: sends a piece of a streamed answer for each request of the batch.
        self._send_pieces: Callable[[list[Any]], None] | None = None
        # False while an envelope has the handler work on what it took out of the requests.
        self._rows_are_requests = True
        # Both names are in use by handlers, so the underscored one is part of the contract too.
        self._request_processor: list[RequestProcessor] | None = None
        if metrics is not None:
            self.metrics = metrics

    @property
    def request_processor(self) -> list[RequestProcessor] | None:
        """One entry per request of the batch in hand; None outside a request."""
        return self._request_processor

    @request_processor.setter
    def request_processor(self, processors: list[RequestProcessor] | None) -> None:
        self._request_processor = processors

    def _request(self, idx: int) -> RequestProcessor:
        if self._request_processor is None:
            # A TypeError, because that is what handlers of the recorded server get here.
            raise TypeError("There is no request in hand: headers and status exist only while a batch is handled.")
        return self._request_processor[idx]

    def get_request_id(self, idx: int = 0) -> str | None:
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        """The header spelt exactly `key`, or None.  The name of an input gives `{"content-type": ...}`."""
        return self._request(idx).get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return self._request(idx).get_request_properties()

    def get_sequence_id(self, idx: int) -> Any:
        """The sequence header as sent, or None."""
        return self.get_request_header(idx, self.header_key_sequence_id)

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        return self._request(idx).get_response_header("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Raises TypeError unless `key` and `value` are `str`."""
        self._request(idx).add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        return self._request(idx).get_response_headers()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status line of one response.  Outside a request this does nothing."""
        if self._request_processor is not None:
            self._request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status line of every response of the batch.  Outside a request this does nothing."""
        for processor in self._request_processor or ():
            processor.report_status(code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        request = self._request(idx)
        return request.get_response_status_code(), request.get_response_status_phrase()
