"""The true OpenAPI document of a listener, made of its route table: routes, their operations, and nothing else.

What OpenAPI cannot say of a route is said in words: that any method is taken, and that a path may go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tserve import __version__
from tserve.http.openapi_shapes import ERROR
from tserve.http.operations import STRING, Answer, Operation, Parameter, Shape
from tserve.http.routes import ANY, ANY_BUT_OPTIONS, AllBut, Route, Router

OPENAPI: Final = "3.1.0"
PATH: Final = "/tserve/openapi.json"
# What a path's segments stand for; one that a pattern names and this table does not is an error.
_SEGMENTS: Final = {
    "name": ("Name of the model.", "my_model"),
    "version": ("Version of the model.", "1.0"),
}
_TAGS: Final = {
    "management": "Models, their versions and their workers.",
    "history": "What happened to models.",
    "inference": "Predictions.",
    "explanations": "Explanations of predictions.",
    "kserve": "The paths of KServe's protocols.",
    "open inference": "What the Open Inference Protocol asks besides.",
    "further paths": "Predictions by paths of other servers.",
    "health": "For orchestrators.",
    "metrics": "For Prometheus.",
    "description": "This API in documents.",
}
_UNREADABLE: Final = "The request cannot be read: a broken percent escape, or too long a line or headers."
_FOREIGN: Final = "A web page from elsewhere asks, or the server does not go by the name in Host."
_WRONG_TOKENS: Final = "Too many wrong tokens came from this address."
_SCHEME: Final = "token"
_BEARER: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of the key file, or a named token: see docs/security.md.",
}
_NO_ROUTE: Final = "The path leads nowhere."

Json = dict[str, object]


def _nothing(route: Route) -> list[str]:
    return []


def document(routes: Sequence[Route], needed_scopes: Callable[[Route], list[str]] = _nothing) -> Json:
    """The document of a listener that serves these routes; `needed_scopes` of a token, any of them, for each.

    One that an earlier route keeps from being reached is not in it.
    """
    router = Router(routes)
    shapes: dict[str, Shape] = {}
    paths: dict[str, Json] = {}
    tags: set[str] = set()
    for route in routes:
        path = path_of(route)
        for method in shown_methods(route):
            if router.find(method, [part for part in path.split("/") if part])[0] is route:
                paths.setdefault(path, {})[method.lower()] = _resolve(_operation(route, needed_scopes(route)), shapes)
                tags.add(route.operation.tag)
    schemas: Json = {}
    while len(schemas) < len(shapes):  # a shape may bring further ones
        for name in shapes.keys() - schemas.keys():
            schemas[name] = _resolve(shapes[name].schema, shapes)
    return {
        "openapi": OPENAPI,
        "info": {"title": "tserve", "description": _ABOUT, "version": __version__},
        "servers": [{"url": "/", "description": "The listener that this document comes from."}],
        "tags": [{"name": tag, "description": about} for tag, about in _TAGS.items() if tag in tags],
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": {_SCHEME: _BEARER}},
    }


_ABOUT: Final = (
    "What this listener serves. Unknown parameters are ignored, and so are numbers that cannot be read, unless an "
    "operation says otherwise. Every answer has an x-request-id."
)


def path_of(route: Route) -> str:
    """The pattern as OpenAPI writes it, without a trailing `...`."""
    return route.pattern.removesuffix("...").rstrip("/") or "/"


def shown_methods(route: Route) -> Sequence[str]:
    """The methods that the document names: GET stands for HEAD, too."""
    if isinstance(route.methods, AllBut):
        assert route.operation.shown, f"{route.pattern} takes any method: which is to be shown?"
        return route.operation.shown
    return sorted(route.methods - {"HEAD"})


def _operation(route: Route, scopes: list[str]) -> Json:
    about = route.operation
    notes = [about.description, _METHOD_NOTES.get(route.methods, "") if isinstance(route.methods, AllBut) else ""]
    if route.pattern.endswith("...") and not about.path_note:
        notes.append("Whatever follows in the path is ignored.")
    described = " ".join(note for note in (*notes, about.path_note) if note)
    return {
        "operationId": about.id,
        "tags": [about.tag],
        "summary": about.summary,
        **({"description": described} if described else {}),
        **({"deprecated": True} if about.deprecated else {}),
        "parameters": [*_path_parameters(route), *_query_parameters(about)],
        **({} if about.body is None else {"requestBody": _body(about)}),
        **({"security": [{_SCHEME: [scope]} for scope in scopes]} if scopes else {}),
        "responses": _responses(route, about, needs_token=bool(scopes)),
    }


_METHOD_NOTES: Final = {
    ANY: "Any method does the same.",
    ANY_BUT_OPTIONS: "Any method but OPTIONS does the same.",
}


def _path_parameters(route: Route) -> list[Json]:
    return [_path_parameter(name, *_SEGMENTS[name]) for name in re.findall(r"\{(\w+)\}", route.pattern)]


def _path_parameter(name: str, description: str, example: str) -> Json:
    return {
        "name": name,
        "in": "path",
        "description": description,
        "required": True,
        "schema": {"type": "string", "minLength": 1, "pattern": "^[^/]+$"},
        "example": example,
    }


def _query_parameters(about: Operation) -> list[Json]:
    parameters: list[Json] = [_query_parameter(parameter) for parameter in about.query]
    if about.free_query:
        pairs = {"type": "object", "additionalProperties": STRING}
        parameters.append(
            {"name": "pairs", "in": "query", "description": about.free_query, "style": "form", "schema": pairs}
        )
    return parameters


def _query_parameter(parameter: Parameter[Any]) -> Json:
    return {
        "name": parameter.name,
        "in": "query",
        "description": parameter.description,
        "schema": parameter.schema,
        **({} if parameter.example is None else {"example": parameter.example}),
    }


def _body(about: Operation) -> Json:
    assert about.body is not None
    content = {media: {"schema": schema} for media, schema in about.body.content.items()}
    return {"description": about.body.description, "required": False, "content": content}


def _responses(route: Route, about: Operation, *, needs_token: bool) -> Json:
    errors = {400: _UNREADABLE, 403: _FOREIGN, **about.errors}
    if needs_token:
        errors[400] = f"{errors[400]} Or there is no token, or none that is good for this."
        errors[429] = _WRONG_TOKENS
    if "{" in route.pattern:
        errors.setdefault(404, _NO_ROUTE)
    responses = {status: _response(answer) for status, answer in about.answers.items()}
    for status, description in errors.items():
        responses[status] = _response(Answer(description, ERROR))
    shown: Json = {str(status): responses[status] for status in sorted(responses)}
    return shown if about.other is None else {**shown, "default": _response(about.other)}


def _response(answer: Answer) -> Json:
    media = [answer.media, "*/*"] if answer.any_media else [answer.media]
    return {"description": answer.description, "content": {each: {"schema": answer.schema} for each in media}}


def _resolve(value: object, shapes: dict[str, Shape]) -> Any:
    """The value with references in the place of shapes, which are collected by name."""
    if isinstance(value, Shape):
        assert shapes.setdefault(value.name, value) is value, f"two shapes are called {value.name}"
        return {"$ref": f"#/components/schemas/{value.name}"}
    if isinstance(value, Mapping):
        return {name: _resolve(item, shapes) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolve(item, shapes) for item in value]
    return value
