"""The history of models and explicit retry, over HTTP (docs/events.md)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from trio.testing import wait_all_tasks_blocked

from tests.http.client import Answer
from tests.http.stack import Api, echo
from tests.services.stack import until
from tserve.domain.events import Happening, WorkerEvent
from tserve.domain.versions import Key
from tserve.errors import InternalServer


async def told(api: Api, path: str = "noop/events", **query: object) -> list[Any]:
    answer = await api.management.get(f"/tserve/models/{path}?{'&'.join(f'{k}={v}' for k, v in query.items())}")
    assert answer.status == 200, answer
    events: list[Any] = answer.json["events"]
    return events


def request_id(answer: Answer) -> str:
    (found,) = [value for name, value in answer.headers if name.lower() == "x-request-id"]
    return found


async def test_each_call_that_changes_something(api: Api) -> None:
    """In the answer's own request id a client finds what its call did."""
    api.services.mar("two.mar", version="2.0")
    client = api.management
    calls = [
        await client.post("/models?url=noop.mar"),
        await client.post("/models?url=two.mar"),
        await client.put("/models/noop?min_worker=1&synchronous=true"),
        await client.put("/models/noop/2.0/set-default"),
        await client.post("/tserve/models/noop/1.0/retry?synchronous=true"),
        await client.delete("/models/noop/1.0"),
    ]
    assert [call.status for call in calls] == [200] * 6
    events = [event for event in (await told(api))[::-1] if "requestId" in event]
    assert [(event["kind"], event["version"]) for event in events] == [
        ("register", "1.0"),
        ("register", "2.0"),
        ("scale", "1.0"),
        ("set_default", "2.0"),
        ("retry", "1.0"),
        ("unregister", "1.0"),
    ]
    assert [event["requestId"] for event in events] == [request_id(call) for call in calls]
    assert {event["actor"] for event in events} == {"127.0.0.1"}
    register, _, scale, default, retry, unregister = events
    assert list(register) == ["number", "at", "kind", "model", "version", "actor", "requestId", "after"]
    assert register["after"] == {
        "modelUrl": "noop.mar",
        "digest": register["after"]["digest"],
        "handler": "ok",
        "runtime": "python",
        "batchSize": 1,
        "maxBatchDelay": 100,
        "responseTimeout": 120,
        "startupTimeout": 120,
        "minWorkers": 0,
        "maxWorkers": 0,
    }
    assert (scale["before"], scale["after"]) == (
        {"minWorkers": 0, "maxWorkers": 0},
        {"minWorkers": 1, "maxWorkers": 1},
    )
    assert (default["before"], default["after"]) == ({"defaultVersion": "1.0"}, {"defaultVersion": "2.0"})
    assert unregister["before"] == register["after"] | scale["after"]
    assert "after" not in unregister
    assert {"before", "after"}.isdisjoint(retry)


async def test_what_changes_nothing_is_not_told(api: Api) -> None:
    await api.management.post("/models?url=noop.mar")
    for call in ("noop?min_worker=0", "noop/1.0/set-default"):
        await api.management.put(f"/models/{call}")
    await api.management.post("/models?url=noop.mar")
    assert [event["kind"] for event in await told(api)] == ["register"]


async def test_the_life_of_a_worker(api: Api) -> None:
    """What a worker of this server reports, from its start to its end."""
    await api.up()
    await api.services.unregister()
    await wait_all_tasks_blocked()
    worker = [event for event in await told(api) if "worker" in event]
    assert [event["kind"] for event in worker] == ["worker_stopped", "worker_ready"]
    for event in worker:
        assert (event["worker"], event["pid"]) == ("9000", 4711)
        assert {"actor", "requestId", "before", "after"}.isdisjoint(event)


async def test_members_are_named_as_describes(api: Api) -> None:
    detail = {
        "reason": "crashed",
        "exit": "signal SIGKILL",
        "next_try_s": 1.0,
        "why": {"max_x": 1},
        "number": "no",
        "gone": None,
    }
    event = WorkerEvent(1700000000.0625, Key("noop", "1.0"), 9001, 12, Happening.DIED, detail, "last\nwords\n")
    api.services.history.report(event)
    await wait_all_tasks_blocked()
    assert await told(api) == [
        {
            "number": 1,
            "at": "2023-11-14T22:13:20.062Z",
            "kind": "worker_died",
            "model": "noop",
            "version": "1.0",
            "worker": "9001",
            "pid": 12,
            "reason": "crashed",
            "exit": "signal SIGKILL",
            "nextTrySeconds": 1.0,
            "why": {"maxX": 1},
            "logTail": "last\nwords\n",
        }
    ]


async def test_times_are_utc(api: Api) -> None:
    await api.management.post("/models?url=noop.mar")
    (at,) = [event["at"] for event in await told(api)]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", at)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(at)) < timedelta(minutes=1)


async def test_pages(api: Api) -> None:
    for number in range(250):
        api.services.history.report(WorkerEvent(1.7e9, Key("noop", str(number % 2)), number, 12, Happening.READY))
    await wait_all_tasks_blocked()
    target, sizes, seen = "/tserve/models/noop/events?", [], []
    for _ in range(9):
        answer = (await api.management.get(target)).json
        sizes.append(len(answer["events"]))
        seen += [event["number"] for event in answer["events"]]
        if "nextPageToken" not in answer:
            break
        assert list(answer) == ["nextPageToken", "events"]
        target = f"/tserve/models/noop/events?next_page_token={answer['nextPageToken']}"
        api.services.history.report(WorkerEvent(1.7e9, Key("noop", "0"), 0, 12, Happening.READY))
        await wait_all_tasks_blocked()
    assert (sizes, seen) == ([100, 100, 50], list(range(250, 0, -1)))
    assert len(await told(api, limit=1000)) == 252
    assert [event["version"] for event in await told(api, "noop/1/events", limit=2)] == ["1", "1"]
    assert await told(api, limit=9, next_page_token=1) == []


LIMIT = "a whole number from 1 to 1000"
TOKEN = "the nextPageToken of a page"
BAD = [
    *(("limit", value, LIMIT) for value in ("0", "-1", "1001", "", "x", "1.0", "99999999999999999999", "1e2")),
    *(("next_page_token", value, TOKEN) for value in ("0", "-1", "", "x", "9223372036854775808")),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD)
async def test_bad_parameters_are_refused(api: Api, field: str, value: str, allowed: str) -> None:
    await api.management.post("/models?url=noop.mar")
    answer = await api.management.get(f"/tserve/models/noop/events?{field}={value}")
    assert (answer.status, answer.json) == (
        400,
        {
            "code": 400,
            "type": "BadRequestException",
            "message": f"Parameter {field} must be {allowed}: {value}",
            "tserve": {"field": field, "value": value, "allowed": allowed},
        },
    )


async def test_the_largest_token_is_one(api: Api) -> None:
    await api.management.post("/models?url=noop.mar")
    assert len(await told(api, limit=1, next_page_token=2**63 - 1)) == 1


async def test_names_that_nobody_knows(api: Api) -> None:
    client = api.management
    for method, path in (("GET", "events"), ("POST", "retry")):
        answer = await client.ask(method, f"/tserve/models/nope/{path}")
        assert (answer.status, answer.json["type"]) == (404, "ModelNotFoundException")
        await client.post("/models?url=noop.mar")
        answer = await client.ask(method, f"/tserve/models/noop/2.0/{path}")
        assert (answer.status, answer.json["type"]) == (404, "ModelVersionNotFoundException")


async def test_the_history_of_what_is_gone_can_be_read(api: Api) -> None:
    name = "a b%\u6a21"
    await api.management.post(f"/models?url=noop.mar&model_name={quote(name)}")
    await api.management.delete(f"/models/{quote(name)}")
    for path in (f"{quote(name)}/events", f"{quote(name)}/1.0/events"):
        events = await told(api, path)
        assert [(event["kind"], event["model"]) for event in events] == [("unregister", name), ("register", name)]


async def test_a_history_that_cannot_be_read(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise InternalServer("The state could not be read.", cause={"reason": "storage"})

    monkeypatch.setattr(api.services.store, "events", fail)
    answer = await api.management.get("/tserve/models/noop/events")
    assert (answer.status, answer.json["tserve"]) == (500, {"reason": "storage"})


# ---- retry


async def gave_up(api: Api) -> None:
    """One worker wanted, whose handler is missing."""
    api.services.mar(handler="late")
    await api.management.post("/models?url=noop.mar&initial_workers=1")
    await until(lambda: api.services.described()["workers"][0]["tserve"]["phase"] == "failed")


@pytest.mark.parametrize("version", ["", "/1.0"])
async def test_retry(api: Api, version: str) -> None:
    await gave_up(api)
    api.handlers["late"] = echo
    answer = await api.management.post(f"/tserve/models/noop{version}/retry?synchronous=TRUE")
    shown = " version: 1.0" if version else ""
    assert (answer.status, answer.json) == (200, {"status": f'Workers of model "noop"{shown} are up'})
    assert api.services.statuses() == ["READY"]


async def test_retry_without_waiting(api: Api) -> None:
    await gave_up(api)
    api.handlers["late"] = echo
    answer = await api.management.post("/tserve/models/noop/retry")
    assert (answer.status, answer.json) == (202, {"status": "Processing worker updates..."})
    await until(lambda: api.services.statuses() == ["READY"])


async def test_a_retry_in_vain(api: Api) -> None:
    await gave_up(api)
    answer = await api.management.post("/tserve/models/noop/retry?synchronous=true")
    assert answer.status == 500
    assert answer.json["message"] == "Failed to start workers for model noop version: null"
    assert answer.json["tserve"]["reason"] == "handler_not_found"


async def test_a_retry_of_no_workers(api: Api) -> None:
    await api.management.post("/models?url=noop.mar")
    answer = await api.management.post("/tserve/models/noop/retry")
    assert (answer.status, answer.json["status"]) == (
        200,
        'No workers are wanted for model "noop": nothing to start. Use scale workers API to add workers.',
    )
