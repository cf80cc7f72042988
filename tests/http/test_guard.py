"""Tokens at an app: one port for several APIs, many wrong tokens, and what the document says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from openapi_spec_validator import validate

from tests.http.client import Answer, Client
from tests.http.stack import make_guard, serving, start_app
from tests.http.tables import table
from tserve.domain.access import RULES, Scope
from tserve.http.descriptions import with_descriptions
from tserve.http.openapi import document, path_of, shown_methods
from tserve.http.operations import Operation
from tserve.http.routes import ANY, Call, Reply, Route
from tserve.services.authorization import WRONG_TOKENS, Authorization
from tserve.services.keys import new_keys


@pytest.fixture
def check() -> Authorization:
    return Authorization(new_keys(3600))


def headers(check: Authorization, scope: Scope) -> list[tuple[str, str]]:
    assert check.keys is not None
    return [("Authorization", f"Bearer {check.keys[scope].text}")]


def why(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.json.get("tserve", {}).get("reason") if answer.status >= 400 else None


async def test_one_port_for_both_apis_asks_each_route_for_its_own(tmp_path: Path, check: Authorization) -> None:
    """Upstream checks one header for both keys there, which no header passes."""
    inference, management = headers(check, Scope.INFERENCE), headers(check, Scope.MANAGEMENT)
    async with serving(tmp_path, shared=True, authorization=check) as api:
        client: Client = api.management
        for path, right, wrong in (("/models", management, inference), ("/ping", inference, management)):
            assert why(await client.ask("GET", path, headers=right)) == (200, None)
            assert why(await client.ask("GET", path, headers=wrong)) == (400, "wrong_scope")
            assert why(await client.get(path)) == (400, "no_token")
        for known in (inference, management):
            assert why(await client.ask("GET", "/nowhere", headers=known)) == (404, None)
        assert why(await client.ask("GET", "/nowhere", headers=headers(check, Scope.TOKEN))) == (400, "wrong_scope")


async def test_many_wrong_tokens_are_too_many_and_a_right_one_is_right(
    nursery: trio.Nursery, check: Authorization
) -> None:
    client = await start_app(nursery, [table("inference")], roles=["inference"], authorization=check)
    wrong = [("Authorization", "Bearer wrong")]
    answers = [await client.ask("GET", "/nowhere", headers=wrong) for _ in range(WRONG_TOKENS + 1)]
    assert [why(answer) for answer in answers] == [(400, "wrong_token")] * WRONG_TOKENS + [(429, "wrong_tokens")]
    assert answers[-1].json["type"] == "TooManyRequestsException"
    assert why(await client.ask("GET", "/nowhere", headers=headers(check, Scope.INFERENCE))) == (404, None)


@pytest.mark.parametrize("tokens", [False, True])
async def test_a_route_without_a_rule_is_refused(nursery: trio.Nursery, check: Authorization, tokens: bool) -> None:
    async def handler(call: Call) -> Reply:
        return Reply(200, b"")

    about = Operation(id="forgotten", tag="", summary="", answers={}, shown=("GET",))
    routes = [[Route(ANY, "/forgotten", handler, about)]]
    client = await start_app(nursery, routes, roles=["management"], authorization=check if tokens else None)
    answer = await client.ask("GET", "/forgotten", headers=headers(check, Scope.MANAGEMENT))
    assert why(answer) == (500, "no_rule")


@pytest.mark.parametrize("role", ["management", "inference", "metrics"])
@pytest.mark.parametrize("metrics", [False, True])
def test_the_document_says_what_takes_a_token(check: Authorization, role: str, metrics: bool) -> None:
    check = Authorization(check.keys, metrics_need_token=metrics)
    guard = make_guard([role], authorization=check)
    routes = with_descriptions([role], [table(role, tokens=True)], guard)
    said: dict[str, Any] = document(routes, guard.needed_scopes)
    validate(said)
    assert said["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for route in routes:
        rule = RULES[route.operation.id]
        for method in shown_methods(route):
            operation = said["paths"][path_of(route)][method.lower()]
            if rule.anyone or rule.anyone_bare or (route.operation.id == "metrics" and not metrics):
                assert "security" not in operation
                assert "429" not in operation["responses"]
            else:
                assert operation["security"] == [{"token": [scope]} for scope in sorted(rule.scopes)]
                assert {"400", "403", "429"} <= operation["responses"].keys()


def test_without_a_check_nothing_is_said_to_take_one() -> None:
    guard = make_guard(["management"])
    said: Any = document(with_descriptions(["management"], [table("management")], guard), guard.needed_scopes)
    assert not any("security" in operation for item in said["paths"].values() for operation in item.values())
