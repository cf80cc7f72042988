"""Registrations under way over HTTP (docs/sources.md)."""

from __future__ import annotations

from tserve.http.openapi_management import REGISTRATIONS
from tserve.http.render import json_reply
from tserve.http.routes import Call, Reply, Route
from tserve.services.management import Management


def registrations_route(management: Management) -> Route:
    async def registrations(call: Call) -> Reply:
        return json_reply(200, {"registrations": management.registrations.shown()})

    return Route(frozenset({"GET"}), "/tserve/registrations", registrations, REGISTRATIONS)
