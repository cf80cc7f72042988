"""The operations of the management API: what its handlers may read and what they answer, for the document."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tserve.domain.plan import MOST_WORKERS
from tserve.http.openapi_shapes import (
    DOCUMENT,
    EVENT_PAGE,
    KSERVE_READY,
    MODEL_PAGE,
    MODEL_VERSION,
    REGISTRATION_LIST,
    STATUS,
    WORKFLOWS,
)
from tserve.http.operations import (
    Answer,
    Operation,
    Parameter,
    array,
    flag,
    number,
    one_of_texts,
    parameters_as_json,
    text,
)
from tserve.services.desired import RUNTIMES
from tserve.services.pages import PAGE_LIMIT

_MANAGEMENT: Final = "management"
_NO_SUCH: Final = "There is no such model or version."
_NOT_WRITTEN: Final = "The change cannot be written to the state folder."
_WORKERS: Final = {
    500: "A worker cannot be started, with the reason in `tserve`; or the change cannot be written.",
    507: "A worker cannot be started for want of memory.",
}

# -- parameters

LIMIT: Final = number(
    "limit",
    f"How many models a page has at most; a number that is out of bounds is taken for {PAGE_LIMIT}.",
    default=PAGE_LIMIT,
    least=0,
    most=PAGE_LIMIT,
)
_TOKEN: Final = {"type": "string", "pattern": "^[0-9]+$"}  # it comes as a string
PAGE_TOKEN: Final = replace(
    number("next_page_token", "The nextPageToken of the page in front.", default=0), schema=_TOKEN
)

URL: Final = text(
    "url",
    "What to register: a name in the model store, an absolute path in it, or a URL. Required.",
    example="my_model.mar",
)
MODEL_NAME: Final = text("model_name", "The model's name, in place of the manifest's.")
HANDLER: Final = text("handler", "The handler, in place of the manifest's.")
RUNTIME: Final = text(
    "runtime",
    "The runtime, in place of the manifest's; PYTHON and PYTHON3 are taken as well.",
    one_of_texts(sorted(set(RUNTIMES.values()))),
)
BATCH_SIZE: Final = number("batch_size", "Most requests in a batch; 1, unless the archive's yaml says otherwise.")
MAX_BATCH_DELAY: Final = number(
    "max_batch_delay", "Milliseconds to wait for a batch to fill; 100, unless the archive's yaml says otherwise."
)
INITIAL_WORKERS: Final = number(
    "initial_workers",
    "Workers to start; unless given what the archive's yaml or default_workers_per_model says.",
    most=MOST_WORKERS,
    example=1,
)
SYNCHRONOUS_REGISTER: Final = flag(
    "synchronous", "Whether to answer once the workers are up; false, unless default_register_synchronous is on."
)
RESPONSE_TIMEOUT: Final = number(
    "response_timeout", "Seconds that a worker has for a batch; 120, unless yaml or configuration say otherwise."
)
STARTUP_TIMEOUT: Final = number(
    "startup_timeout", "Seconds that a worker has to load; 120, unless yaml or configuration say otherwise."
)
S3_SSE_KMS: Final = flag(
    "s3_sse_kms",
    "Whether the request of an http(s) URL is signed for S3, with the server's credentials.",
    default=False,
)
SHA256: Final = text("sha256", "What the archive has to be: its sha-256, of a folder the digest that describe shows.")
SIGNATURE: Final = text("signature", "Who vouches for it: what `tserve archive sign` writes into a .sig file.")

MIN_WORKER: Final = number("min_worker", "Workers to have at least.", default=1, least=0, most=MOST_WORKERS, example=2)
MAX_WORKER: Final = number("max_worker", "Workers to have at most; min_worker, unless given.", least=0)
SYNCHRONOUS: Final = flag("synchronous", "Whether to answer once the workers are up.", default=False)
TIMEOUT: Final = number(
    "timeout",
    "Seconds that surplus workers get for what they have in hand: 0 ends them at once, negative is without limit.",
    default=-1,
)
SCALED_VERSION: Final = text("model_version", "The version to scale.")
CUSTOMIZED: Final = flag("customized", "Whether to ask the handler what it says of itself.", default=False)

# -- operations

LIST: Final = Operation(
    id="listModels",
    tag=_MANAGEMENT,
    summary="List models",
    description="The registered models, a page at a time, in the order of their names.",
    query=(LIMIT, PAGE_TOKEN),
    answers={200: Answer("A page.", MODEL_PAGE)},
    errors={400: "The page token is unknown or has expired; or the request cannot be read."},
)

_REGISTER_PARAMETERS: Final[tuple[Parameter[object], ...]] = (
    URL,
    MODEL_NAME,
    HANDLER,
    RUNTIME,
    BATCH_SIZE,
    MAX_BATCH_DELAY,
    INITIAL_WORKERS,
    SYNCHRONOUS_REGISTER,
    RESPONSE_TIMEOUT,
    STARTUP_TIMEOUT,
    S3_SSE_KMS,
    SHA256,
    SIGNATURE,
)
REGISTER: Final = Operation(
    id="registerModel",
    tag=_MANAGEMENT,
    summary="Register a model",
    description=(
        "Makes a version of a model of an archive. With content type application/json and a body the parameters are "
        "read from that and not from the query. -1, and -100 for max_batch_delay, stands for the default."
    ),
    query=_REGISTER_PARAMETERS,
    body=parameters_as_json(_REGISTER_PARAMETERS, "The parameters, in place of the query's."),
    answers={
        200: Answer("The version is registered, and the workers that were waited for are up.", STATUS),
        202: Answer("The version is registered; its workers are being started.", STATUS),
    },
    errors={
        400: "A parameter or the archive cannot be used, it is not the one that was meant, or a download failed.",
        404: "There is no archive at the url.",
        409: "The version is registered already.",
        413: "The body is larger than max_request_size.",
        **_WORKERS,
    },
)


def _of_default(operation: Operation, words: str = "a version") -> Operation:
    """The twin of an operation on a version for a model's default version."""
    return replace(
        operation,
        id=operation.id.removeprefix("version_"),
        summary=operation.summary.replace(words, "a model's default version"),
    )


_VERSIONS: Final = array(MODEL_VERSION)
VERSION_DESCRIBE: Final = Operation(
    id="version_describeModel",
    tag=_MANAGEMENT,
    summary="Describe a version",
    description=(
        "Settings, workers and queue, in a list of one. The version `all` gives every version of the model, without "
        "what handlers say."
    ),
    query=(CUSTOMIZED,),
    answers={
        200: Answer("What there is; with customized of the type that the handler says.", _VERSIONS, any_media=True)
    },
    errors={
        404: _NO_SUCH,
        500: "With customized: the worker died.",
        503: "With customized: there is no worker, or the handler failed.",
        504: "With customized: no answer within clientTimeoutInMills.",
        507: "With customized: the worker is out of memory.",
    },
    other=Answer("With customized: a status that the handler chose.", _VERSIONS, any_media=True),
)
DESCRIBE: Final = replace(_of_default(VERSION_DESCRIBE), description="Settings, workers and queue, in a list of one.")

VERSION_SCALE: Final = Operation(
    id="version_setAutoScale",
    tag=_MANAGEMENT,
    summary="Scale a version",
    description="Asks for a number of workers. Unless `synchronous` the answer comes at once.",
    query=(MIN_WORKER, MAX_WORKER, SYNCHRONOUS, TIMEOUT),
    answers={
        200: Answer("The workers are up.", STATUS),
        202: Answer("The workers are being started or stopped.", STATUS),
        206: Answer("Some workers were not up within startup_timeout; they are still being started.", STATUS),
    },
    errors={400: "A parameter cannot be used.", 404: _NO_SUCH, **_WORKERS},
)
SCALE: Final = replace(_of_default(VERSION_SCALE), query=(*VERSION_SCALE.query, SCALED_VERSION))

VERSION_UNREGISTER: Final = Operation(
    id="version_unregisterModel",
    tag=_MANAGEMENT,
    summary="Unregister a version",
    description=(
        "Its workers finish what they have in hand, for up to unregister_model_timeout. The default version leaves "
        "only as the last one."
    ),
    answers={200: Answer("The version is gone.", STATUS)},
    errors={403: "It is the default version, and there are others.", 404: _NO_SUCH, 500: _NOT_WRITTEN},
)
UNREGISTER: Final = _of_default(VERSION_UNREGISTER)

SET_DEFAULT: Final = Operation(
    id="setDefault",
    tag=_MANAGEMENT,
    summary="Make a version the default",
    description="The default version is the one that is used where a request names none.",
    answers={200: Answer("It is the default version.", STATUS)},
    errors={404: _NO_SUCH, 500: _NOT_WRITTEN},
)

VERSION_RETRY: Final = Operation(
    id="version_retryModel",
    tag=_MANAGEMENT,
    summary="Start the failed workers of a version again",
    description="At once, those that gave up as well as those that wait for their next try.",
    query=(SYNCHRONOUS,),
    answers={
        200: Answer("The workers are up, or none are wanted.", STATUS),
        202: Answer("The workers are being started.", STATUS),
        206: Answer("Some workers were not up within startup_timeout; they are still being started.", STATUS),
    },
    errors={404: _NO_SUCH, 500: "A worker cannot be started.", 507: _WORKERS[507]},
)
RETRY: Final = _of_default(VERSION_RETRY)

VERSION_API: Final = Operation(
    id="version_modelApiDescription",
    tag="description",
    summary="The recorded description of the management API, for a version",
    answers={200: Answer("An OpenAPI document, of TorchServe's making.", DOCUMENT)},
    errors={404: _NO_SUCH},
)
API: Final = _of_default(VERSION_API)

WORKFLOW_LIST: Final = Operation(
    id="listWorkflows",
    tag=_MANAGEMENT,
    summary="List workflows",
    description="There are none, and none can be registered.",
    answers={200: Answer("An empty list.", WORKFLOWS)},
)

READY: Final = Operation(
    id="kserveReady",
    tag="kserve",
    summary="Whether a model has a worker",
    description="What follows a colon in the name is left out, unless a model has that name.",
    answers={200: Answer("Whether the default version has a worker that is loaded.", KSERVE_READY)},
    errors={404: "There is no such model."},
)

REGISTRATIONS: Final = Operation(
    id="registrations",
    tag=_MANAGEMENT,
    summary="Registrations under way",
    description="The calls that register a model and are not done yet, with the progress of their downloads.",
    answers={200: Answer("All of them, oldest first.", REGISTRATION_LIST)},
)

# -- history: unlike the contract's own parameters, ones that make no sense are refused

EVENTS_PAGE: Final = 100
EVENTS_MOST: Final = 1_000
EVENTS_LIMIT: Final = text(
    "limit",
    "How many events a page has at most.",
    {"type": "integer", "minimum": 1, "maximum": EVENTS_MOST, "default": EVENTS_PAGE},
)
EVENTS_TOKEN: Final = text("next_page_token", "The nextPageToken of the page in front.", _TOKEN)
VERSION_EVENTS: Final = Operation(
    id="version_events",
    tag="history",
    summary="What happened to a version",
    description="Who changed it and what became of its workers, newest first, a page at a time.",
    query=(EVENTS_LIMIT, EVENTS_TOKEN),
    answers={200: Answer("A page.", EVENT_PAGE)},
    errors={400: "A parameter makes no sense.", 404: "Neither registered nor in the history."},
)
EVENTS: Final = replace(VERSION_EVENTS, id="events", summary="What happened to a model", query=VERSION_EVENTS.query)
