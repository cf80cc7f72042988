"""The rows that a handler gets and the requests that its context counts: what the one says of the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


class UnreadableRows(ValueError):
    """`reasons` says by place in the data that were read why a row holds nothing to work on."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(" ".join(f"Row {row}: {reason}" for row, reason in reasons.items()))
        self.reasons = dict(reasons)


def content_of(row: Any) -> Any:
    """What a row carries: its input `data`, else its input `body`."""
    return (row.get("data") or row.get("body", row.get("data"))) if isinstance(row, dict) else row


def rows_are_requests(context: Any) -> bool:
    """Whether row `i` of the handler's data is request `i` of its context."""
    return getattr(context, "_rows_are_requests", True)


@contextlib.contextmanager
def rows_of_envelope(context: Any) -> Iterator[None]:
    """Within it the handler's rows are what an envelope took out of the requests, any number of each."""
    before = rows_are_requests(context)
    if context is not None:
        context._rows_are_requests = False
    try:
        yield
    finally:
        if context is not None:
            context._rows_are_requests = before


@contextlib.contextmanager
def only_rows(context: Any, rows: Sequence[int]) -> Iterator[None]:
    """Within it `context` knows these requests of the batch alone, so that places in the batch stay true."""
    if context is None:
        yield
        return
    processors, ids = context.request_processor, context.request_ids
    try:
        if processors is not None:
            context.request_processor = [processors[row] for row in rows]
        if ids is not None:
            context.request_ids = {place: ids.get(row) for place, row in enumerate(rows)}
        yield
    finally:
        context.request_processor, context.request_ids = processors, ids


def answer_the_readable(handle: Callable[[Any, Any], Any], data: Any, context: Any, error: UnreadableRows) -> list[Any]:
    """The answers of a batch whose `error` names the bad rows: these get 400 and their reason, `handle` the others.

    Raises `error` where the rows are not the requests, since it cannot be said whose answer is whose.
    """
    if not rows_are_requests(context):
        raise error
    answers: dict[int, Any] = {row: {"error": reason} for row, reason in error.reasons.items()}
    readable = [row for row in range(len(data)) if row not in answers]
    if readable:
        with only_rows(context, readable):
            results = handle([data[row] for row in readable], context)
        answers.update(zip(readable, results, strict=True))
    for row in error.reasons:
        context.set_response_status(400, "Bad Request", row)
    return [answers[row] for row in range(len(data))]
