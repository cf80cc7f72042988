"""The page for people: one HTML file made of the true document, with no script and nothing from elsewhere.

Only the address in its examples differs between requests.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlencode

_HOST_MARK: Final = "{{host}}"  # escape() leaves braces alone, and no document has two of them
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_NO_HOST: Final = "localhost"


@dataclass(frozen=True, slots=True)
class Page:
    """`parts`: what stands between the places where the address belongs."""

    parts: Sequence[bytes]
    headers: tuple[tuple[str, str], ...]

    def at(self, host: str) -> bytes:
        """The page for a client that came by this Host header; one that no host can have is not shown."""
        return (host if _HOST.fullmatch(host) else _NO_HOST).encode().join(self.parts)


def page_of(document: Mapping[str, Any], roles: Sequence[str]) -> Page:
    style = files("tserve.http").joinpath("docs.css").read_text()
    text = _page(document, roles, style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    headers = (
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", f"{policy}; frame-ancestors 'none'"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    )
    return Page([part.encode() for part in text.split(_HOST_MARK)], headers)


def _page(document: Mapping[str, Any], roles: Sequence[str], style: str) -> str:
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}: {' and '.join(roles)}")
    operations = [(path, method, about) for path, item in document["paths"].items() for method, about in item.items()]
    tags = [(tag, [each for each in operations if tag["name"] in each[2]["tags"]]) for tag in document["tags"]]
    schemas = document["components"]["schemas"]
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<div class=page>\n",
            f"<nav>\n{''.join(_nav(tag, each) for tag, each in tags)}{_nav_of_schemas(schemas)}</nav>\n",
            f"<main>\n<h1>{title}</h1>\n<p>{_prose(info['description'])}</p>\n",
            '<p>Made of <a href="openapi.json">openapi.json</a>, which is for programs.</p>\n',
            *(_section(tag, each) for tag, each in tags),
            '<h2 id="schemas">Schemas</h2>\n',
            *(_schema(name, schema) for name, schema in schemas.items()),
            "</main>\n</div>\n</body>\n</html>\n",
        ]
    )


Placed = tuple[str, str, Mapping[str, Any]]


def _nav(tag: Mapping[str, str], operations: Iterable[Placed]) -> str:
    links = "".join(
        f'<li><a href="#{escape(about["operationId"])}">{_method(method)}<span>{_breakable(path)}</span></a></li>\n'
        for path, method, about in operations
    )
    return f"<h2>{escape(tag['name'])}</h2>\n<ul>\n{links}</ul>\n"


def _nav_of_schemas(schemas: Iterable[str]) -> str:
    links = "".join(f'<li><a href="#schema-{escape(name)}">{escape(name)}</a></li>\n' for name in schemas)
    return f"<h2>schemas</h2>\n<ul>\n{links}</ul>\n"


def _method(method: str) -> str:
    return f'<span class="method {method}">{method.upper()}</span>'


def _section(tag: Mapping[str, str], operations: Iterable[Placed]) -> str:
    about = escape(tag["description"])
    return f"<h2>{escape(tag['name'].capitalize())}</h2>\n<p class=quiet>{about}</p>\n" + "".join(
        _article(*operation) for operation in operations
    )


def _article(path: str, method: str, about: Mapping[str, Any]) -> str:
    deprecated = " deprecated" if about.get("deprecated") else ""
    parts = [
        f'<article id="{escape(about["operationId"])}">\n<h3>{escape(about["summary"])}</h3>\n',
        f'<p class="path{deprecated}">{_method(method)}{escape(path)}</p>\n',
        f"<p>{_prose(about['description'])}</p>\n" if "description" in about else "",
        f"<pre>{_curl(path, method, about)}</pre>\n",
        _parameters(about["parameters"]),
    ]
    if "requestBody" in about:
        body = about["requestBody"]
        rows = [(f"<code>{escape(media)}</code>", _type(each["schema"])) for media, each in body["content"].items()]
        parts += [f"<h4>Body, optional</h4>\n<p>{_prose(body['description'])}</p>\n", _table(("type", "what"), rows)]
    answers = [
        (f"<code>{escape(status)}</code>", _prose(answer["description"]), _content(answer["content"]))
        for status, answer in about["responses"].items()
    ]
    parts += ["<h4>Answers</h4>\n", _table(("status", "when", "what"), answers), "</article>\n"]
    return "".join(parts)


def _curl(path: str, method: str, about: Mapping[str, Any]) -> str:
    """A line to paste; the address is filled in for each client."""
    examples = [(p["in"], p["name"], p["example"]) for p in about["parameters"] if "example" in p]
    for place, name, example in examples:
        if place == "path":
            path = path.replace(f"{{{name}}}", example)
    given = urlencode({name: example for place, name, example in examples if place == "query"})
    content = about.get("requestBody", {}).get("content", {})
    if "application/octet-stream" in content:
        verb, data = "", " --data-binary @input"
    else:
        verb, data = "" if method == "get" else f" -X {method.upper()}", ""
    return escape(f'curl{verb} "http://{_HOST_MARK}{path}{"?" if given else ""}{given}"{data}')


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> str:
    if not parameters:
        return ""
    rows = [
        (f"<code>{escape(p['name'])}</code>", p["in"], _type(p["schema"]), _prose(p["description"])) for p in parameters
    ]
    return "<h4>Parameters</h4>\n" + _table(("name", "in", "type", "what"), rows)


def _content(content: Mapping[str, Any]) -> str:
    """What an answer is, and of which type where that is not JSON."""
    media, first = next(iter(content.items()))
    if "*/*" in content:
        return _type(first["schema"]) + " of any type"
    return _type(first["schema"]) + ("" if media == "application/json" else f" <code>{escape(media)}</code>")


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(member)}</code>",
            _type(each) + ("" if member in required else ' <span class="quiet">optional</span>'),
            _prose(each.get("description", "")),
        )
        for member, each in schema.get("properties", {}).items()
    ]
    more = schema.get("additionalProperties")
    note = "" if more is None else "<p class=quiet>And members under further names.</p>\n"
    table = _table(("member", "type", "what"), rows)
    return f'<article id="schema-{escape(name)}">\n<h3>{escape(name)}</h3>\n{table}{note}</article>\n'


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in words, with links to named ones."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    if "enum" in schema:
        return "one of " + ", ".join(f"<code>{escape(word)}</code>" for word in schema["enum"])
    kind = schema.get("type", "anything")
    words = escape(" or ".join(kind) if isinstance(kind, list) else kind)
    if schema.get("format") == "binary":
        words = "bytes"
    return words + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    match schema.get("minimum"), schema.get("maximum"):
        case None, None:
            notes = []
        case None, most:
            notes = [f"up to {most}"]
        case least, None:
            notes = [f"from {least}"]
        case least, most:
            notes = [f"{least} to {most}"]
    if "default" in schema:
        default = schema["default"]
        notes.append(f"default {str(default).lower() if isinstance(default, bool) else default}")
    return f' <span class="quiet">{escape(", ".join(notes))}</span>' if notes else ""


def _prose(text: str) -> str:
    """A sentence; what stands in backquotes is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _breakable(path: str) -> str:
    return escape(path).replace("/", "/<wbr>")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    headings = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="table"><table>\n<thead><tr>{headings}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table></div>\n'
