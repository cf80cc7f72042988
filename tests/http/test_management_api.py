"""The management API over real sockets: what it answers when all goes well (spec/management.md sections 1 and 2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio

from tests.http.client import Answer
from tests.http.stack import Api, serving, silent
from tests.services.stack import until
from tserve.domain.cursors import FIRST_TOKEN

JSON = "application/json"
ZERO = 'Model "{}" Version: {} registered with 0 initial workers. Use scale workers API to add workers for the model.'


def status(answer: Answer) -> tuple[int, str]:
    """Code and sentence of a command's answer, which has nothing else."""
    assert list(answer.json) == ["status"], answer
    assert answer.body.decode() == json.dumps(answer.json, indent=2, ensure_ascii=False) + "\n"
    return answer.status, answer.json["status"]


async def registered(api: Api, *names: str) -> None:
    for name in names:
        assert (await api.management.post(f"/models?url=noop.mar&model_name={quote(name, safe='')}")).status == 200


async def described(api: Api, path: str = "/models/noop") -> Any:
    answer = await api.management.get(path)
    assert answer.status == 200, answer
    return answer.json


# ---- register


REGISTER = [
    ("url=noop.mar", 200, ZERO.format("noop", "1.0")),
    ("url=noop.mar&initial_workers=0&synchronous=false", 200, ZERO.format("noop", "1.0")),
    ("url=noop.mar&initial_workers=-1", 200, ZERO.format("noop", "1.0")),
    ("url=noop.mar&initial_workers=1", 202, "Processing worker updates..."),
    ("url=noop.mar&initial_workers=1&synchronous=-1", 202, "Processing worker updates..."),
    (
        "url=noop.mar&initial_workers=2&synchronous=TRUE",
        200,
        'Model "noop" Version: 1.0 registered with 2 initial workers',
    ),
    ("url=noop.mar;initial_workers=1", 202, "Processing worker updates..."),
    ("url=noop.mar&model_name=&handler=", 200, ZERO.format("noop", "1.0")),
    ("url=noop.mar&model_name=a+b", 200, ZERO.format("a b", "1.0")),
    ("url=noop.mar&model_name=%22a%2Fb%22%3F%25", 200, ZERO.format('"a/b"?%', "1.0")),
    ("url=noop.mar&model_name=%E6%A8%A1", 200, ZERO.format("\u6a21", "1.0")),
    ("url=noop.mar&url=nowhere.mar&unknown=1&Batch_Size=2", 200, ZERO.format("noop", "1.0")),
    ("url=noop.mar&runtime=PYTHON", 200, ZERO.format("noop", "1.0")),
    ("url=noop.mar&s3_sse_kms=true", 200, ZERO.format("noop", "1.0")),
]


async def test_register(api: Api) -> None:
    answers = []
    for query, _, _ in REGISTER:
        answers.append((query, *status(await api.management.post(f"/models?{query}"))))
        (version,) = api.services.registry
        await api.services.unregister(version.key.name)
    assert answers == REGISTER


NUMBERS = ("batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "minWorkers")
UNSET = (1, 100, 120, 120, 0)


NUMBER_QUERIES = [
    ("", UNSET),
    ("batch_size=3&max_batch_delay=4&response_timeout=5&startup_timeout=6", (3, 4, 5, 6, 0)),
    ("batch_size=%2B3", (3, 100, 120, 120, 0)),
    ("batch_size=-5&max_batch_delay=-5&response_timeout=-7&startup_timeout=0", (-5, -5, -7, 0, 0)),
    ("batch_size=-1&max_batch_delay=-100&response_timeout=-1&startup_timeout=-1", UNSET),
    ("batch_size=dd&max_batch_delay=junk&response_timeout=1.5&startup_timeout=", UNSET),
    ("batch_size=2147483648&max_batch_delay=%203", UNSET),
    ("batch_size=9;max_batch_delay=3", (9, 3, 120, 120, 0)),
    ("batch_size=+3", UNSET),
]


async def test_numbers_of_the_query(api: Api) -> None:
    """What cannot be read counts as not given, in silence."""
    shown = []
    for number, (query, _) in enumerate(NUMBER_QUERIES):
        await api.management.post(f"/models?url=noop.mar&model_name=m{number}&{query}")
        (version,) = await described(api, f"/models/m{number}")
        shown.append((query, tuple(version[key] for key in NUMBERS)))
    assert shown == NUMBER_QUERIES


JSON_BODIES = [
    (JSON, '{"url": "noop.mar", "model_name": "j", "batch_size": 3, "unknown": {"x": []}}'),
    (JSON, "{'url': 'noop.mar', 'model_name': 'j', 'batch_size': '3'}"),
    (JSON, "{url:noop.mar,model_name:j,batch_size:3}"),
    (JSON, '{"url": "nowhere.mar", "url": "noop.mar", "model_name": "j", "batch_size": 3.0}'),
    (JSON, '{"url": "noop.mar", "model_name": "j", "batch_size": 3, "initial_workers": null, "synchronous": "no"}'),
    ("application/json; charset=utf-8", '{"url": "noop.mar", "model_name": "j", "batch_size": 3}'),
    ("Application/JSON ;x=y", '{"url": "noop.mar", "model_name": "j", "batch_size": 3}'),
]


async def test_a_json_body_takes_the_place_of_the_query(api: Api) -> None:
    target = "/models?url=nowhere.mar&model_name=q&batch_size=7&max_batch_delay=8"
    for content_type, body in JSON_BODIES:
        answer = await api.management.post(target, body.encode(), content_type)
        assert status(answer) == (200, ZERO.format("j", "1.0")), body
        (version,) = await described(api, "/models/j")
        assert (version["batchSize"], version["maxBatchDelay"]) == (3, 100), body
        await api.services.unregister("j")


async def test_an_empty_json_body_does_not(api: Api) -> None:
    """Generated clients name the type where they send nothing."""
    answer = await api.management.post("/models?url=noop.mar&model_name=q", b"", JSON)
    assert status(answer) == (200, ZERO.format("q", "1.0"))


async def test_other_bodies_are_not_read(api: Api) -> None:
    for content_type in (None, "application/x-www-form-urlencoded", "text/json", "application/jsonp"):
        answer = await api.management.post("/models?url=noop.mar", b'{"model_name": "j"}', content_type)
        assert status(answer) == (200, ZERO.format("noop", "1.0")), content_type
        await api.services.unregister("noop")


async def test_who_asked_is_recorded(api: Api) -> None:
    await registered(api, "noop")
    assert [actor for _, _, actor in api.services.store.changes] == ["127.0.0.1"]


async def test_a_client_that_hangs_up_on_a_synchronous_register(api: Api) -> None:
    """The work goes on."""
    launcher = api.services.launcher
    launcher.may_speak = trio.Event()
    async with api.management.connect() as connection:
        await connection.begin("POST", "/models?url=noop.mar&initial_workers=1&synchronous=true")
        await until(lambda: launcher.workers)
    launcher.may_speak.set()
    await until(lambda: api.services.statuses() == ["READY"])
    await api.services.same_in_store()


# ---- list


async def test_list(api: Api) -> None:
    assert (await api.management.get("/models")).body == b'{\n  "models": []\n}\n'
    await registered(api, "b", "a", "C")
    answer = await api.management.get("/models?limit=2")
    assert answer.status == 200
    assert list(answer.json) == ["nextPageToken", "models"]
    assert answer.json == {
        "nextPageToken": str(FIRST_TOKEN + 1),
        "models": [{"modelName": "C", "modelUrl": "noop.mar"}, {"modelName": "a", "modelUrl": "noop.mar"}],
    }
    answer = await api.management.get(f"/models?limit=2&next_page_token={answer.json['nextPageToken']}")
    assert answer.json == {"models": [{"modelName": "b", "modelUrl": "noop.mar"}]}


PAGES = [
    ("limit=&next_page_token=", "abc", None),
    ("limit=-1", "abc", None),
    ("limit=abc", "abc", None),
    ("limit=101", "abc", None),
    ("limit=3", "abc", None),
    ("limit=0", "", None),
    ("limit=1", "a", str(FIRST_TOKEN + 1)),
    ("limit=1&next_page_token=1", "b", "2"),
    ("limit=1&next_page_token=-1", "a", str(FIRST_TOKEN + 1)),
    ("limit=1&next_page_token=junk", "a", str(FIRST_TOKEN + 1)),
    ("limit=1&nextPageToken=2", "a", str(FIRST_TOKEN + 1)),
    ("next_page_token=12", "", None),
    ("next_page_token=2147483648", "abc", None),
]


async def test_pages(api: Api) -> None:
    await registered(api, *"abc")
    shown = []
    for query, _, _ in PAGES:
        answer = (await api.management.get(f"/models?{query}")).json
        names = "".join(model["modelName"] for model in answer["models"])
        shown.append((query, names, answer.get("nextPageToken")))
    assert shown == PAGES


async def test_offsets_by_configuration(tmp_path: Path) -> None:
    async with serving(tmp_path, list_page_tokens="offset") as api:
        api.services.mar()
        await registered(api, *"abc")
        assert (await api.management.get("/models?limit=2")).json["nextPageToken"] == "2"


# ---- describe


async def test_describe(api: Api) -> None:
    await api.up(name="noop")
    answer = await api.management.get("/models/noop")
    assert list(answer.json[0]) == list(api.services.described())
    assert answer.body.decode() == json.dumps(answer.json, indent=2) + "\n"
    assert answer.body.startswith(b'[\n  {\n    "modelName": "noop",\n    "modelVersion": "1.0",\n')
    assert (await described(api, "/models/noop/1.0"))[0]["modelVersion"] == "1.0"
    assert (await described(api, "/models/noop/"))[0]["modelVersion"] == "1.0"


async def test_describe_all(api: Api) -> None:
    await registered(api, "noop")
    api.services.mar("two.mar", version="2.0")
    await api.management.post("/models?url=two.mar")
    for target in ("/models/noop/all", "/models/noop/all?customized=true"):
        assert [version["modelVersion"] for version in await described(api, target)] == ["1.0", "2.0"]


async def test_describe_that_is_not_customized(api: Api) -> None:
    await registered(api, "noop")
    for value in ("false", "1", "", "yes"):
        assert len(await described(api, f"/models/noop?customized={value}")) == 1, value


async def test_names_of_any_kind(api: Api) -> None:
    """But for a slash, which separates."""
    for name in ("a b", '"x"?%', "\u6a21", "a+b", "100%", "..", "x;y&z"):
        await registered(api, name)
        path = f"/models/{quote(name, safe='')}"
        assert (await described(api, path))[0]["modelName"] == name
        assert (await api.management.get("/models")).json["models"][0]["modelName"] == name
        assert status(await api.management.put(f"{path}/1.0/set-default"))[0] == 200
        assert status(await api.management.delete(path)) == (200, f'Model "{name}" unregistered')


# ---- scale


SCALE = [
    ("/models/noop", 202, "Processing worker updates...", (1, 1)),
    ("/models/noop/", 202, "Processing worker updates...", (1, 1)),
    ("/models/noop?min_worker=nan&synchronous=nan", 202, "Processing worker updates...", (1, 1)),
    ("/models/noop?min_worker=2&max_worker=junk", 202, "Processing worker updates...", (2, 2)),
    ("/models/noop?min_worker=1&max_worker=3&number_gpu=7", 202, "Processing worker updates...", (1, 3)),
    ("/models/noop?min_worker=0&timeout=0", 202, "Processing worker updates...", (0, 0)),
    ("/models/noop?synchronous=true", 200, "Workers scaled to 1 for model: noop", (1, 1)),
    ("/models/noop?min_worker=2&synchronous=True", 200, "Workers scaled to 2 for model: noop", (2, 2)),
    (
        "/models/noop/1.0?min_worker=2&synchronous=true&timeout=junk",
        200,
        "Workers scaled to 2 for model: noop, version: 1.0",
        (2, 2),
    ),
    (
        "/models/noop?model_version=1.0&synchronous=true",
        200,
        "Workers scaled to 1 for model: noop, version: 1.0",
        (1, 1),
    ),
    (
        "/models/noop/1.0?model_version=9&synchronous=true",
        200,
        "Workers scaled to 1 for model: noop, version: 1.0",
        (1, 1),
    ),
]


async def test_scale(api: Api) -> None:
    await registered(api, "noop")
    answers = []
    for target, _, _, _ in SCALE:
        answer = status(await api.management.put(target))
        (version,) = await described(api)
        answers.append((target, *answer, (version["minWorkers"], version["maxWorkers"])))
    assert answers == SCALE


async def test_scale_reads_no_body(api: Api) -> None:
    await registered(api, "noop")
    answer = await api.management.ask("PUT", "/models/noop", b'{"min_worker": 3}', [("Content-Type", JSON)])
    assert answer.status == 202
    assert (await described(api))[0]["minWorkers"] == 1


async def test_the_timeout_reaches_the_workers(api: Api) -> None:
    """0 cuts off what is in hand; its client is answered."""
    await api.up(silent, name="noop")
    answers: list[Answer] = []

    async def predict() -> None:
        answers.append(await api.inference.post("/predictions/noop", b"x"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(predict)
        await until(lambda: api.services.described()["workers"][0]["tserve"]["phase"] == "busy")
        answer = await api.management.put("/models/noop?min_worker=0&timeout=0&synchronous=true")
        assert status(answer) == (200, "Workers scaled to 0 for model: noop")
    assert (answers[0].status, answers[0].json["message"]) == (500, "Worker died.")


async def test_without_a_timeout_workers_finish(api: Api) -> None:
    await api.up(name="noop")
    launcher = api.services.launcher
    launcher.workers[0].may_speak = may_speak = trio.Event()
    answers: list[Answer] = []

    async def predict() -> None:
        answers.append(await api.inference.post("/predictions/noop", b"x"))

    async def scale() -> None:
        answer = await api.management.put("/models/noop?min_worker=0&synchronous=true")
        assert status(answer) == (200, "Workers scaled to 0 for model: noop")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(predict)
        await until(lambda: api.services.described()["workers"][0]["tserve"]["phase"] == "busy")
        nursery.start_soon(scale)
        await until(lambda: api.services.described()["workers"] == [])
        may_speak.set()
    assert (answers[0].status, answers[0].body) == (200, b"x")


async def test_206_when_workers_are_down(api: Api) -> None:
    """They were before the call, which waits for them no longer than the startup timeout."""
    await api.management.post("/models?url=noop.mar&initial_workers=1&startup_timeout=0")
    await until(lambda: "lastFailure" in api.services.described()["workers"][0]["tserve"])
    answer = await api.management.put("/models/noop?min_worker=1&synchronous=true")
    assert status(answer) == (206, "Workers scaling in progress...")


# ---- set-default, unregister, the rest


async def test_set_default(api: Api) -> None:
    await registered(api, "noop")
    api.services.mar("two.mar", version="2.0")
    await api.management.post("/models?url=two.mar")
    for _ in range(2):
        answer = await api.management.put("/models/noop/2.0/set-default/")
        assert status(answer) == (200, 'Default version successfully updated for model "noop" to "2.0"')
    assert (await described(api))[0]["modelVersion"] == "2.0"
    assert (await api.management.get("/models")).json == {"models": [{"modelName": "noop", "modelUrl": "two.mar"}]}


async def test_unregister(api: Api) -> None:
    """Its parameters are ignored, and the version is never named."""
    for target in ("/models/noop", "/models/noop/?synchronous=nan", "/models/noop/1.0?timeout=true"):
        await registered(api, "noop")
        assert status(await api.management.delete(target)) == (200, 'Model "noop" unregistered'), target
        assert (await api.management.get("/models")).json == {"models": []}
    await api.services.same_in_store()


async def test_workflows(api: Api) -> None:
    answer = await api.management.get("/workflows")
    assert (answer.status, answer.json) == (200, {"workflows": []})


async def test_one_port_for_both(tmp_path: Path) -> None:
    """Nothing of either API is shadowed (section 12, row 20)."""
    async with serving(tmp_path, shared=True) as api:
        await api.up(name="noop")
        client = api.management
        assert (await client.get("/models/noop/1.0")).status == 200
        assert (await client.put("/models/noop/1.0")).status == 202
        assert (await client.post("/predictions/noop", b"x")).body == b"x"
        assert (await client.post("/models/noop/invoke", b"y")).body == b"y"
        assert (await client.get("/ping")).json == {"status": "Healthy"}
        assert (await client.delete("/models/noop/1.0")).status == 200
