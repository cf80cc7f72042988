"""Every parameter of every call with values that make no sense: always an answer of the contract, never a 500.

Each test is a table of requests; at its end the registry, the kept archives and the processes are as before.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from tests.e2e.archives import write
from tests.e2e.bad_values import (
    BROKEN_ESCAPES,
    INPUTS,
    JSON_VALUES,
    NO_PARAMETERS,
    NUMBERS,
    VALUES,
    as_read,
    as_read_in_path,
    in_path,
    in_query,
)
from tests.e2e.conftest import MakeServer
from tests.e2e.server import Server, path_of
from tests.e2e.tables import JSON, table

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

REGISTER_PARAMETERS = [
    *("url", "model_name", "handler", "runtime", "batch_size", "max_batch_delay", "initial_workers", "synchronous"),
    *("response_timeout", "startup_timeout", "s3_sse_kms"),
]
FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
FORMS = [
    *(b"", b"--b", b"--b--", b"--b\r\n\r\n", b"\r\n--b\r\n", PART % b"a", PART % b"\xff", b"--c\r\n"),
    *(b"--b\r\n" + b"x: y\r\n" * 5000, b"--b\r\n" + b"a" * 100_000),
    *(b"--b\r\nContent-Disposition: attachment\r\n\r\nx\r\n--b--", b"--b\r\nContent-Disposition\r\n\r\nx\r\n--b--"),
    PART % (b'a"; filename="' + b"f" * 5000) + b"--b--\r\n",
]
URLENCODED = [b"", b"=", b"&&", b"a=%", b"a=%zz&b=%ff", b"=x", b"a=1&a=2", b"\xff=\0"]
ODD_BOUNDARIES = [
    *(("", b"--b"), ("; boundary=", b"--b"), ('; boundary="', b"--b"), ("; boundary=" + "b" * 5000, b"x")),
    *(("; boundary=\xff", b"--\xff--"), ("; boundary*=utf-8''%ff", b"x"), ("; boundary*0=a; boundary*1=b", b"--ab--")),
]
SCALE_PARAMETERS = ["min_worker", "max_worker", "synchronous", "timeout", "model_version", "number_gpu"]


# ---- management ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["limit", "next_page_token"])
def test_list_parameters(steady: Server, name: str) -> None:
    with table(steady) as t:
        for value in [*VALUES, "2147483647"]:
            known = (200, 400) if name == "next_page_token" and value == "2147483647" else (200,)
            for query in (
                f"{name}={in_query(value)}",
                f"{name}={in_query(value)}&{name}=1",
                f"x;{name}={in_query(value)};y&&=&=1",
            ):
                t.ask("GET", f"/models?{query}", *known)
        for value in BROKEN_ESCAPES:
            t.ask("GET", f"/models?{name}={value}", 400)
            t.ask("GET", f"/models?{value}={name}", 400)


def test_register_parameters_in_the_query(steady: Server) -> None:
    """Every value in every parameter, seen by all checks up to the archive, which is absent."""
    with table(steady) as t:
        for name in REGISTER_PARAMETERS:
            other = "" if name == "url" else "url=absent.mar&"
            for value in VALUES:
                t.ask("POST", f"/models?{other}{name}={in_query(value)}", 400, 404)
            for value in BROKEN_ESCAPES:
                t.ask("POST", f"/models?{other}{name}={value}", 400)
        for value in VALUES:
            t.ask("POST", f"/models?url=absent.mar&url={in_query(value)}", 404)
            t.ask("POST", f"/models?{in_query(value)}", 400)


def test_register_parameters_in_a_body(steady: Server) -> None:
    with table(steady) as t:
        for name in REGISTER_PARAMETERS:
            other = "" if name == "url" else '"url": "absent.mar", '
            for value in JSON_VALUES:
                t.ask_json(f'{{{other}"{name}": {value}}}', 400, 404)
        for value in JSON_VALUES:
            t.ask_json(f'{{"url": "noop.mar", "url": {value}}}', 400, 404)
            t.ask_json(f'{{{value}: "absent.mar"}}', 400)
            t.ask_json(value, 400)


def test_bodies_that_are_no_parameters(steady: Server) -> None:
    with table(steady) as t:
        for body in NO_PARAMETERS:
            t.ask_json(body, 400)
        t.ask_json(b'{"url": "absent.mar", "x": "' + b"a" * 2**20 + b'"}', 404)
        t.ask_json(b'{"url": "' + b"a" * 2**20 + b'.mar"}', 400, 404)
        t.ask_json(b'{"url": "absent.mar", "batch_size": "' + b"0" * 2**20 + b'x"}', 400)


def test_content_types(steady: Server) -> None:
    """Only JSON's own makes the body count; otherwise the query alone is read."""
    body = b'{"url": "absent.mar"}'
    for_json = ["application/json", "APPLICATION/JSON", "application/json;charset=utf-8", "application/json ; x="]
    for_query = [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=", "", ";", "*/*", "json"),
        *("application/jsonx", "application/ json", "application/json, text/plain", "\xff", "a" * 4000),
    ]
    with table(steady) as t:
        for kind in for_json:
            t.ask("POST", "/models", 404, body=body, headers=[("content-type", kind)])
            t.ask("POST", "/models?url=other.mar", 400, body=b"{}", headers=[("content-type", kind)])
        for kind in for_query:
            t.ask("POST", "/models", 400, body=body, headers=[("content-type", kind)])
            t.ask("POST", "/models?url=absent.mar", 404, body=b"\xff{", headers=[("content-type", kind)])
        t.ask("POST", "/models?url=absent.mar", 400, 404, body=b"{}", headers=[*JSON, ("content-type", "text/plain")])
        t.ask("POST", "/models", 400, body=body)


def test_registering_odd_numbers(steady: Server) -> None:
    """What is no 32-bit number is the default; what is one is stored and shown as given."""
    names = {"batch_size": "batchSize", "max_batch_delay": "maxBatchDelay", "response_timeout": "responseTimeout"}
    names["startup_timeout"] = "startupTimeout"
    defaults = {"batchSize": 1, "maxBatchDelay": 100, "responseTimeout": 120, "startupTimeout": 120}
    with table(steady) as t:
        for value in NUMBERS:
            query = "&".join(f"{name}={value}" for name in names)
            t.ask("POST", f"/models?url=echo.mar&model_name=new&synchronous={value}&{query}", 200)
            (described,) = steady.describe("new")
            is_number = value.lstrip("-").isdigit() and -(2**31) <= int(value) < 2**31
            unset = ["batchSize", "responseTimeout", "startupTimeout"] if value == "-1" else []
            shown = {key: int(value) if is_number and key not in unset else defaults[key] for key in defaults}
            assert {key: described[key] for key in defaults} == shown, value
            t.ask("DELETE", "/models/new", 200)


def test_registering_odd_texts(steady: Server) -> None:
    """A name or a handler may be any text: it comes back as it is, from the database too, and can be unregistered."""
    with table(steady) as t:
        for value in [*VALUES, "all", "set-default", "?", "#", "%20"]:
            name = as_read(value)
            if not name or "/" in name or re.fullmatch(r"[-+.0-9A-Za-z]{2,400}", name):
                continue  # the manifest's name, one that no path can say, or just a word
            handler = "h" if len(value) > 2000 else value  # a request line has a limit
            query = f"url=echo.mar&model_name={in_query(value)}&handler={in_query(handler)}"
            t.ask("POST", f"/models?{query}", 200)
            (described,) = steady.describe(name)
            assert (described["modelName"], described["tserve"]["handler"]) == (name, as_read(handler))
            t.ask("DELETE", path_of(name), 200)


def test_registering_texts_of_a_body(steady: Server) -> None:
    """Lone surrogates become U+FFFD, which every answer and the database can carry."""
    texts = {"\\ud800": "�", "a\\ud83d": "a�", "\\ud83d\\ude00": "\U0001f600", "\\u0000": "\0", "\\u2028": "\u2028"}
    with table(steady) as t:
        for written, name in texts.items():
            t.ask_json(f'{{"url": "echo.mar", "model_name": "{written}", "handler": "{written}"}}', 200)
            (described,) = steady.describe(name)
            assert (described["modelName"], described["tserve"]["handler"]) == (name, name)
            t.ask("DELETE", path_of(name), 200)


def test_refused_registrations_leave_nothing(steady: Server) -> None:
    """The only 500 of the contract is an archive that cannot be saved."""
    with table(steady) as t:
        for url in ("noise.txt", "noise.mar"):
            answer = t.ask("POST", f"/models?url={url}&model_name=new", 500)
            assert answer.text == f"Failed to save model: {url}"
        t.ask("POST", "/models?url=echo.mar", 409)
        t.ask("POST", "/models?url=echo2.mar&initial_workers=3&synchronous=true", 409)
        for url in ("unnamed.mar", "unnamed.mar&model_name="):
            assert t.ask("POST", f"/models?url={url}", 400).json["type"] == "InvalidModelException"
        for url in ("..", "a/../echo.mar", "%2e%2e/echo.mar", "%2F", "/", ".", "./", "//", "echo.mar/", "echo.mar/x"):
            t.ask("POST", f"/models?url={url}&model_name=new", 400, 404)
        t.ask("POST", "/models?url=echo.mar&model_name=new&runtime=PYTHON2", 400)
        answer = t.ask("POST", "/models?url=echo.mar&model_name=new&handler=no&initial_workers=1&synchronous=true", 500)
        assert answer.text == "Failed to start workers for model new version: 1.0"


@pytest.mark.parametrize("path", ["/models/absent", "/models/echo/1.0", "/models/echo"])
def test_scale_parameters(steady: Server, path: str) -> None:
    with table(steady) as t:
        missing = (404,) if path == "/models/absent" else ()
        for name in SCALE_PARAMETERS:
            others = "" if name == "min_worker" else "&min_worker=1"
            for value in VALUES:
                allowed = [400, *missing] if missing else [200, 202, 400] if "worker" in name else [200, 202]
                if name == "model_version" and path == "/models/echo":
                    allowed = [404]
                t.ask("PUT", f"{path}?{name}={in_query(value)}{others}", *allowed)
            for value in BROKEN_ESCAPES:
                t.ask("PUT", f"{path}?{name}={value}{others}", 400)
        if not missing:
            t.ask("PUT", f"{path}?min_worker=1&synchronous=true", 200)


def test_a_huge_number_of_workers(make_server: MakeServer, store: Path) -> None:
    """It is refused; least of all may it be stored and end the server at every start."""
    write(store, "echo.mar")
    write(store, "many.mar", name="many", config="minWorkers: 2147483647\nmaxWorkers: 2147483647\n")
    server = make_server()
    server.start()
    limit = 4 << 30  # so that nothing but this server can run out of memory here
    resource.prlimit(server.pid, resource.RLIMIT_AS, (limit, limit))
    assert server.register("echo.mar").status == 200
    with table(server) as t:
        t.ask("PUT", "/models/echo?min_worker=2147483647", 400)
        t.ask("POST", "/models?url=echo.mar&model_name=new&initial_workers=2147483647", 400)
        t.ask("POST", "/models?url=many.mar&initial_workers=2147483647", 400)
        t.ask("PUT", "/models/echo?min_worker=0&max_worker=2147483647", 202)
        t.ask("PUT", "/models/echo?min_worker=0", 202)
        t.ask("POST", "/models?url=many.mar", 200, 400)
        if "many" in server.models():
            t.ask("DELETE", "/models/many", 200)


def test_names_and_versions_in_paths(steady: Server) -> None:
    with table(steady) as t:
        for value in VALUES:
            name = as_read_in_path(value)
            odd = {405, 404} if "/" in name or not name else {404}
            for method in ("GET", "DELETE"):
                known = odd | {200} if not name and method == "GET" else odd
                t.ask(method, f"/models/{in_path(value)}", *known)
                t.ask(method, f"/models/{in_path(value)}/1.0", *odd)
                t.ask(method, f"/models/absent/{in_path(value)}", *odd)
            t.ask("PUT", f"/models/{in_path(value)}", *odd)
            t.ask("PUT", f"/models/absent/{in_path(value)}?min_worker=1", *odd)
            t.ask("PUT", f"/models/{in_path(value)}/1.0/set-default", *odd)
            if name:
                t.ask("GET", f"/models/echo/{in_path(value)}", 404, 200 if name.startswith("/") else 404)
                t.ask("DELETE", f"/models/echo/{in_path(value)}x", 404)
                t.ask("PUT", f"/models/echo/{in_path(value)}x/set-default", 404)
        for value in BROKEN_ESCAPES:
            for end in (value, f"echo/{value}", f"{value}/1.0/set-default", f"a/b/{value}"):
                target = f"/models/{end}"
                for method in ("GET", "PUT", "DELETE", "POST"):
                    t.ask(method, target, 400)
        for value in VALUES:
            t.ask("GET", f"/models/echo?customized={in_query(value)}", 200)


# ---- inference -----------------------------------------------------------------------------------------------------


def test_names_and_versions_in_inference_paths(steady: Server) -> None:
    with table(steady, "inference") as t:
        for value in VALUES:
            name = as_read_in_path(value)
            odd = {404, 200} if "/" in name or not name else {404}
            for target in (
                f"/predictions/{in_path(value)}",
                f"/predictions/{in_path(value)}/1.0",
                f"/predictions/absent/{in_path(value)}",
                f"/explanations/{in_path(value)}",
                f"/models/{in_path(value)}/invoke",
                f"/{in_path(value)}/predict",
                f"/{in_path(value)}/1.0/predict",
                f"/invocations?model_name={in_query(value) or 'x'}",
            ):
                t.ask("POST", target, *odd, body=b"x")
            t.ask("POST", f"/predictions/echo/1.0/{in_path(value)}", 200, body=b"x")
            if value:
                t.ask("POST", f"/predictions/echo/{in_path(value)}", 404, 503, 200 if name.startswith("/") else 404)
        for value in BROKEN_ESCAPES:
            for target in (f"predictions/{value}", f"predictions/echo/{value}", f"{value}/predict", f"ping/{value}"):
                t.ask("POST", f"/{target}", 400, body=b"x")
            t.ask("POST", f"/invocations?model_name={value}", 400, body=b"x")


def test_bodies_and_content_types_of_predictions(steady: Server) -> None:
    """All of them are for the handler to judge."""
    kinds = ["application/json", "text/plain", "", "\xff", "a" * 4000]
    bodies = [(kind, body) for kind in kinds for body in INPUTS] + [(FORM, body) for body in FORMS]
    bodies += [("application/x-www-form-urlencoded", body) for body in URLENCODED]
    bodies += [("multipart/form-data" + rest, body) for rest, body in ODD_BOUNDARIES]
    with table(steady, "inference") as t:
        for kind, body in bodies:
            for target in ("/predictions/echo/1.0", "/echo/predict", "/invocations?model_name=echo"):
                t.ask("POST", target, 200, body=body, headers=[("content-type", kind)], expect=b"echo 1.0 of 1")
        t.ask("POST", "/predictions/echo", 200, body=b"x" * 2**20)


def test_forms_that_are_refused(steady: Server) -> None:
    urlencoded = [("content-type", "application/x-www-form-urlencoded")]
    with table(steady, "inference") as t:
        many = PART % b"a" * 2000 + b"--b--\r\n"
        t.ask("POST", "/predictions/echo", 400, body=many, headers=[("content-type", FORM)])
        many = b"&".join(b"k%d=v" % i for i in range(20_000))
        t.ask("POST", "/predictions/echo", 400, body=many, headers=urlencoded)
        t.ask("POST", "/invocations", 400, body=b"model_name=", headers=urlencoded)
        t.ask("POST", "/invocations", 404, body=b"model_name=%ff", headers=urlencoded)
