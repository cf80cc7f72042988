"""The true document, from the very tables that listeners route by: complete, valid, and the page that is made of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from openapi_spec_validator import validate

from tests.http.client import Client
from tests.http.stack import Api, start_app
from tests.http.tables import routes_of, table
from tserve.http.docs import Page, page_of
from tserve.http.openapi import document, path_of, shown_methods
from tserve.http.params import split_path
from tserve.http.routes import Route, Router


def read(routes: list[Route]) -> dict[str, Any]:
    """As clients see it."""
    read_back: dict[str, Any] = json.loads(json.dumps(document(routes)))
    return read_back


def operations(read_document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in read_document["paths"].items():
        for method, about in item.items():
            yield path, method.upper(), about


LISTENERS = ["management", "inference", "metrics", "management inference", "management inference metrics"]


@pytest.mark.parametrize("roles", LISTENERS)
def test_the_document_is_valid(roles: str) -> None:
    validate(read(routes_of(roles)))


@pytest.mark.parametrize("roles", LISTENERS)
def test_every_route_is_in_the_document_and_nothing_else(roles: str) -> None:
    """Each operation that the document names is routed to the route that it was made of.

    On a shared port /models/{name}/{version} comes first: for OPTIONS, "invoke" is a version there.
    """
    routes = routes_of(roles)
    router = Router(routes)
    named = set()
    for path, method, about in operations(read(routes)):
        sample = re.sub(r"\{\w+\}", "sample", path)
        route, args, _ = router.find(method, split_path(sample.encode()) or [])
        assert route.operation.id == about["operationId"], (method, path)
        assert {p["name"] for p in about["parameters"] if p["in"] == "path"} == args.keys()
        named.add((path, method))
    everything = {(path_of(route), method) for route in routes for method in shown_methods(route)}
    hidden = {("/models/{name}/invoke", "OPTIONS")} if {"management", "inference"} <= set(roles.split()) else set()
    assert named == everything - hidden


@pytest.mark.parametrize("roles", LISTENERS)
def test_what_an_operation_says(roles: str) -> None:
    told = read(routes_of(roles))
    found, tags = list(operations(told)), {tag["name"] for tag in told["tags"]}
    ids = [about["operationId"] for _, _, about in found]
    assert len(ids) == len(set(ids))
    for _, _, about in found:
        assert about["summary"]
        assert set(about["tags"]) <= tags
        assert all(p["description"] for p in about["parameters"])
        # Anything may be refused for its form; nothing is answered without a success.
        assert "400" in about["responses"]
        assert about["responses"].keys() & {"200", "501"}


def test_a_route_of_any_method_says_so() -> None:
    ping = read(routes_of("inference"))["paths"]["/ping"]
    assert list(ping) == ["get"]
    assert "Any method does the same." in ping["get"]["description"]


def test_what_is_switched_off_is_not_in_the_document() -> None:
    paths = read(routes_of("management", model_api=False))["paths"]
    assert list(paths["/models"]) == ["get"]
    assert sorted(paths["/models/{name}"]) == ["get", "options", "put"]


def test_parameters_are_as_they_are_read() -> None:
    by_name = {p["name"]: p for p in read(routes_of("management"))["paths"]["/models/{name}"]["put"]["parameters"]}
    assert by_name["min_worker"]["schema"] == {
        "type": "integer",
        "format": "int32",
        "minimum": 0,
        "maximum": 1024,
        "default": 1,
    }
    assert by_name["synchronous"]["schema"] == {"type": "boolean", "default": False}
    assert by_name["name"]["in"] == "path"


# ---- over the wire


async def test_every_port_tells_its_own(api: Api) -> None:
    for client, inside in ((api.management, "/models"), (api.inference, "/ping")):
        told = await client.get("/tserve/openapi.json")
        assert (told.status, dict(told.headers)["content-type"]) == (200, "application/json")
        paths = {"/models", "/ping"} & told.json["paths"].keys()
        assert paths == {inside}
        recorded = await client.ask("OPTIONS", "/")
        assert {"/models", "/ping"} & recorded.json["paths"].keys() == {inside}
        assert (await client.ask("BREW", "/api-description")).json == recorded.json
        assert (await client.ask("POST", "/tserve/openapi.json")).status == 405


async def test_the_recorded_document_of_a_shared_port_has_both(nursery: Any) -> None:
    client = await start_app(nursery, [table("management"), table("inference")], roles=["management", "inference"])
    paths = (await client.ask("OPTIONS", "/")).json["paths"]
    assert {"/models", "/ping", "/metrics", "/", "/api-description"} <= paths.keys()


async def test_recorded_documents_of_a_model(api: Api) -> None:
    await api.services.register()
    for target in ("/models/noop", "/models/noop/1.0"):
        told = (await api.management.ask("OPTIONS", target)).json
        assert told["info"]["title"] == "RESTful Management API for: noop"
        assert len(told["paths"]) == 3
    for target in ("/predictions/noop", "/explanations/noop/1.0/x", "/invocations?model_name=noop", "/noop/predict"):
        told = (await api.inference.ask("OPTIONS", target)).json
        assert told["info"] == {"title": "RESTful API for: noop", "version": "1.0.0"}
        assert next(iter(told["paths"])) == "/prediction/noop"
    assert (await api.management.ask("OPTIONS", "/models/noop/2.0")).status == 404
    assert (await api.inference.ask("OPTIONS", "/noop/2.0/predict")).status == 404


# ---- the page


class _Reader(HTMLParser):
    """What a page refers to, and what it would run or fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "srcset", "data")]
        self.handlers += [name for name in given if name.startswith("on") or name == "style"]
        if "id" in given:
            self.ids.append(given["id"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


async def page(client: Client, host: str) -> tuple[dict[str, str], str]:
    async with client.connect() as connection:
        answer = await connection.raw("GET", f"GET /tserve/docs HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.status == 200
    return dict(answer.headers), answer.body.decode()


@pytest.mark.parametrize("roles", LISTENERS)
def test_the_page_stands_alone(roles: str) -> None:
    """Links lead into it, but for the document; nothing is fetched, nothing runs."""
    read_document = read(routes_of(roles))
    seen = _Reader(page_of(read_document, roles.split()).at("h:1").decode())
    assert seen.tags.isdisjoint({"script", "link", "img", "iframe", "object", "form", "base"})
    assert seen.handlers == []
    assert len(seen.ids) == len(set(seen.ids))
    assert {link for link in seen.links if not link.startswith("#")} == {"openapi.json"}
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    for path, _, about in operations(read_document):
        assert path in seen.text
        assert about["operationId"] in seen.ids


async def test_the_page_is_served_under_a_strict_policy(api: Api) -> None:
    headers, text = await page(api.management, "localhost")
    assert headers["content-type"] == "text/html; charset=utf-8"
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert "url(" not in style


async def test_examples_have_the_address_that_was_asked(api: Api) -> None:
    _, text = await page(api.management, "127.0.0.1:8081")
    assert "curl -X PUT &quot;http://127.0.0.1:8081/models/my_model?min_worker=2&quot;" in text


@pytest.fixture(scope="module")
def management_page() -> Page:
    return page_of(read(routes_of("management")), ["management"])


@pytest.mark.parametrize("host", ["model-host:8081", "127.0.0.1:8081", "[::1]:8081", "a_b.example"])
def test_examples_may_have_any_address(management_page: Page, host: str) -> None:
    text = management_page.at(host).decode()
    assert f"curl -X PUT &quot;http://{host}/models/my_model?min_worker=2&quot;" in text


@pytest.mark.parametrize(
    "host",
    [
        '"><script>alert(1)</script>',
        "h&amp;",
        "a b",
        "'onload='x",
        "h/`id`",
        "$(id)",
        "h:80:80",
        "x" * 300,
        "h:123456",
        "",
    ],
)
def test_no_other_text_gets_into_the_page(management_page: Page, host: str) -> None:
    """Such a Host is refused long before; the page does not count on it."""
    assert management_page.at(host) == management_page.at("localhost")
