"""What Prometheus scrapes, on the metrics listener (spec/server.md section 10.1)."""

from __future__ import annotations

from typing import Final

import trio

from tserve.http.operations import STRING, Answer, Operation, texts
from tserve.http.routes import ANY, Call, Reply, Route, Table
from tserve.metrics.exposition import CONTENT_TYPE, text_of
from tserve.metrics.recorder import Metrics

NAMES: Final = texts("name[]", "Show the metrics of these names only.")
_SCRAPE: Final = Operation(
    id="metrics",
    tag="metrics",
    summary="All metrics, as Prometheus reads them",
    description="In `log` mode, the default, those that begin with `tserve_` only: see `metrics_mode`.",
    query=(NAMES,),
    answers={200: Answer("The metrics.", STRING, CONTENT_TYPE)},
    shown=("GET",),
    path_note="What follows is ignored.",
)


def metrics_routes(metrics: Metrics) -> Table:
    """Any method and anything below the path, as recorded."""

    one_at_a_time = trio.CapacityLimiter(1)

    async def scrape(call: Call) -> Reply:
        shown = metrics.page(call.query[NAMES])
        text = await trio.to_thread.run_sync(text_of, shown, limiter=one_at_a_time)
        return Reply(200, text, (("content-type", CONTENT_TYPE),))

    return [Route(ANY, "/metrics/...", scrape, _SCRAPE)]
