"""The JSON of answers as named schemas, one place for each; the explorer holds live answers against them."""

from __future__ import annotations

from typing import Final

from tserve.domain.phases import Phase
from tserve.http.operations import (
    ANYTHING,
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    Shape,
    array,
    object_of,
    one_of_texts,
    said,
)
from tserve.services.desired import RUNTIMES
from tserve.services.health import State

STATUS: Final = Shape("Status", object_of({"status": said(STRING, "What was done, in a sentence.")}))

CAUSE: Final = Shape(
    "Cause",
    object_of(
        {},
        {
            "reason": said(STRING, "A code of docs/errors.md."),
            "detail": said(STRING, "A sentence, or a traceback and a sentence."),
            "file": said(STRING, "What of the archive is at fault."),
            "exit": said(STRING, "How the worker's process ended."),
            "log_tail": said(STRING, "The last output of the worker."),
            "field": said(STRING, "The parameter that was refused."),
            "value": said(ANYTHING, "What it was."),
            "allowed": said(ANYTHING, "What it may be."),
        },
        more=ANYTHING,
    ),
)

ERROR: Final = Shape(
    "Error",
    object_of(
        {
            "code": said(INTEGER, "The HTTP status."),
            "type": said(STRING, "The name of the error's kind."),
            "message": said(STRING, "What went wrong, in a sentence."),
        },
        {"tserve": CAUSE},
    ),
)

# -- management

LISTED_MODEL: Final = Shape(
    "ListedModel",
    object_of({"modelName": STRING, "modelUrl": said(STRING, "The url that the default version was registered from.")}),
)
MODEL_PAGE: Final = Shape(
    "ModelPage",
    object_of(
        {"models": array(LISTED_MODEL)},
        {"nextPageToken": said(STRING, "Where the next page begins; absent on the last one.")},
    ),
)

_LAST_FAILURE: Final = Shape(
    "LastFailure",
    object_of(
        {"reason": said(STRING, "A code of docs/errors.md."), "at": STRING},
        {"detail": STRING, "file": STRING, "exit": STRING, "log_tail": STRING},
    ),
)
_WORKER_DETAIL: Final = Shape(
    "WorkerDetail",
    object_of(
        {
            "phase": one_of_texts([phase.value for phase in Phase]),
            "phaseSeconds": said(NUMBER, "How long it has been in this phase."),
            "since": STRING,
            "restarts": INTEGER,
        },
        {
            "gpuId": INTEGER,
            "nextTrySeconds": said(NUMBER, "When it is started again; there while it waits for that."),
            "lastFailure": _LAST_FAILURE,
        },
    ),
)
WORKER: Final = Shape(
    "Worker",
    object_of(
        {
            "id": STRING,
            "startTime": STRING,
            "status": one_of_texts(["READY", "UNLOADING"]),
            "memoryUsage": said(INTEGER, "Bytes."),
            "pid": said(INTEGER, "-1 while there is no process."),
            "gpu": BOOLEAN,
            "gpuUsage": STRING,
            "tserve": _WORKER_DETAIL,
        }
    ),
)
_JOB_QUEUE_STATUS: Final = Shape(
    "JobQueueStatus", object_of({"remainingCapacity": INTEGER, "pendingRequests": INTEGER})
)
_STATE: Final = one_of_texts([state.value for state in State])
REGISTRATION: Final = Shape(
    "Registration",
    object_of(
        {
            "url": said(STRING, "Without the query."),
            "since": STRING,
            "phase": one_of_texts(["downloading", "checking"]),
        },
        {
            "modelName": said(STRING, "What the call names the model; absent when the archive is to say."),
            "download": object_of(
                {"receivedBytes": INTEGER, "tries": INTEGER, "waiting": said(INTEGER, "Calls that wait for it.")},
                {"expectedBytes": said(INTEGER, "Absent while the other side does not say.")},
            ),
        },
    ),
)
REGISTRATION_LIST: Final = Shape("RegistrationList", object_of({"registrations": array(REGISTRATION)}))
_VERSION_DETAIL: Final = Shape(
    "VersionDetail",
    object_of(
        {
            "digest": said(STRING, "sha256: and the hexadecimal digest of the archive."),
            "handler": STRING,
            "default": BOOLEAN,
            "state": _STATE,
            "ready": said(INTEGER, "Workers that are loaded."),
            "wanted": said(INTEGER, "Workers that are asked for."),
            "restarts": INTEGER,
        },
        {"registering": array(REGISTRATION, "Calls under way that register a version of this model.")},
    ),
)
MODEL_VERSION: Final = Shape(
    "ModelVersion",
    object_of(
        {
            "modelName": STRING,
            "modelVersion": STRING,
            "modelUrl": STRING,
            "engine": STRING,
            "runtime": one_of_texts(sorted(set(RUNTIMES.values()))),
            "minWorkers": INTEGER,
            "maxWorkers": INTEGER,
            "batchSize": INTEGER,
            "maxBatchDelay": said(INTEGER, "Milliseconds."),
            "responseTimeout": said(INTEGER, "Seconds."),
            "startupTimeout": said(INTEGER, "Seconds."),
            "maxRetryTimeoutInSec": INTEGER,
            "clientTimeoutInMills": said(INTEGER, "0 is no limit."),
            "parallelType": STRING,
            "parallelLevel": INTEGER,
            "deviceType": STRING,
            "continuousBatching": BOOLEAN,
            "useJobTicket": BOOLEAN,
            "useVenv": BOOLEAN,
            "stateful": BOOLEAN,
            "sequenceMaxIdleMSec": INTEGER,
            "sequenceTimeoutMSec": INTEGER,
            "maxNumSequence": INTEGER,
            "maxSequenceJobQueueSize": INTEGER,
            "loadedAtStartup": BOOLEAN,
            "workers": array(WORKER),
            "jobQueueStatus": _JOB_QUEUE_STATUS,
            "tserve": _VERSION_DETAIL,
        },
        {
            "deviceIds": array(INTEGER),
            "customizedMetadata": said(object_of({}, more=ANYTHING), "What the handler says of itself."),
        },
    ),
)
WORKFLOWS: Final = Shape("Workflows", object_of({"workflows": array(ANYTHING)}))

# -- history

_WORKERS_WANTED: Final = said(object_of({}, more=ANYTHING), "Members as in the description of a version.")
EVENT: Final = Shape(
    "Event",
    object_of(
        {
            "number": INTEGER,
            "at": STRING,
            "kind": said(STRING, "register, scale, set_default, unregister, retry, or what became of a worker."),
            "model": STRING,
            "version": STRING,
        },
        {
            "worker": STRING,
            "pid": INTEGER,
            "actor": said(STRING, "The client's address."),
            "requestId": STRING,
            "before": _WORKERS_WANTED,
            "after": _WORKERS_WANTED,
            "reason": STRING,
            "detail": STRING,
            "exit": STRING,
            "why": STRING,
            "loadSeconds": NUMBER,
            "nextTrySeconds": NUMBER,
            "logTail": STRING,
        },
        more=ANYTHING,
    ),
)
EVENT_PAGE: Final = Shape(
    "EventPage",
    object_of(
        {"events": array(EVENT)},
        {"nextPageToken": said(STRING, "Where the next page, of older events, begins; absent on the last one.")},
    ),
)

# -- health

_FAILURE_SUMMARY: Final = Shape("FailureSummary", object_of({"reason": STRING, "detail": STRING}))
_READINESS_MEMBERS: Final = {
    "modelVersion": STRING,
    "default": BOOLEAN,
    "state": _STATE,
    "ready": said(INTEGER, "Workers that are loaded."),
    "wanted": said(INTEGER, "Workers that are asked for."),
}
_FAILED: Final = {"lastFailure": _FAILURE_SUMMARY}
_READY_OR_NOT: Final = one_of_texts(["ready", "not ready"])
VERSION_READINESS: Final = Shape("VersionReadiness", object_of(_READINESS_MEMBERS, _FAILED))
MODEL_READINESS: Final = Shape(
    "ModelReadiness",
    object_of({"status": _READY_OR_NOT, "modelName": STRING, **_READINESS_MEMBERS}, _FAILED),
)
READINESS: Final = Shape(
    "Readiness",
    object_of(
        {"status": _READY_OR_NOT},
        {
            "models": array(
                Shape(
                    "ReadinessOfModel",
                    object_of({"modelName": STRING, "versions": array(VERSION_READINESS)}),
                ),
                "With verbose only.",
            )
        },
    ),
)
LIVENESS: Final = Shape("Liveness", object_of({"status": one_of_texts(["live"])}))
PING: Final = Shape("Ping", object_of({"status": one_of_texts(["Healthy", "Unhealthy"])}))

# -- KServe and the Open Inference Protocol

KSERVE_READY: Final = Shape("KserveReady", object_of({"name": STRING, "ready": BOOLEAN}))
SERVER_METADATA: Final = Shape(
    "ServerMetadata",
    object_of(
        {
            "name": STRING,
            "version": STRING,
            "extensions": array(STRING),
            "extenstion": array(STRING, "The recorded misspelling of extensions."),
        }
    ),
)
SERVER_LIVE: Final = Shape("ServerLive", object_of({"live": BOOLEAN}))
SERVER_READY: Final = Shape("ServerReady", object_of({"ready": BOOLEAN}))
_TENSOR: Final = Shape("Tensor", object_of({"name": STRING, "datatype": STRING, "shape": array(INTEGER)}))
MODEL_METADATA: Final = Shape(
    "ModelMetadata",
    object_of(
        {
            "name": STRING,
            "versions": array(STRING),
            "platform": STRING,
            "inputs": array(_TENSOR),
            "outputs": array(_TENSOR),
        }
    ),
)
NOT_SUPPORTED: Final = Shape("NotSupported", object_of({"error": STRING}))

DOCUMENT: Final = Shape(
    "OpenApiDocument",
    object_of(
        {"openapi": STRING, "info": object_of({}, more=ANYTHING), "paths": object_of({}, more=ANYTHING)},
        more=ANYTHING,
    ),
)
