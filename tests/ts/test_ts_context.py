"""Context and RequestProcessor as handlers see them (spec/inference.md section 11)."""

from __future__ import annotations

from typing import Any

import pytest

from ts.context import Context, RequestProcessor


def make(**changes: Any) -> Context:
    given: dict[str, Any] = {
        "model_name": "m",
        "model_dir": "models/m",
        "manifest": {"model": {}},
        "batch_size": 4,
        "gpu": None,
        "mms_version": "0.12.0",
    }
    return Context(**(given | changes))


def in_request(*headers: dict[str, Any]) -> Context:
    context = make()
    context.request_processor = [RequestProcessor(each) for each in headers]
    context.request_ids = {place: f"id-{place}" for place in range(len(headers))}
    return context


def test_system_properties_have_the_recorded_keys() -> None:
    assert make(gpu=1, limit_max_image_pixels=False).system_properties == {
        "model_dir": "models/m",
        "gpu_id": 1,
        "batch_size": 4,
        "server_name": "MMS",
        "server_version": "0.12.0",
        "limit_max_image_pixels": False,
    }


def test_constructor_keeps_name_manifest_and_yaml() -> None:
    context = make(manifest=None, model_yaml_config={"handler": {"depth": 3}})
    assert (context.model_name, context.manifest) == ("m", None)
    assert context.model_yaml_config == {"handler": {"depth": 3}}
    assert make().model_yaml_config is None
    assert (context.request_ids, context.stopping_criteria, context.cl_socket) == (None, None, None)


def test_metrics_exists_only_once_set() -> None:
    assert not hasattr(make(), "metrics")
    sink = object()
    assert make(metrics=sink).metrics is sink
    later = make()
    later.metrics = sink
    assert later.metrics is sink


def test_handlers_hang_attributes_of_their_own_on_it() -> None:
    context = make()
    context.cache = {"session": 1}  # type: ignore[attr-defined]
    context.model_name = "renamed"
    assert context.cache == {"session": 1}  # type: ignore[attr-defined]
    assert context.model_name == "renamed"


def test_sequence_header_names_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ID", "START", "END"):
        monkeypatch.delenv(f"TS_REQUEST_SEQUENCE_{name}", raising=False)
    plain = make()
    names = plain.header_key_sequence_id, plain.header_key_sequence_start, plain.header_key_sequence_end
    assert names == ("ts_request_sequence_id", "ts_request_sequence_start", "ts_request_sequence_end")
    for name in ("ID", "START", "END"):
        monkeypatch.setenv(f"TS_REQUEST_SEQUENCE_{name}", f"x-{name}")
    set_ = make()
    assert (set_.header_key_sequence_id, set_.header_key_sequence_start, set_.header_key_sequence_end) == (
        "x-ID",
        "x-START",
        "x-END",
    )


def test_request_ids_by_place() -> None:
    assert make().get_request_id() is None
    context = in_request({}, {})
    assert (context.get_request_id(), context.get_request_id(1), context.get_request_id(2)) == ("id-0", "id-1", None)


def test_request_headers_are_case_sensitive_and_hold_the_inputs() -> None:
    headers = {"body": {"content-type": "text/plain"}, "X-Mine": "1", "ts_request_sequence_id": "s7"}
    context = in_request({}, headers)
    assert context.get_request_header(1, "X-Mine") == "1"
    assert context.get_request_header(1, "x-mine") is None
    assert context.get_request_header(1, "body") == {"content-type": "text/plain"}
    assert context.get_all_request_header(1) == headers
    assert (context.get_sequence_id(1), context.get_sequence_id(0)) == ("s7", None)


def test_request_processor_has_two_names() -> None:
    context = make()
    assert context.request_processor is None
    processors = [RequestProcessor({})]
    context.request_processor = processors
    assert context._request_processor is processors
    context._request_processor = None
    assert context.request_processor is None


def test_response_headers_and_content_type_are_per_request() -> None:
    context = in_request({}, {})
    context.set_response_header(1, "x-a", "first")
    context.set_response_header(1, "x-a", "second")
    context.set_response_content_type(1, "text/csv")
    assert context.get_response_headers(1) == {"x-a": "second", "content-type": "text/csv"}
    assert context.get_response_content_type(1) == "text/csv"
    assert (context.get_response_headers(0), context.get_response_content_type(0)) == ({}, None)


@pytest.mark.parametrize(("key", "value"), [("x-n", 1), ("x-none", None), (b"x", "v")])
def test_response_headers_must_be_text(key: Any, value: Any) -> None:
    context = in_request({})
    with pytest.raises(TypeError, match="needs str"):
        context.set_response_header(0, key, value)
    assert context.get_response_headers(0) == {}


def test_response_status_of_one_and_of_all() -> None:
    context = in_request({}, {})
    assert context.get_response_status(0) == (200, None)
    context.set_response_status(429, "Slow down", 1)
    assert (context.get_response_status(0), context.get_response_status(1)) == ((200, None), (429, "Slow down"))
    context.set_response_status(code=404)
    assert context.get_response_status(0) == (404, "")
    context.set_all_response_status(503, "every")
    assert [context.get_response_status(place) for place in (0, 1)] == [(503, "every")] * 2


def test_outside_a_request_status_is_ignored_and_headers_say_so() -> None:
    context = make()
    context.set_response_status(500)
    context.set_all_response_status(500)
    with pytest.raises(TypeError, match="no request in hand"):
        context.get_request_header(0, "explain")
    with pytest.raises(TypeError, match="no request in hand"):
        context.set_response_content_type(0, "text/plain")


def test_request_processor_alone() -> None:
    request = RequestProcessor({"a": "1"})
    assert (request.get_request_property("a"), request.get_request_property("b")) == ("1", None)
    assert request.get_request_properties() == {"a": "1"}
    request.report_status(418, reason_phrase="Teapot")
    assert (request.get_response_status_code(), request.get_response_status_phrase()) == (418, "Teapot")
    request.report_status(201)
    assert (request.get_response_status_code(), request.get_response_status_phrase()) == (201, None)
    request.add_response_property("h", "v")
    assert (request.get_response_header("h"), request.get_response_headers()) == ("v", {"h": "v"})
