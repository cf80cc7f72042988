"""The history of models over HTTP (docs/events.md): parameters are checked, members are named as describe's are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tserve.domain.history import PastEvent
from tserve.domain.times import shown_time
from tserve.errors import BadRequest
from tserve.http.openapi_management import EVENTS, EVENTS_LIMIT, EVENTS_MOST, EVENTS_PAGE, EVENTS_TOKEN, VERSION_EVENTS
from tserve.http.operations import Parameter
from tserve.http.params import Query
from tserve.http.render import json_reply
from tserve.http.routes import Call, Reply, Route, Table
from tserve.services.history import History

_LAST_INT64: Final = 2**63 - 1
_NUMBER = re.compile(r"[0-9]{1,19}")
_DESCRIBE_NAMES: Final = {"url": "modelUrl"}


def history_routes(history: History) -> Table:
    async def events(call: Call) -> Reply:
        limit = _number(call.query, EVENTS_LIMIT, range(1, EVENTS_MOST + 1), f"a whole number from 1 to {EVENTS_MOST}")
        before = _number(call.query, EVENTS_TOKEN, range(1, _LAST_INT64 + 1), "the nextPageToken of a page")
        page = await history.page(
            call.args["name"], call.args.get("version"), limit=EVENTS_PAGE if limit is None else limit, before=before
        )
        token = {} if page.next_before is None else {"nextPageToken": str(page.next_before)}
        return json_reply(200, {**token, "events": [shown(event) for event in page.events]})

    return [
        Route(frozenset({"GET"}), "/tserve/models/{name}/events", events, EVENTS),
        Route(frozenset({"GET"}), "/tserve/models/{name}/{version}/events", events, VERSION_EVENTS),
    ]


def _number(query: Query, wanted: Parameter[str | None], allowed: range, meaning: str) -> int | None:
    """Unlike the contract's own parameters, one that makes no sense is refused; None when it is not given."""
    name, text = wanted.name, query[wanted]
    if text is None:
        return None
    if _NUMBER.fullmatch(text) is None or int(text) not in allowed:
        value = text[:200]
        raise BadRequest(
            f"Parameter {name} must be {meaning}: {value}", cause={"field": name, "value": value, "allowed": meaning}
        )
    return int(text)


def shown(past: PastEvent) -> dict[str, object]:
    """An event as clients see it: what does not apply is left out, the long tail comes last."""
    event, actor = past.event, past.event.actor
    own: dict[str, object] = {
        "number": past.number,
        "at": shown_time(event.at),
        "kind": event.kind,
        "model": event.key.name,
        "version": event.key.version,
        "worker": None if event.worker is None else str(event.worker),
        "pid": event.pid,
        "actor": actor.address if actor is not None else None,
        "requestId": (actor.request_id or None) if actor is not None else None,
        "before": _camel_case(past.before),
        "after": _camel_case(past.after),
    }
    present = {name: value for name, value in own.items() if value is not None}
    told = {name: value for name, value in event.detail.items() if value is not None}
    detail = {name: value for name, value in (_camel_case(told) or {}).items() if name not in own}
    return present | detail | ({"logTail": event.log_tail} if event.log_tail else {})


def _camel_case(document: Mapping[str, object] | None) -> dict[str, object] | None:
    """`max_workers` as `maxWorkers`, `load_s` as `loadSeconds`; the members of members likewise."""
    if document is None:
        return None
    return {
        _member(name): _camel_case(value) if isinstance(value, Mapping) else value for name, value in document.items()
    }


def _member(name: str) -> str:
    first, *words = re.sub(r"_s$", "_seconds", name).split("_")
    return _DESCRIBE_NAMES.get(name, first + "".join(word.capitalize() for word in words))
