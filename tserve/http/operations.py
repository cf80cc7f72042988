"""What is said about a route: parameters, body and answers; tserve.http.openapi makes the document of it.

Parameters are read through their declarations and only where the route's operation lists them, so that the document
and the code cannot part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar, overload

T_co = TypeVar("T_co", covariant=True)

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
LEAST_INT32: Final = -(2**31)
MOST_INT32: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A JSON schema with a name of its own in the document; shapes may stand wherever a schema may."""

    name: str
    schema: Mapping[str, object]


Schema = Mapping[str, object] | Shape

STRING: Final[Schema] = {"type": "string"}
INTEGER: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
BINARY: Final[Schema] = {"type": "string", "format": "binary"}
ANYTHING: Final[Schema] = {}


def said(schema: Schema, description: str) -> Schema:
    """A schema with a description; a shape cannot take one."""
    assert not isinstance(schema, Shape)
    return {**schema, "description": description} if description else schema


def array(items: Schema, description: str = "") -> Schema:
    return said({"type": "array", "items": items}, description)


def one_of_texts(words: Sequence[str], description: str = "") -> Schema:
    return said({"type": "string", "enum": list(words)}, description)


def object_of(
    required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None, *, more: Schema | None = None
) -> Mapping[str, object]:
    """An object; `more` is the schema of members under names of their own, where there are such."""
    return {
        "type": "object",
        **({"required": list(required)} if required else {}),
        "properties": {**required, **(optional or {})},
        **({} if more is None else {"additionalProperties": more}),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Parameter(Generic[T_co]):
    """A query parameter, or a member of a JSON body of parameters; `default` is what an absent one reads as."""

    name: str
    kind: Literal["text", "texts", "number", "flag"]
    description: str
    default: T_co
    schema: Schema
    example: str | int | None = None


@overload
def number(
    name: str, about: str, *, default: int, least: int = ..., most: int = ..., example: int | None = ...
) -> Parameter[int]: ...
@overload
def number(
    name: str, about: str, *, least: int = ..., most: int = ..., example: int | None = ...
) -> Parameter[int | None]: ...
def number(
    name: str,
    about: str,
    *,
    default: int | None = None,
    least: int = LEAST_INT32,
    most: int = MOST_INT32,
    example: int | None = None,
) -> Parameter[int] | Parameter[int | None]:
    """A 32-bit whole number; anything else reads as absent.

    To refuse one that is not from `least` to `most` is the service's business.
    """
    schema: dict[str, object] = {"type": "integer", "format": "int32"}
    if least > LEAST_INT32:
        schema["minimum"] = least
    if most < MOST_INT32:
        schema["maximum"] = most
    return Parameter(name, "number", about, default, schema | _default(default), example)


@overload
def flag(name: str, description: str, *, default: bool) -> Parameter[bool]: ...
@overload
def flag(name: str, description: str) -> Parameter[bool | None]: ...
def flag(name: str, description: str, *, default: bool | None = None) -> Parameter[bool] | Parameter[bool | None]:
    """True is `true` in any case of letters, everything else false."""
    return Parameter(name, "flag", description, default, {"type": "boolean"} | _default(default))


def text(name: str, about: str, schema: Schema = STRING, *, example: str | None = None) -> Parameter[str | None]:
    return Parameter(name, "text", about, None, schema, example)


def texts(name: str, description: str) -> Parameter[tuple[str, ...]]:
    """One that may be repeated."""
    return Parameter(name, "texts", description, (), array(STRING))


def _default(value: object) -> dict[str, object]:
    return {} if value is None else {"default": value}


@dataclass(frozen=True, slots=True)
class Answer:
    """`any_media`: a handler may say that it is of another type."""

    description: str
    schema: Schema
    media: str = JSON
    any_media: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """A request body that may be left out: its schema by media type."""

    description: str
    content: Mapping[str, Schema]


def parameters_as_json(parameters: Sequence[Parameter[Any]], description: str) -> Body:
    """The same parameters as members of a JSON object; null stands for one that is not given."""
    members = {p.name: _or_null(p) for p in parameters}
    return Body(description, {JSON: object_of({}, members, more=ANYTHING)})


def _or_null(parameter: Parameter[Any]) -> Schema:
    assert not isinstance(parameter.schema, Shape)
    schema: dict[str, Any] = {**parameter.schema, "type": [parameter.schema["type"], "null"]}
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return said(schema, parameter.description)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the document says of a route.

    `errors` are statuses with the error object, and when they come.  `other` is what any further status means, where
    a handler chooses it.  `free_query` is what pairs beyond `query` mean, where any are read.  `shown` are the methods
    that the document names, where a route takes any.  `path_note` says what becomes of what follows the pattern.
    """

    id: str
    tag: str
    summary: str
    description: str = ""
    query: tuple[Parameter[Any], ...] = ()
    free_query: str = ""
    body: Body | None = None
    answers: Mapping[int, Answer]
    errors: Mapping[int, str] = field(default_factory=dict)
    other: Answer | None = None
    shown: tuple[str, ...] = ()
    path_note: str = ""
    deprecated: bool = False
