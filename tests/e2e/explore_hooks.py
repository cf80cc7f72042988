"""What Schemathesis, in a process of its own, is told beside the document: names that exist, and what an error may be.

It only turns generated requests into ones that reach further, and keeps the machine alive: nothing is left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import schemathesis
from schemathesis.checks import content_type_conformance

NAMES = ("my_model", "other")
URLS = ("my_model.mar", "my_model2.mar", "other.mar", "absent.mar")
WORKERS = 2  # a thousand would be started if asked for, and the machine is not ours alone
DELAY_MS = 50  # a batch waits for as long as its version says, if that is a month
TIMEOUT_S = 10  # with none, workers fail again and again, and requests wait for the next try
HEADERS = (
    ("Host", "a" * 300),
    ("Host", '"><b>'),
    ("Content-Type", "multipart/form-data"),
    ("Content-Type", "multipart/form-data; boundary=\xff"),
    ("Content-Type", "application/json; charset=\x80"),
    ("Content-Type", ";;"),
    ("Accept", "nothing/at-all"),
    ("Range", "bytes=5-1"),
    ("Transfer-Encoding", "identity"),
    ("Cookie", "=;=;="),
    ("Forwarded", "for=unknown"),
    ("X-HTTP-Method-Override", "BREW"),
    ("x-request-id", "\xe9" * 50),
    ("describe", "True"),
    ("explain", "True"),
    ("url_path", "../.."),
    ("ts_request_sequence_id", "\x80 "),
    ("ts_request_sequence_end", "true"),
)

_random = random.Random(0)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    path, query = case.path_parameters or {}, case.query or {}
    if "name" in path and _random.random() < 0.6:
        path["name"] = _random.choice(NAMES)
    if "version" in path and _random.random() < 0.6:
        path["version"] = _random.choice(("1.0", "2.0", "all"))
    if _random.random() < 0.2:
        name, value = _random.choice(HEADERS)
        case.headers[name] = value
    body = case.body if isinstance(case.body, dict) else {}
    for given in (query, body):
        if isinstance(given, dict):
            _bound(given)
    if case.operation.label == "POST /models" and isinstance(query, dict) and _random.random() < 0.6:
        query["url"] = _random.choice(URLS)
        if "url" in body:
            body["url"] = query["url"]
        for name in ("model_name", "handler"):
            if _random.random() < 0.7:
                query.pop(name, None)


def _bound(given: dict[str, Any]) -> None:
    for name in ("min_worker", "max_worker", "initial_workers"):
        if 0 < (_number(given.get(name)) or 0) <= 1024:
            given[name] = (_number(given[name]) or 0) % (WORKERS + 1)
    if (_number(given.get("max_batch_delay")) or 0) > DELAY_MS:
        given["max_batch_delay"] = DELAY_MS
    for name in ("startup_timeout", "response_timeout"):
        if (_number(given.get(name, -1)) or 0) != -1:
            given[name] = TIMEOUT_S


def _number(value: object) -> int | None:
    """What the server may take for a number, in a query or in a body; of repeated ones it takes the first."""
    try:
        return int(float(str(value[0] if isinstance(value, list) and value else value)))
    except (ValueError, OverflowError):
        return None


@schemathesis.check
def only_errors_that_are_told(context: Any, response: Any, case: Any) -> None:
    """A status of the fives is one that the operation names, and no bug of the server."""
    if response.status_code < 500:
        return
    told = case.operation.definition.raw["responses"]
    # Methods that an operation does not name are tried as well, and some are taken for the one it does.
    if case.method.upper() == case.operation.method.upper():
        assert str(response.status_code) in told, f"{response.status_code} is not among {sorted(told)}"
    error = response.json()
    assert error.get("tserve", {}).get("reason") not in ("bug", "internal_error"), error


@schemathesis.check
def content_types_that_are_told(context: Any, response: Any, case: Any) -> None:
    """As Schemathesis has it, but that an answer of any type, a handler's, may be of none."""
    told = case.operation.definition.raw["responses"]
    answer = told.get(str(response.status_code), told.get("default", {}))
    if "content-type" in response.headers or "*/*" not in answer.get("content", {}):
        content_type_conformance(context, response, case)


@schemathesis.check
def no_member_is_untold(context: Any, response: Any, case: Any) -> None:
    """Schemas are open, so that servers may say more one day; this one says nothing that its document does not."""
    if response.headers.get("content-type") != ["application/json"]:
        return
    told = case.operation.definition.raw["responses"]
    content = told.get(str(response.status_code), told.get("default", {})).get("content", {})
    if "application/json" in content:
        schemas = case.operation.schema.raw_schema["components"]["schemas"]
        untold = list(_untold(response.json(), content["application/json"]["schema"], schemas))
        assert not untold, f"not in the document: {untold}"


def _untold(value: Any, schema: Any, schemas: Any) -> Iterator[str]:
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        for item in value:
            yield from _untold(item, schema.get("items", {}), schemas)
    elif isinstance(value, dict) and "properties" in schema:
        for name, item in value.items():
            if name in schema["properties"]:
                yield from _untold(item, schema["properties"][name], schemas)
            elif "additionalProperties" not in schema:
                yield name
