"""The table of who may call what, held to what the ports serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.http.tables import ROLES, all_routes
from tserve.domain.access import (
    ANY_PORT,
    INFERENCE,
    MANAGEMENT,
    METRICS,
    OPEN,
    PROBE,
    RULES,
    TOKEN,
    Scope,
    rule_of_nothing,
)
from tserve.grpc.listeners import make_listeners
from tserve.services.authorization import Authorization
from tserve.services.use_cases import UseCases
from tserve.settings import Settings

HTTP = {role: {route.operation.id for route in all_routes([role])} for role in ROLES}


def grpc_methods(**settings: Any) -> dict[str, list[str]]:
    """`service/method` of each gRPC port."""
    nothing: Any = None
    cases = UseCases(*[_Anything() for _ in UseCases.__dataclass_fields__])  # type: ignore[arg-type]
    told = Settings(model_store=Path(), state_dir=Path(), ts_open_inference_protocol=True, **settings)
    listeners = make_listeners(told, cases, Authorization(nothing))
    return {
        name: [f"{service.name}/{method.name}" for service in listener.services for method in service.methods]
        for name, listener in listeners.items()
    }


class _Anything:
    def __getattr__(self, name: str) -> Any:
        return None


def test_every_route_and_every_method_has_a_rule_and_every_rule_a_use() -> None:
    served = set().union(*HTTP.values(), *map(set, grpc_methods().values()))
    assert served - RULES.keys() == set(), "without a rule, so refused"
    assert RULES.keys() - served == set(), "rules of nothing"


def test_what_strangers_may_ask() -> None:
    """All that needs no token: whatever is added here is open to the world."""
    assert {name for name, rule in RULES.items() if rule.anyone or rule.anyone_bare} == {
        *("apiDescription", "oldApiDescription", "openapi", "docs", "live", "ready"),
        "grpc.health.v1.Health/Check",
    }
    assert {name for name, rule in RULES.items() if rule == OPEN} >= {"live", "apiDescription", "oldApiDescription"}


SHARED = {"apiDescription", "oldApiDescription", "openapi", "docs", "live", "ready", "modelReady", "version_modelReady"}


@pytest.mark.parametrize(
    ("role", "rules"), [("management", {MANAGEMENT, TOKEN}), ("inference", {INFERENCE}), ("metrics", {METRICS})]
)
def test_each_port_asks_for_its_own_scope(role: str, rules: set[object]) -> None:
    """One surface forgotten was an advisory: what no port shares is asked for with the scope of its port."""
    assert {RULES[name] for name in HTTP[role] - SHARED} == rules
    assert {name for name in HTTP[role] if RULES[name] == TOKEN} <= {"renewKey"}
    assert {RULES[name] for name in HTTP[role] & SHARED} == {OPEN, PROBE, ANY_PORT}


@pytest.mark.parametrize(("listener", "rule"), [("grpc_management", MANAGEMENT), ("grpc_inference", INFERENCE)])
def test_so_does_each_port_of_grpc(listener: str, rule: object) -> None:
    standard = ("grpc.health.", "grpc.reflection.")
    own = [name for name in grpc_methods()[listener] if not name.startswith(standard)]
    assert own
    assert {RULES[name] for name in own} == {rule}


def test_what_a_port_does_not_have_asks_for_its_scopes() -> None:
    assert rule_of_nothing(["management", "inference"]).scopes == {Scope.MANAGEMENT, Scope.INFERENCE}
    assert rule_of_nothing(["metrics"]) == METRICS
    for roles in (["inference"], ["management"], ["inference", "management", "metrics"]):
        assert not rule_of_nothing(roles).anyone
        assert not rule_of_nothing(roles).anyone_bare
