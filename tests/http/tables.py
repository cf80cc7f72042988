"""The very tables that listeners route by, over no services: for what holds whatever is behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.http.stack import make_guard
from tserve.http.descriptions import with_descriptions
from tserve.http.health import health_routes
from tserve.http.inference import inference_routes
from tserve.http.kserve import open_inference_routes, readiness_routes
from tserve.http.management import management_routes
from tserve.http.metrics import metrics_routes
from tserve.http.routes import Route, Table
from tserve.http.token import token_routes

NOTHING: Any = None  # a service that no handler gets as far as calling


def table(role: str, *, model_api: bool = True, tokens: bool = False) -> Table:
    health = health_routes(NOTHING)
    match role:
        case "management":
            managing = management_routes(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, model_api=model_api)
            return [*health, *managing, *readiness_routes(NOTHING), *(token_routes(NOTHING) if tokens else ())]
        case "inference":
            return [*health, *open_inference_routes(NOTHING), *inference_routes(NOTHING, NOTHING, NOTHING)]
    return [*health, *metrics_routes(NOTHING)]


def routes_of(roles: str, **options: Any) -> list[Route]:
    split = roles.split()
    return with_descriptions(split, [table(role, **options) for role in split], make_guard(split))


ROLES = ("management", "inference", "metrics")


def all_routes(roles: Sequence[str]) -> list[Route]:
    """As with everything switched on."""
    return routes_of(" ".join(roles), tokens=True)
