"""KServe's routes beside predictions: readiness for v1, and what the Open Inference Protocol adds (section 7).

Predictions under KServe's paths are in the table of inference.py, since they are always there.
"""

from __future__ import annotations

from tserve.errors import ModelNotFound
from tserve.http.openapi_inference import OIP_LIVE, OIP_MODEL, OIP_MODEL_READY, OIP_READY, OIP_SERVER, OIP_VERSIONS
from tserve.http.openapi_management import READY
from tserve.http.render import json_reply
from tserve.http.routes import ANY, Call, Reply, Route, Table
from tserve.services.open_inference import EXTENSIONS, NAME, PLATFORM, VERSION, OpenInference

_READ = frozenset({"GET", "HEAD"})


def readiness_routes(protocol: OpenInference) -> Table:
    """For the management port, where v1 has it."""
    return [Route(frozenset({"GET"}), "/v1/models/{name}", _KserveApi(protocol).readiness, READY)]


def open_inference_routes(protocol: OpenInference) -> Table:
    """For the inference port, to stand before tables whose patterns begin with names."""
    api = _KserveApi(protocol)
    return [
        Route(ANY, "/v2", api.server, OIP_SERVER),
        Route(ANY, "/v2/health/live", api.live, OIP_LIVE),
        Route(ANY, "/v2/health/ready", api.ready, OIP_READY),
        Route(_READ, "/v2/models/{name}", api.model, OIP_MODEL),
        Route(_READ, "/v2/models/{name}/ready", api.model_ready, OIP_MODEL_READY),
        Route(ANY, "/v2/models/{name}/versions/{version}/...", api.versions, OIP_VERSIONS),
    ]


class _KserveApi:
    def __init__(self, protocol: OpenInference) -> None:
        self._protocol = protocol

    async def readiness(self, call: Call) -> Reply:
        """What follows a colon is ignored, as recorded, unless it belongs to the name."""
        name = call.args["name"]
        try:
            ready = self._protocol.is_ready(name)
        except ModelNotFound:
            name = name.partition(":")[0]
            ready = self._protocol.is_ready(name)
        return json_reply(200, {"name": name, "ready": ready})

    async def server(self, call: Call) -> Reply:
        """The recorded member is misspelt; the protocol's own stands beside it."""
        return json_reply(
            200,
            {"name": NAME, "version": VERSION, "extenstion": EXTENSIONS, "extensions": EXTENSIONS},
        )

    async def live(self, call: Call) -> Reply:
        return json_reply(200, {"live": True})

    async def ready(self, call: Call) -> Reply:
        ready = self._protocol.server_is_ready()
        return json_reply(200 if ready else 503, {"ready": ready})

    async def model(self, call: Call) -> Reply:
        found = self._protocol.metadata(call.args["name"])
        shown = {
            "name": found.name,
            "versions": found.versions,
            "platform": PLATFORM,
            "inputs": found.inputs,
            "outputs": found.outputs,
        }
        return json_reply(200, shown)

    async def model_ready(self, call: Call) -> Reply:
        name = call.args["name"]
        ready = self._protocol.is_ready(name)
        return json_reply(200 if ready else 503, {"name": name, "ready": ready})

    async def versions(self, call: Call) -> Reply:
        """Whatever is asked of them, as recorded."""
        return json_reply(501, {"error": "Model versioning is not yet supported."})
