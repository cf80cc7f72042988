"""The operations of the inference API, KServe's and the health routes of every port, for the document."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tserve.http.openapi_shapes import (
    DOCUMENT,
    KSERVE_READY,
    LIVENESS,
    MODEL_METADATA,
    MODEL_READINESS,
    NOT_SUPPORTED,
    PING,
    READINESS,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
)
from tserve.http.operations import ANYTHING, BINARY, BYTES, JSON, STRING, Answer, Body, Operation, object_of, text

_NO_SUCH: Final = "There is no such model or version."
_PAIRS: Final = "Inputs of the handler by name, beside those of the body."

# -- parameters

MODEL: Final = text(
    "model_name",
    "The model; unless given the only one that was loaded at start, or the form field of this name.",
    example="my_model",
)
VERBOSE: Final = text(
    "verbose", "Whether to show every version; given without a value it says yes.", {"type": "boolean"}
)

# -- predictions

PREDICT: Final = Operation(
    id="predictions",
    tag="inference",
    summary="Predict with a model's default version",
    description=(
        "What goes in and what comes out is the handler's business; an answer has no Content-Type if it names none."
    ),
    body=Body(
        "The parts of a form are inputs by name. A body of any other type, there are more than these, is the one input "
        "`body`; JSON may be a list or a scalar as well.",
        {
            JSON: object_of({}, more=ANYTHING),  # generated clients fail on JSON of any type beside other types
            BYTES: BINARY,
            "multipart/form-data": object_of({}, more=BINARY),
            "application/x-www-form-urlencoded": object_of({}, more=STRING),
        },
    ),
    answers={200: Answer("What the handler answered, of the type that it says.", BINARY, BYTES, any_media=True)},
    errors={
        400: "The form has too many parts or too long names; or the request cannot be read.",
        404: _NO_SUCH,
        413: "The body is larger than max_request_size.",
        500: "The worker died.",
        503: "There is no worker, the queue is full, or the handler failed.",
        504: "No answer within clientTimeoutInMills.",
        507: "The worker is out of memory.",
    },
    other=Answer("A status that the handler chose.", BINARY, BYTES, any_media=True),
    shown=("POST",),
)
_REST: Final = "Whatever follows the version in the path reaches the handler as the header `url_path`."
VERSION_PREDICT: Final = replace(PREDICT, id="version_predictions", summary="Predict with a version", path_note=_REST)
EXPLAIN: Final = replace(
    PREDICT, id="explanations", summary="Explain with a model's default version", tag="explanations"
)
VERSION_EXPLAIN: Final = replace(
    VERSION_PREDICT, id="version_explanations", summary="Explain with a version", tag="explanations"
)
KSERVE_PREDICT: Final = replace(PREDICT, id="kservePredict", summary="Predict by KServe's first protocol", tag="kserve")
KSERVE_EXPLAIN: Final = replace(PREDICT, id="kserveExplain", summary="Explain by KServe's first protocol", tag="kserve")
OIP_INFER: Final = replace(PREDICT, id="infer", summary="Predict by the Open Inference Protocol", tag="kserve")
OIP_EXPLAIN: Final = replace(PREDICT, id="explain", summary="Explain by the Open Inference Protocol", tag="kserve")
INVOKE: Final = replace(
    PREDICT,
    id="invocations",
    summary="Predict with the model that the request names",
    tag="further paths",
    query=(MODEL,),
    free_query=_PAIRS,
    errors={**PREDICT.errors, 400: "No model is named; or the request cannot be read."},
)
INVOKE_MODEL: Final = replace(
    PREDICT, id="invokeModel", summary="Predict with a model, as SageMaker asks", tag="further paths", free_query=_PAIRS
)
LEGACY_PREDICT: Final = replace(
    INVOKE_MODEL, id="legacyPredict", summary="Predict with a model's default version, by an old path"
)
VERSION_LEGACY_PREDICT: Final = replace(
    LEGACY_PREDICT, id="version_legacyPredict", summary="Predict with a version, by an old path"
)


def description_of(operation: Operation) -> Operation:
    """What OPTIONS of the same path answers."""
    return Operation(
        id=f"{operation.id}Description",
        tag="description",
        summary="The recorded description of a model's predictions",
        query=operation.query,
        answers={200: Answer("An OpenAPI document, of TorchServe's making.", DOCUMENT)},
        errors={404: _NO_SUCH},
    )


# -- health

PING_STATUS: Final = Operation(
    id="ping",
    tag="health",
    summary="Whether the server is healthy",
    description="It is while no default version has lost workers for good.",
    answers={200: Answer("Healthy.", PING), 500: Answer("Unhealthy.", PING)},
    shown=("GET",),
)
LIVE: Final = Operation(
    id="live",
    tag="health",
    summary="Whether the server answers",
    answers={200: Answer("It does.", LIVENESS)},
)
SERVER_READINESS: Final = Operation(
    id="ready",
    tag="health",
    summary="Whether every version has the workers that it wants",
    query=(VERBOSE,),
    answers={200: Answer("Ready.", READINESS), 503: Answer("Not ready.", READINESS)},
)
VERSION_READY: Final = Operation(
    id="version_modelReady",
    tag="health",
    summary="Whether requests to a version are served in full",
    answers={200: Answer("Ready.", MODEL_READINESS), 503: Answer("Not ready.", MODEL_READINESS)},
    errors={404: _NO_SUCH},
)
MODEL_READY: Final = replace(
    VERSION_READY, id="modelReady", summary="Whether requests to a model's default version are served in full"
)

# -- the Open Inference Protocol

_OIP: Final = "open inference"
OIP_SERVER: Final = Operation(
    id="serverMetadata",
    tag=_OIP,
    summary="What the server is",
    answers={200: Answer("Name, version and extensions.", SERVER_METADATA)},
    shown=("GET",),
)
OIP_LIVE: Final = Operation(
    id="serverLive",
    tag=_OIP,
    summary="Whether the server answers",
    answers={200: Answer("It does.", SERVER_LIVE)},
    shown=("GET",),
)
OIP_READY: Final = Operation(
    id="serverReady",
    tag=_OIP,
    summary="Whether every version has the workers that it wants",
    answers={200: Answer("Ready.", SERVER_READY), 503: Answer("Not ready.", SERVER_READY)},
    shown=("GET",),
)
OIP_MODEL: Final = Operation(
    id="modelMetadata",
    tag=_OIP,
    summary="What a model takes and gives",
    answers={200: Answer("Versions, and the tensors that the default version's yaml declares.", MODEL_METADATA)},
    errors={404: "There is no such model."},
)
OIP_MODEL_READY: Final = Operation(
    id="openInferenceModelReady",
    tag=_OIP,
    summary="Whether a model has a worker",
    answers={
        200: Answer("The default version has one that is loaded.", KSERVE_READY),
        503: Answer("It has none.", KSERVE_READY),
    },
    errors={404: "There is no such model."},
)
OIP_VERSIONS: Final = Operation(
    id="modelVersions",
    tag=_OIP,
    summary="Versions are not part of this protocol here",
    answers={501: Answer("Whatever is asked.", NOT_SUPPORTED)},
    shown=("GET",),
)
