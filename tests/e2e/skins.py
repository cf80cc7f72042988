"""The management API through either of its skins, and where the two are meant to differ.

A call says what is wanted.  How a skin puts it, what it cannot put and which status it answers with stand here, so that
a test need not know which one it speaks through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tests.e2e.server import Answer, Server, path_of
from tests.grpc.management_client import ManagementClient, Told

ACCEPTED = "Processing worker updates..."
STATUSES: Mapping[str, tuple[int, str]] = {
    "BadRequestException": (400, "INVALID_ARGUMENT"),
    "InvalidModelVersionException": (403, "FAILED_PRECONDITION"),
    "ModelNotFoundException": (404, "NOT_FOUND"),
    "ModelVersionNotFoundException": (404, "NOT_FOUND"),
    "ConflictStatusException": (409, "ALREADY_EXISTS"),
}


@dataclass(frozen=True)
class Said:
    """How a call ended: its sentence or JSON, or the sentence of a refusal and its kind, as the contract names it."""

    text: str = ""
    value: Any = None
    refusal: str = ""


class Skin(Protocol):
    def register(self, url: str | None, **ask: Any) -> Said: ...

    def scale(self, name: str, version: str | None, fewest: int, most: int | None, *, synchronous: bool) -> Said: ...

    def set_default(self, name: str, version: str) -> Said: ...

    def unregister(self, name: str, version: str | None) -> Said: ...

    def describe(self, name: str, version: str | None) -> Said: ...

    def list(self, *, limit: int | None = None, token: str | None = None) -> Said: ...

    def stores(self, field: str, number: int) -> bool:
        """Whether this number of a registration is taken as given, or else as if nothing had been said."""
        ...

    def bounds(self, fewest: int, most: int | None) -> tuple[int, int]:
        """What a scaling asks for."""
        ...


class Rest:
    def __init__(self, server: Server) -> None:
        self._server = server

    def register(self, url: str | None, **ask: Any) -> Said:
        return _rest(self._server.call("POST", "/models", url=url, **ask))

    def scale(self, name: str, version: str | None, fewest: int, most: int | None, *, synchronous: bool) -> Said:
        answer = self._server.scale(name, version, min_worker=fewest, max_worker=most, synchronous=synchronous)
        return _rest(answer)

    def set_default(self, name: str, version: str) -> Said:
        return _rest(self._server.set_default(name, version))

    def unregister(self, name: str, version: str | None) -> Said:
        return _rest(self._server.unregister(name, version))

    def describe(self, name: str, version: str | None) -> Said:
        return _rest(self._server.call("GET", path_of(name, version)))

    def list(self, *, limit: int | None = None, token: str | None = None) -> Said:
        return _rest(self._server.call("GET", "/models", limit=limit, next_page_token=token))

    def stores(self, field: str, number: int) -> bool:
        return number != (-100 if field == "max_batch_delay" else -1)

    def bounds(self, fewest: int, most: int | None) -> tuple[int, int]:
        return fewest, fewest if most is None else most


def _rest(answer: Answer) -> Said:
    if answer.status >= 400:
        error = answer.json
        assert answer.status == error["code"] == STATUSES[error["type"]][0], error
        return Said(error["message"], refusal=error["type"])
    command = isinstance(answer.json, dict) and answer.json.keys() == {"status"}
    said = Said(answer.json["status"]) if command else Said(value=answer.json)
    assert answer.status == (202 if said.text == ACCEPTED else 200), answer
    return said


class Grpc:
    """What REST says by a zero has a field of its own here; other zeros and negative numbers are "not given"."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._client: ManagementClient | None = None
        self._address = ""

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _call(self, method: str, **fields: Any) -> Told:
        address = self._server.urls["grpc_management"]
        if self._client is None or address != self._address:  # a new server's
            self.close()
            self._client, self._address = ManagementClient(address), address
        given = {name: value for name, value in fields.items() if value is not None}
        return self._client.call(method, **given)

    def register(self, url: str | None, **ask: Any) -> Said:
        if ask.get("max_batch_delay") == 0:
            ask["no_batch_delay"] = True
        if ask.get("initial_workers") == 0:
            ask["no_workers"] = True
        return _grpc(self._call("RegisterModel", url=url, **ask))

    def scale(self, name: str, version: str | None, fewest: int, most: int | None, *, synchronous: bool) -> Said:
        ask = {"to_zero": True} if fewest == 0 else {"min_worker": fewest}
        told = self._call(
            "ScaleWorker", model_name=name, model_version=version, max_worker=most, synchronous=synchronous, **ask
        )
        return _grpc(told)

    def set_default(self, name: str, version: str) -> Said:
        return _grpc(self._call("SetDefault", model_name=name, model_version=version))

    def unregister(self, name: str, version: str | None) -> Said:
        return _grpc(self._call("UnregisterModel", model_name=name, model_version=version))

    def describe(self, name: str, version: str | None) -> Said:
        return _grpc(self._call("DescribeModel", model_name=name, model_version=version), shows=True)

    def list(self, *, limit: int | None = None, token: str | None = None) -> Said:
        told = self._call("ListModels", limit=limit, next_page_token=None if token is None else int(token))
        return _grpc(told, shows=True)

    def stores(self, field: str, number: int) -> bool:
        return number > 0 or (field, number) == ("max_batch_delay", 0)

    def bounds(self, fewest: int, most: int | None) -> tuple[int, int]:
        return fewest, most if most is not None and most > 0 else fewest


def _grpc(told: Told, *, shows: bool = False) -> Said:
    if told.code != "OK":
        assert told.code == STATUSES[told.kind][1], told
        return Said(told.sentence, refusal=told.kind)
    return Said(value=told.json) if shows else Said(told.text)
