"""Which status an error is (spec/inference.md section 8.3), and what a client is told beside it."""

from __future__ import annotations

import json

import pytest

from tserve.errors import (
    AnswerTimeout,
    BadRequest,
    InternalServer,
    ModelNotFound,
    ModelVersionNotFound,
    ServiceUnavailable,
    TserveError,
)
from tserve.grpc import inference, open_inference
from tserve.grpc.codes import Code
from tserve.grpc.methods import CAUSE_BYTES, CAUSE_KEY, Refusal, code_of_http

HTTP = "org.pytorch.serve.http."


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (200, "OK"),
        (299, "OK"),
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (409, "ABORTED"),
        (413, "RESOURCE_EXHAUSTED"),
        (416, "OUT_OF_RANGE"),
        (418, "FAILED_PRECONDITION"),
        (429, "RESOURCE_EXHAUSTED"),
        (499, "CANCELLED"),
        (500, "INTERNAL"),
        (501, "UNIMPLEMENTED"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
        (507, "INTERNAL"),
        (100, "UNKNOWN"),
        (302, "UNKNOWN"),
        (700, "UNKNOWN"),
    ],
)
def test_codes_of_http(status: int, name: str) -> None:
    assert code_of_http(status).name == name


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (BadRequest("no."), "INTERNAL", "no.\nBadRequestException.()"),
        (ServiceUnavailable("none."), "INTERNAL", "none.\nInternalServerException.()"),
        (
            ModelNotFound.named("a"),
            "INTERNAL",
            "Model not found: a\norg.pytorch.serve.archive.model.ModelNotFoundException",
        ),
        (
            ModelVersionNotFound("a", "2"),
            "INTERNAL",
            "Model version: 2 does not exist for model: a\n"
            "org.pytorch.serve.archive.model.ModelVersionNotFoundException",
        ),
        (InternalServer("Worker died."), "INTERNAL", f"Worker died.\n{HTTP}InternalServerException"),
        (InternalServer("failed", code=503), "UNAVAILABLE", f"failed\n{HTTP}InternalServerException"),
        (InternalServer("mine", code=404), "NOT_FOUND", f"mine\n{HTTP}InternalServerException"),
        (
            AnswerTimeout(1.0),
            "DEADLINE_EXCEEDED",
            f"No answer within clientTimeoutInMills, 1000 ms.\n{HTTP}RequestTimeoutException",
        ),
    ],
)
def test_inference(error: TserveError, code: str, details: str) -> None:
    refusal = inference.refuse(error)
    assert (refusal.code.name, refusal.details) == (code, details)


def test_open_inference_goes_by_number() -> None:
    assert open_inference.refuse(ModelNotFound.named("a")).code is Code.NOT_FOUND
    assert open_inference.refuse(BadRequest("no.")).code is Code.INVALID_ARGUMENT
    assert open_inference.refuse(ServiceUnavailable("none.")).code is Code.UNAVAILABLE


def test_the_cause_stands_in_the_trailing_metadata() -> None:
    assert Refusal(Code.INTERNAL, "x", {}).trailing == ()
    [(key, text)] = Refusal(Code.INTERNAL, "x", {"reason": "crashed", "log_tail": "é" * 9000}).trailing
    assert key == CAUSE_KEY
    assert len(text) <= CAUSE_BYTES
    assert text.isascii()
    assert json.loads(text)["reason"] == "crashed"
