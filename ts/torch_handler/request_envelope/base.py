"""What every envelope has: it is made of a handler's entry point and is called in its place."""

from __future__ import annotations

import abc
import contextlib
import copy
import inspect
from collections.abc import Callable
from typing import Any

from ts.torch_handler._requests import content_of, rows_of_envelope


class BaseEnvelope(abc.ABC):
    """Subclasses say how a batch's rows become what the handler gets, and how its results become the answers.

    Each batch is handled by a copy, so that what `parse_input` leaves on `self` for `format_output` belongs to that
    batch alone, also where several run at once.
    """

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        """The entry point.  Without data, or asked to describe itself, the handler is called as if there were no
        envelope; results that are nothing are passed on as they are.

        The answer is awaitable if the handler's is.
        """
        if self.passes(data, context):
            return self._handle_fn(data, context)
        batch = copy.copy(self)
        batch.context = context
        with batch._kind_of_rows():
            results = self._handle_fn(batch.parse_input(data), context)
        return batch._format_later(results) if inspect.isawaitable(results) else batch._format(results)

    @abc.abstractmethod
    def parse_input(self, data: list[Any]) -> Any:
        """What the handler gets in place of the batch's rows."""

    @abc.abstractmethod
    def format_output(self, results: Any) -> Any:
        """One answer per row of the batch, made of what the handler returned."""

    @staticmethod
    def passes(data: Any, context: Any) -> bool:
        """Whether this call is none of the envelope's business."""
        return not data or (context is not None and context.get_request_header(0, "describe") == "True")

    @staticmethod
    def is_nothing(results: Any) -> bool:
        """An array of any size is something: asking it for its truth would fail."""
        return results is None or (isinstance(results, (list, tuple, dict, str, bytes)) and not results)

    content_of = staticmethod(content_of)

    def _format(self, results: Any) -> Any:
        return results if self.is_nothing(results) else self.format_output(results)

    async def _format_later(self, results: Any) -> Any:
        with self._kind_of_rows():
            results = await results
        return self._format(results)

    def _kind_of_rows(self) -> contextlib.AbstractContextManager[None]:
        """Within it the context knows what the handler's rows are; unless said otherwise, they are no requests."""
        return rows_of_envelope(self.context)
