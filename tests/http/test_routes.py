"""Routes as a table: the whole method matrix of spec/management.md section 1.3 and spec/inference.md section 1.

The handlers are not called here: what is looked at is which one a request gets, and with what arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tserve.errors import MethodNotAllowed, ResourceNotFound
from tserve.http.inference import inference_routes
from tserve.http.management import management_routes
from tserve.http.operations import Operation
from tserve.http.params import Query, split_path
from tserve.http.routes import ANY, Call, Reply, Route, Router, Table

METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "BREW", "get")
NOTHING: Any = None  # a service that no handler gets as far as calling


def management(*, model_api: bool = True) -> Table:
    return management_routes(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, model_api=model_api)


def inference() -> Table:
    return inference_routes(NOTHING, NOTHING, NOTHING)


def routed(table: Table, method: str, path: str) -> str | int:
    """The name of the handler, or the status of the refusal."""
    segments = split_path(path.encode())
    assert segments is not None
    try:
        route, _, _ = Router(table).find(method, segments)
    except (MethodNotAllowed, ResourceNotFound) as e:
        return e.code
    return route.handler.__name__


OTHER = "every other method"
MANAGEMENT: dict[str, Mapping[str, str | int]] = {
    "/models": {"GET": "list", "POST": "register", OTHER: 405},
    "/models/": {"GET": "list", "POST": "register", OTHER: 405},
    "/models/n": {
        "GET": "describe",
        "PUT": "scale",
        "DELETE": "unregister",
        "OPTIONS": "description",
        OTHER: 405,
    },
    "/models/n/v": {
        "GET": "describe",
        "PUT": "scale",
        "DELETE": "unregister",
        "OPTIONS": "description",
        OTHER: 405,
    },
    "/models/n/all": {
        "GET": "describe",
        "PUT": "scale",
        "DELETE": "unregister",
        "OPTIONS": "description",
        OTHER: 405,
    },
    # GET, DELETE and OPTIONS act on the default version in the recorded server; a typo must not (section 12, row 18).
    "/tserve/models/n/events": {"GET": "events", OTHER: 405},
    "/tserve/models/n/v/events": {"GET": "events", OTHER: 405},
    "/tserve/models/n/retry": {"POST": "retry", OTHER: 405},
    "/tserve/models/n/v/retry": {"POST": "retry", OTHER: 405},
    "/tserve/models/n": dict.fromkeys([OTHER], 404),
    "/models/n/v/set-default": {"PUT": "set_default", OTHER: 405},
    "/models/n/v/set-default/": {"PUT": "set_default", OTHER: 405},
    # A version of that name.
    "/models/n/set-default": {
        "GET": "describe",
        "PUT": "scale",
        "DELETE": "unregister",
        "OPTIONS": "description",
        OTHER: 405,
    },
    "/models//1.0": {
        "GET": "describe",
        "PUT": "scale",
        "DELETE": "unregister",
        "OPTIONS": "description",
        OTHER: 405,
    },
    "/workflows": {"GET": "_no_workflows", OTHER: 405},
    "/models/n/v/other": {OTHER: 404},
    "/models/n/v/set-default/x": {OTHER: 404},
    "/models/n/v/Set-Default": {OTHER: 404},
    "/x/n/v/set-default": {OTHER: 404},
    "/Models": {OTHER: 404},
    "//models": {OTHER: 404},
    "/InvalidUrl": {OTHER: 404},
    "/ping": {OTHER: 404},
    "/predictions/n": {OTHER: 404},
    "/metrics": {OTHER: 404},
    "/v2/models/n": {OTHER: 404},
    "/token": {OTHER: 404},
}
INFERENCE: dict[str, str | int] = {
    "/ping": "ping",
    "/ping/": "ping",
    "/ping/a/b": "ping",
    "/predictions": 404,
    "/predictions/": 404,
    "/predictions/n": "predict",
    "/predictions/n/": "predict",
    "/predictions/n/1.0": "predict",
    "/predictions/n/1.0/a/b": "predict",
    "/predictions//1.0": "predict",
    "/explanations": 404,
    "/explanations/n": "explain",
    "/explanations/n/1.0": "explain",
    "/explanations/n/1.0/a": "explain",
    "/invocations": "invoke",
    "/invocations/x": 404,
    "/models/n/invoke": "invoke_model",
    "/n/predict": "invoke_model",
    "/n/1.0/predict": "invoke_model",
    "/models/n/predict": "invoke_model",
    "/n/1.0/x/predict": 404,
    "/models/n/x": 404,
    "/models": 404,
    "/models/n": 404,
    "/metrics": 404,
    "/Predictions/n": 404,
    "/predictions%2Fn": "predict",
}


def expected(path: str) -> dict[str, str | int]:
    row = MANAGEMENT[path]
    return {method: row.get(method, row[OTHER]) for method in METHODS}


@pytest.mark.parametrize("path", MANAGEMENT)
def test_management_matrix(path: str) -> None:
    assert {method: routed(management(), method, path) for method in METHODS} == expected(path)


@pytest.mark.parametrize("path", MANAGEMENT)
def test_management_matrix_without_the_model_api(path: str) -> None:
    """Section 1.11: register and unregister are gone, the rest stays."""
    table = management(model_api=False)
    found = {method: routed(table, method, path) for method in METHODS}
    gone = ("register", "unregister")
    assert found == {method: 405 if word in gone else word for method, word in expected(path).items()}


@pytest.mark.parametrize("path", INFERENCE)
def test_inference_matrix(path: str) -> None:
    """Route choice looks at the path only, but for OPTIONS of what predicts."""
    found = {method: routed(inference(), method, path) for method in METHODS}
    described = "description" if INFERENCE[path] not in ("ping", 404) else INFERENCE[path]
    assert found == {method: described if method == "OPTIONS" else INFERENCE[path] for method in METHODS}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/models", "list"),
        ("PUT", "/models/n/1.0", "scale"),
        ("DELETE", "/models/n/1.0", "unregister"),
        ("PUT", "/models/n/1.0/set-default", "set_default"),
        ("POST", "/models/n/invoke", "invoke_model"),
        ("POST", "/models/n/predict", "invoke_model"),
        ("GET", "/ping", "ping"),
        ("POST", "/predictions/n", "predict"),
        ("GET", "/n/1.0/predict", "invoke_model"),
        ("POST", "/models/n", 405),
        ("GET", "/nowhere", 404),
    ],
)
def test_one_listener_for_both(method: str, path: str, expected: str | int) -> None:
    """Routed by the full pattern: sharing an address shadows no management path (section 12, row 20)."""
    assert routed([*management(), *inference()], method, path) == expected


async def nothing() -> bytes:
    return b""


def call(method: str = "GET", args: dict[str, str] | None = None, rest: tuple[str, ...] = (), **more: Any) -> Call:
    known: dict[str, Any] = {"query": Query(b""), "headers": (), "body": nothing, "actor": "", "request_id": ""}
    known["at_end"] = [].append
    return Call(method=method, args=args or {}, rest=rest, **(known | more))


@pytest.mark.parametrize(
    ("path", "args", "rest"),
    [
        ("/predictions/n", {"name": "n"}, ()),
        ("/predictions/n/1.0", {"name": "n", "version": "1.0"}, ()),
        ("/predictions/n/1.0/v1/chat/completions", {"name": "n", "version": "1.0"}, ("v1", "chat", "completions")),
        ("/predictions/n/1.0//x", {"name": "n", "version": "1.0"}, ("", "x")),
        ("/predictions//1.0", {"name": "", "version": "1.0"}, ()),
        ("/predictions/{name}", {"name": "{name}"}, ()),
        ("/ping/a/b", {}, ("a", "b")),
        ("/n/1.0/predict", {"name": "n", "version": "1.0"}, ()),
    ],
)
def test_arguments(path: str, args: dict[str, str], rest: tuple[str, ...]) -> None:
    _, found_args, found_rest = Router(inference()).find("POST", split_path(path.encode()) or [])
    assert (found_args, found_rest) == (args, rest)


async def first(call: Call) -> Reply:
    return Reply(200, b"first")


async def second(call: Call) -> Reply:
    return Reply(200, b"second")


def test_the_first_route_that_matches_wins() -> None:
    about = Operation(id="", tag="", summary="", answers={})
    table = [
        Route(frozenset({"GET"}), "/a/{x}", first, about),
        Route(ANY, "/{x}/b", second, about),
        Route(ANY, "/", first, about),
    ]
    router = Router(table)
    assert router.find("GET", ["a", "b"]) == (table[0], {"x": "b"}, ())
    assert router.find("POST", ["a", "b"]) == (table[1], {"x": "a"}, ())
    assert router.find("POST", ["c", "b"]) == (table[1], {"x": "c"}, ())
    assert router.find("POST", ["", "b"]) == (table[1], {"x": ""}, ())
    assert router.find("POST", ["{x}", "b"]) == (table[1], {"x": "{x}"}, ())
    assert router.find("POST", []) == (table[2], {}, ())
    with pytest.raises(MethodNotAllowed):
        router.find("POST", ["a", "c"])
    for path in (["c", "d"], [""], ["", ""], ["a"]):
        with pytest.raises(ResourceNotFound):
            router.find("GET", path)
    with pytest.raises(ResourceNotFound):
        Router([]).find("GET", [])


def test_a_header_is_found_in_any_spelling() -> None:
    asked = call(headers=(("X-Two", "1"), ("x-two", "2"), ("Content-Type", "a/b")))
    assert (asked.header("x-two"), asked.header("content-type"), asked.header("x-three")) == ("1", "a/b", "")
