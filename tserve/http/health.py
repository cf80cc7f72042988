"""Health for orchestrators as routes, the same on every port (docs/health.md)."""

from __future__ import annotations

from tserve.http.openapi_inference import LIVE, MODEL_READY, SERVER_READINESS, VERBOSE, VERSION_READY
from tserve.http.render import json_reply
from tserve.http.routes import Call, Reply, Route, Table
from tserve.services.health import Health, State, VersionHealth

_READ = frozenset({"GET", "HEAD"})


def health_routes(health: Health) -> Table:
    """To stand before other tables, whose patterns begin with names."""
    api = _HealthApi(health)
    return [
        Route(_READ, "/tserve/livez", api.livez, LIVE),
        Route(_READ, "/tserve/readyz", api.readyz, SERVER_READINESS),
        Route(_READ, "/tserve/readyz/models/{name}", api.model, MODEL_READY),
        Route(_READ, "/tserve/readyz/models/{name}/{version}", api.model, VERSION_READY),
    ]


class _HealthApi:
    def __init__(self, health: Health) -> None:
        self._health = health

    async def livez(self, call: Call) -> Reply:
        """That this is answered is all there is to know."""
        return json_reply(200, {"status": "live"})

    async def readyz(self, call: Call) -> Reply:
        """Whether every version has the workers that it wants."""
        versions = self._health.all()
        ready = all(version.lacks_nothing for version in versions)
        shown: dict[str, object] = {"models": _by_model(versions)} if _is_verbose(call) else {}
        return _reply(ready, shown)

    async def model(self, call: Call) -> Reply:
        """Whether requests to this model or version are served in full: one without workers is not ready."""
        version = self._health.one(call.args["name"], call.args.get("version"))
        return _reply(version.state is State.READY, {"modelName": version.key.name, **_shown(version)})


def _reply(ready: bool, shown: dict[str, object]) -> Reply:
    return json_reply(200 if ready else 503, {"status": "ready" if ready else "not ready", **shown})


def _is_verbose(call: Call) -> bool:
    """`?verbose` alone says yes, too."""
    given = call.query[VERBOSE]
    return given is not None and given.lower() not in ("false", "0")


def _by_model(versions: list[VersionHealth]) -> list[dict[str, object]]:
    models: dict[str, list[dict[str, object]]] = {}
    for version in versions:
        models.setdefault(version.key.name, []).append(_shown(version))
    return [{"modelName": name, "versions": each} for name, each in models.items()]


def _shown(version: VersionHealth) -> dict[str, object]:
    shown: dict[str, object] = {
        "modelVersion": version.key.version,
        "default": version.is_default,
        "state": version.state.value,
        "ready": version.ready,
        "wanted": version.wanted,
    }
    if version.failure is not None:
        shown["lastFailure"] = {"reason": version.failure.reason, "detail": version.failure.summary}
    return shown
