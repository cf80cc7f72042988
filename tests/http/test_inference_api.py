"""The inference API over real sockets: what handlers get and what clients get (spec/inference.md sections 1 to 3)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio

from tests.http.stack import Api, serving, silent
from tests.services.stack import until
from tserve.domain.plan import WorkerSpec
from tserve.domain.wire import HandlerFailed, JobReply, JobRequest

FORM = "application/x-www-form-urlencoded"
PLAIN = "text/plain"
FINE = JobReply(200, "", {}, b"fine")


class Recorder:
    """A handler that keeps what it got and answers `reply`."""

    def __init__(self, reply: JobReply | HandlerFailed = FINE) -> None:
        self.reply = reply
        self.requests: list[JobRequest] = []
        self.specs: list[WorkerSpec] = []

    def __call__(self, spec: WorkerSpec, request: JobRequest) -> JobReply | HandlerFailed:
        self.requests.append(request)
        self.specs.append(spec)
        return self.reply

    @property
    def inputs(self) -> dict[str, tuple[str, bytes]]:
        """Of the last request: name to content type and value."""
        return {each.name: (each.content_type, each.value) for each in self.requests[-1].inputs}

    @property
    def headers(self) -> dict[str, str]:
        return self.requests[-1].headers


# ---- routes


async def test_routes_to_a_handler(api: Api) -> None:
    """The method does not matter; what the server adds to the headers depends on the route."""
    handler = Recorder()
    await api.up(handler, name="noop")
    predict: dict[str, str] = {"explain": "False", "url_path": ""}
    for method in ("POST", "GET", "PUT", "DELETE", "PATCH", "BREW"):
        for target, added in (
            ("/predictions/noop", predict),
            ("/predictions/noop/", predict),
            ("/predictions/noop/1.0", predict),
            ("/predictions/noop/1.0/v1/chat//x", {"explain": "False", "url_path": "v1/chat//x"}),
            ("/explanations/noop", {"explain": "True", "url_path": ""}),
            ("/explanations/noop/1.0/a", {"explain": "True", "url_path": "a"}),
            ("/invocations?model_name=noop", {}),
            ("/models/noop/invoke", {}),
            ("/noop/predict", {}),
            ("/noop/1.0/predict", {}),
        ):
            answer = await api.inference.ask(method, target, b"x")
            assert (answer.status, answer.body) == (200, b"fine"), (method, target)
            assert {k: v for k, v in handler.headers.items() if k in ("explain", "url_path")} == added, target
    assert {spec.model_name for spec in handler.specs} == {"noop"}


async def test_which_version(api: Api) -> None:
    one, two = Recorder(), Recorder()
    await api.up(one, name="noop")
    await api.up(two, name="noop", version="2.0")
    for target in ("/predictions/noop", "/predictions/noop/1.0", "/noop/predict", "/noop/1.0/predict"):
        await api.inference.post(target)
    assert (len(one.requests), len(two.requests)) == (4, 0)
    for target in ("/predictions/noop/2.0", "/noop/2.0/predict", "/explanations/noop/2.0"):
        await api.inference.post(target)
    assert (len(one.requests), len(two.requests)) == (4, 3)
    await api.management.put("/models/noop/2.0/set-default")
    await api.inference.post("/predictions/noop")
    assert len(two.requests) == 4


async def test_invocations_find_their_model(api: Api) -> None:
    """By the query, else the only model of the start, else a form field."""
    handlers = {name: Recorder() for name in ("a", "b", "c")}
    for name, handler in handlers.items():
        await api.up(handler, name=name)

    def answered() -> list[int]:
        return [len(handler.requests) for handler in handlers.values()]

    await api.inference.post("/invocations?model_name=a", b"model_name=b", FORM)
    assert answered() == [1, 0, 0]
    await api.inference.post("/invocations", b"model_name=b&x=1", FORM)
    assert answered() == [1, 1, 0]
    assert handlers["b"].inputs == {"model_name": ("", b"b"), "x": ("", b"1")}
    api.services.management.startup_names.add("c")
    await api.inference.post("/invocations", b"model_name=b", FORM)
    assert answered() == [1, 1, 1]
    await api.inference.post("/invocations?model_name=a", b"")
    assert answered() == [2, 1, 1]
    api.services.management.startup_names.add("a")
    assert (await api.inference.post("/invocations", b"x")).status == 400, "two of the start are not one"


# ---- what handlers get


async def test_the_query_is_ignored_on_predictions(api: Api) -> None:
    handler = Recorder()
    await api.up(handler, name="noop")
    for target in ("/predictions/noop?q=1&q=2", "/explanations/noop/1.0?q=1"):
        await api.inference.post(target, b"x", PLAIN)
        assert handler.inputs == {"body": (PLAIN, b"x")}


async def test_the_query_is_input_elsewhere(api: Api) -> None:
    handler = Recorder()
    await api.up(handler, name="noop")
    for target, more in (
        ("/invocations?model_name=noop&", {"model_name": ("", b"noop")}),
        ("/models/noop/invoke?", {}),
        ("/noop/1.0/predict?", {}),
    ):
        await api.inference.post(f"{target}q=1&q=2&r=a+b%00", b"x", PLAIN)
        assert handler.inputs == {"body": (PLAIN, b"x"), **more, "q": ("", b"1"), "r": ("", b"a b\0")}


async def test_bodies(api: Api) -> None:
    handler = Recorder()
    await api.up(handler, name="noop")
    multipart = (
        b'--l\r\nContent-Disposition: form-data; name="a"; filename="f"\r\nContent-Type: image/png\r\n\r\n\xff\r\n'
        b'--l\r\nContent-Disposition: form-data; name="b"\r\nContent-Type: application/json\r\n\r\n{}\r\n--l--\r\n'
    )
    for body, content_type, inputs in (
        (b"\x00\xff", None, {"body": ("", b"\x00\xff")}),
        (b"{}", "application/json; charset=utf-8", {"body": ("application/json", b"{}")}),
        (b"", None, {"body": ("", b"")}),
        (b"a=1&b=2&a=3", FORM, {"a": ("", b"3"), "b": ("", b"2")}),
        (b"no equals sign", FORM, {}),
        (multipart, "multipart/form-data; boundary=l", {"a": ("image/png", b"\xff"), "b": ("", b"{}")}),
        (b"nonsense", "multipart/form-data; boundary=l", {}),
    ):
        assert (await api.inference.post("/predictions/noop", body, content_type)).status == 200
        assert handler.inputs == inputs, content_type


async def test_a_request_without_a_body(api: Api) -> None:
    handler = Recorder()
    await api.up(handler, name="noop")
    await api.inference.get("/predictions/noop")
    assert handler.inputs == {"body": ("", b"")}


async def test_a_large_body_arrives_whole(api: Api) -> None:
    body = bytes(range(256)) * 20_000
    await api.up(name="noop")
    assert (await api.inference.post("/predictions/noop", body, "application/octet-stream")).body == body


async def test_headers(api: Api) -> None:
    """The client's, in its spelling, the last of repeated ones; what the server adds wins under its own name."""
    handler = Recorder()
    await api.up(handler, name="noop")
    answer = await api.inference.ask(
        "POST",
        "/predictions/noop/1.0/p",
        b"x",
        [
            ("X-CamelCase", "1"),
            ("x-twice", "first"),
            ("x-twice", "last"),
            ("X-Request-Id", "mine"),
            ("explain", "True"),
            ("describe", "True"),
            ("url_path", "mine"),
            ("Authorization", "Bearer k"),
        ],
    )
    assert handler.headers == {
        "Host": "localhost",
        "Content-Length": "1",
        "X-CamelCase": "1",
        "x-twice": "last",
        "X-Request-Id": "mine",
        "explain": "False",
        "describe": "True",
        "url_path": "p",
        "Authorization": "Bearer k",
    }
    assert handler.requests[0].request_id == answer.header("x-request-id")


async def test_each_request_has_an_id_of_its_own(api: Api) -> None:
    handler = Recorder()
    await api.up(handler, name="noop")
    ids = [(await api.inference.post("/predictions/noop")).header("x-request-id") for _ in range(3)]
    assert ids == [request.request_id for request in handler.requests]
    assert len(set(ids)) == 3


# ---- what clients get


async def test_an_answer_has_no_content_type_of_its_own(api: Api) -> None:
    await api.up(Recorder(JobReply(200, "", {}, b'{"looks": "like JSON"}')), name="noop")
    answer = await api.inference.post("/predictions/noop", b"{}", "application/json")
    assert answer.names == ["x-request-id", "pragma", "cache-control", "expires", "content-length", "connection"]
    assert answer.body == b'{"looks": "like JSON"}'


async def test_headers_of_a_handler(api: Api) -> None:
    """First, as they are; the request id stays the server's, and so does the framing."""
    headers = {"content-type": "text/x; charset=utf-8", "X-Own": " a, b ", "Pragma": "mine", "content-length": "1"}
    await api.up(Recorder(JobReply(200, "", {**headers, "X-Request-Id": "mine"}, b"body")), name="noop")
    answer = await api.inference.post("/predictions/noop")
    assert answer.body == b"body"
    assert [(name.lower(), value) for name, value in answer.headers[:3]] == [
        ("content-type", "text/x; charset=utf-8"),
        ("x-own", "a, b"),
        ("pragma", "mine"),
    ]
    assert answer.header("content-length") == "4"
    assert answer.header("x-request-id") != "mine"


async def test_a_status_of_a_handler(api: Api) -> None:
    """Its body is kept and no error object made of it; from 400 on the connection is closed all the same."""
    handler = Recorder()
    await api.up(handler, name="noop")
    for code in (201, 202, 299, 302, 400, 404, 429, 500, 599, 999):
        handler.reply = JobReply(code, "", {"x": "y"}, b"own words")
        async with api.inference.connect() as connection:
            answer = await connection.ask("POST", "/predictions/noop", b"x")
            assert (answer.status, answer.body, answer.header("x")) == (code, b"own words", "y")
            assert answer.header("connection") == ("close" if code >= 400 else "keep-alive")
            if code >= 400:
                assert await connection.ended()
            else:
                assert (await connection.ask("POST", "/predictions/noop", b"x")).status == code


async def test_a_status_that_has_no_body(api: Api) -> None:
    handler = Recorder()
    await api.up(handler, name="noop")
    for code in (204, 304):
        handler.reply = JobReply(code, "", {}, b"dropped")
        async with api.inference.connect() as connection:
            for _ in range(2):
                answer = await connection.ask("POST", "/predictions/noop", b"x")
                assert (answer.status, answer.body) == (code, b"")


async def test_head(api: Api) -> None:
    await api.up(name="noop")
    async with api.inference.connect() as connection:
        answer = await connection.ask("HEAD", "/predictions/noop", b"four")
        assert (answer.status, answer.body, answer.header("content-length")) == (200, b"", "4")
        assert (await connection.ask("POST", "/predictions/noop", b"x")).body == b"x"


async def test_bytes_come_back_as_they_are(api: Api) -> None:
    handler = Recorder()
    await api.up(handler, name="noop")
    for body in (b"", b"\x00\xff" * 500_000):
        handler.reply = JobReply(200, "", {}, body)
        assert (await api.inference.post("/predictions/noop")).body == body


async def test_what_failed_says_why(api: Api) -> None:
    await api.up(Recorder(HandlerFailed(503, "Prediction failed", "Traceback: the end")), name="noop")
    answer = await api.inference.post("/predictions/noop")
    assert answer.status == 503
    assert answer.json == {
        "code": 503,
        "type": "InternalServerException",
        "message": "Prediction failed",
        "tserve": {"reason": "handler_failed", "detail": "Traceback: the end"},
    }


async def test_cors(tmp_path: Path) -> None:
    cors = (("access-control-allow-origin", "*"),)
    async with serving(tmp_path, cors_headers=cors) as api:
        await api.up(Recorder(JobReply(200, "", {"X-Own": "1"}, b"")), name="noop")
        assert (await api.inference.post("/predictions/noop")).names[:4] == [
            "x-own",
            "x-request-id",
            "access-control-allow-origin",
            "pragma",
        ]
        for client in (api.inference, api.management):
            assert (await client.get("/nowhere")).header("access-control-allow-origin") == "*"


async def test_a_client_that_hangs_up_frees_its_place(api: Api) -> None:
    await api.up(silent, name="noop")

    async def pending() -> int:
        shown: Any = (await api.management.get("/models/noop")).json
        return int(shown[0]["jobQueueStatus"]["pendingRequests"])

    async def wait_for(count: int) -> None:
        with trio.fail_after(20):
            while await pending() != count:
                pass

    async with api.inference.connect() as first, api.inference.connect() as second:
        await first.begin("GET", "/predictions/noop")
        await first.end()
        await until(lambda: api.services.described()["workers"][0]["tserve"]["phase"] == "busy")
        await second.begin("GET", "/predictions/noop")
        await second.end()
        await wait_for(1)
        await second.stream.aclose()
        await wait_for(0)


# ---- ping


async def test_ping(api: Api) -> None:
    """A status object at 500, too."""
    for method, target in (("GET", "/ping"), ("POST", "/ping/"), ("PUT", "/ping/a/b")):
        answer = await api.inference.ask(method, target)
        assert (answer.status, answer.body) == (200, b'{\n  "status": "Healthy"\n}\n')
        assert answer.header("content-type") == "application/json"
    api.services.mar("broken.mar", name="broken", handler="nothing of this name")
    await api.services.register("broken.mar", initial_workers=1)
    await until(lambda: not api.services.health.healthy())
    async with api.inference.connect() as connection:
        answer = await connection.ask("GET", "/ping")
        assert (answer.status, answer.json) == (500, {"status": "Unhealthy"})
        assert await connection.ended()


async def test_many_at_once(api: Api) -> None:
    await api.up(name="noop")
    bodies: list[bytes] = []

    async def one(number: int) -> None:
        body = json.dumps(number).encode()
        assert (await api.inference.post("/predictions/noop", body)).body == body
        bodies.append(body)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    assert len(bodies) == 50
