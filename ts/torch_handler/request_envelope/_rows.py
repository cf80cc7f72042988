"""Envelopes that read each request by itself, give the handler what all of them hold, and deal its answers out."""

from __future__ import annotations

import abc
import copy
import inspect
import json
from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from typing import Any

from ts.torch_handler._requests import UnreadableRows, only_rows
from ts.torch_handler.request_envelope.base import BaseEnvelope


@dataclass
class Asked:
    """One request, read: what the handler gets of it, and what its answer has to know."""

    inputs: list[Any]
    about: Any = None


Work = Generator[list[Any], Any, Any]


class RowEnvelope(BaseEnvelope):
    """Upstream's envelopes for KServe read the first request of a batch only; here each one gets its own answer.

    A request that cannot be read or answered fails alone: its answer is the error, which the worker turns into a
    response.  The only one of a batch raises it.
    """

    @abc.abstractmethod
    def read(self, row: Any, idx: int) -> Asked:
        """Raises ValueError, saying what is wrong with the request."""

    @abc.abstractmethod
    def write(self, asked: Asked, results: Any, idx: int) -> Any:
        """The answer to one request, given the handler's results for its inputs."""

    def groups(self, asked: dict[int, Asked]) -> list[list[int]]:
        """Which requests share a call of the handler."""
        return [list(asked)] if asked else []

    def handle(self, data: Any, context: Any) -> Any:
        if self.passes(data, context):
            return self._handle_fn(data, context)
        batch = copy.copy(self)
        batch.context = context
        return batch._drive(batch._work(data))

    def parse_input(self, data: list[Any]) -> list[Any]:
        return self._take([self.read(row, idx) for idx, row in enumerate(data)])

    def format_output(self, results: Any) -> list[Any]:
        dealt = zip(self._asked, self._dealt(results), strict=True)
        return [self._written(asked, part, idx) for idx, (asked, part) in enumerate(dealt)]

    def _written(self, asked: Asked, results: Any, idx: int) -> Any:
        try:
            return self.write(asked, results, idx)
        except Exception as error:
            if len(self._asked) == 1:
                raise
            return error

    def _take(self, asked: list[Asked]) -> list[Any]:
        self._asked = asked
        return [each for one in asked for each in one.inputs]

    def _dealt(self, results: Any) -> list[Any]:
        """The results of each request.  One alone gets all of them, whatever they are; raises ValueError when it
        cannot be known whose is whose.
        """
        if len(self._asked) == 1:
            return [results]
        wanted = sum(len(asked.inputs) for asked in self._asked)
        given = len(results) if hasattr(results, "__len__") else None
        if isinstance(results, (str, bytes, dict)) or given != wanted:
            what = type(results).__name__ if given is None else f"{type(results).__name__} of {given}"
            requests = len(self._asked)
            raise ValueError(
                f"the handler returned {what} for the {wanted} inputs of {requests} requests; it must return a list of "
                "one result per input, or the model be registered with batch_size=1"
            )
        parts, at = [], 0
        for asked in self._asked:
            parts.append(results[at : at + len(asked.inputs)])
            at += len(asked.inputs)
        return parts

    def _work(self, data: list[Any]) -> Work:
        """Gives the inputs of each call of the handler, is sent its results, and returns the answers in order."""
        answers: dict[int, Any] = {}
        asked: dict[int, Asked] = {}
        for idx, row in enumerate(data):
            try:
                asked[idx] = self.read(row, idx)
            except Exception as error:  # whatever it is, the other requests have done nothing wrong
                if len(data) == 1:
                    raise
                answers[idx] = error
        groups = self.groups(asked)
        while groups:
            rows = groups.pop(0)
            with only_rows(self.context, rows), self._kind_of_rows():
                inputs = self._take([asked[idx] for idx in rows])
                try:
                    results = (yield inputs) if inputs else []
                    if len(rows) == len(data) and inputs and self.is_nothing(results):
                        return results  # the worker says what is wrong with it
                    answers.update(zip(rows, self.format_output(results), strict=True))
                except UnreadableRows as error:
                    if len(data) == 1:
                        raise
                    failed = _by_request(error, {idx: len(asked[idx].inputs) for idx in rows})
                    answers.update(failed)
                    groups += [[idx for idx in rows if idx not in failed]] if len(failed) < len(rows) else []
                except Exception as error:
                    if len(rows) == len(data):
                        raise
                    answers.update(dict.fromkeys(rows, error))
        return [answers[idx] for idx in range(len(data))]

    def _drive(self, work: Work) -> Any:
        """Carry out the work; from the first result that must be awaited on within a coroutine, which is returned."""
        try:
            inputs = next(work)
            while True:
                try:
                    results = self._handle_fn(inputs, self.context)
                except Exception as error:
                    inputs = work.throw(error)
                    continue
                if inspect.isawaitable(results):
                    return self._drive_later(work, results)
                inputs = work.send(results)
        except StopIteration as end:
            return end.value

    async def _drive_later(self, work: Work, pending: Awaitable[Any]) -> Any:
        try:
            while True:
                try:
                    results = await pending
                except Exception as error:
                    inputs = work.throw(error)
                else:
                    inputs = work.send(results)
                pending = self._called(inputs)
        except StopIteration as end:
            return end.value

    async def _called(self, inputs: list[Any]) -> Any:
        results = self._handle_fn(inputs, self.context)
        return await results if inspect.isawaitable(results) else results


def _by_request(error: UnreadableRows, sizes: dict[int, int]) -> dict[int, UnreadableRows]:
    """The errors of the requests that sent the bad inputs, with places among their own; `sizes` says who sent how many.

    The handler may have read another thing than the inputs: where a place fits none of them, all requests fail.
    """
    owners = [(idx, place) for idx, size in sizes.items() for place in range(size)]
    if not error.reasons or max(error.reasons) >= len(owners):
        return dict.fromkeys(sizes, error)
    reasons: dict[int, dict[int, str]] = {}
    for row, reason in error.reasons.items():
        idx, place = owners[row]
        reasons.setdefault(idx, {})[place] = reason
    return {idx: UnreadableRows(each) for idx, each in reasons.items()}


def read_json(content: Any) -> dict[str, Any]:
    """The object in a request's body, which the worker may have parsed before.  Raises ValueError."""
    if isinstance(content, (bytes, bytearray, str)):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the request body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the request body is not a JSON object but {_NAMES.get(type(content), 'nothing')}")
    return content


_NAMES = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def instances_of(content: Any) -> list[Any]:
    """Raises ValueError."""
    body = read_json(content)
    if "instances" not in body:
        raise ValueError('the request body has no "instances"')
    if not isinstance(body["instances"], list):
        raise ValueError('"instances" in the request body is not a list')
    return list(body["instances"])


def plain(value: Any) -> Any:
    """Tensors and arrays, wherever they are in it, as the lists and numbers that JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value
