"""Every error a client can see: one tree, each class with its status, gRPC status and wire name.

Status and `type` pairs follow spec/management.md section 7.1 and spec/inference.md section 4.
Messages are built here from typed arguments and never parsed elsewhere.  This module imports nothing of
tserve, so that every layer may raise from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class TserveError(Exception):
    """Base of all answers that are not a success.

    `code` is the HTTP status, `type_name` the recorded server's exception name, `message` the sentence scripts
    match on.  `cause` is what tserve knows beyond it (reason, detail, log_tail …); it is shown in the `tserve`
    member of the error object.
    """

    status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    type_name: ClassVar[str] = "InternalServerException"

    def __init__(self, message: str, *, cause: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.status
        self.cause: dict[str, object] = dict(cause or {})


class BadRequest(TserveError):
    status, grpc_status, type_name = 400, "INVALID_ARGUMENT", "BadRequestException"


class InvalidModel(TserveError):
    status, grpc_status, type_name = 400, "INVALID_ARGUMENT", "InvalidModelException"


class DependenciesFailed(TserveError):
    """What a model's archive wants installed cannot be; with `environment` false there is not even a place for it."""

    status, grpc_status, type_name = 400, "INVALID_ARGUMENT", "ModelException"

    def __init__(self, name: str, *, environment: bool = True, cause: Mapping[str, object] | None = None) -> None:
        what = "Custom pip package installation" if environment else "Virtual environment creation"
        super().__init__(f"{what} failed for model {name}", cause=cause)


class DownloadFailed(TserveError):
    status, grpc_status, type_name = 400, "INVALID_ARGUMENT", "DownloadArchiveException"

    def __init__(self, url: str, *, cause: Mapping[str, object] | None = None) -> None:
        super().__init__(f"Failed to download archive from: {url}", cause=cause)


class IntegrityFailed(TserveError):
    """The archive is not the one that was meant, or nobody that is trusted has signed it (docs/integrity.md)."""

    status, grpc_status, type_name = 400, "INVALID_ARGUMENT", "IntegrityException"

    def __init__(self, url: str, *, cause: Mapping[str, object] | None = None) -> None:
        super().__init__(f"Integrity of the archive could not be established: {url}", cause=cause)


class DefaultVersionInUse(TserveError):
    status, grpc_status, type_name = 403, "FAILED_PRECONDITION", "InvalidModelVersionException"

    def __init__(self, name: str) -> None:
        super().__init__(f"Cannot remove default version for model {name}")


class ResourceNotFound(TserveError):
    status, grpc_status, type_name = 404, "NOT_FOUND", "ResourceNotFoundException"

    def __init__(self) -> None:
        super().__init__("Requested resource is not found, please refer to API document.")


class ModelNotFound(TserveError):
    """Unknown model, and also every refused `url` (the recorded server files both under this name)."""

    status, grpc_status, type_name = 404, "NOT_FOUND", "ModelNotFoundException"

    @classmethod
    def named(cls, name: str) -> ModelNotFound:
        return cls(f"Model not found: {name}")

    @classmethod
    def at(cls, url: str, *, cause: Mapping[str, object] | None = None) -> ModelNotFound:
        return cls(f"Model not found at: {url}", cause=cause)


class ModelVersionNotFound(TserveError):
    status, grpc_status, type_name = 404, "NOT_FOUND", "ModelVersionNotFoundException"

    def __init__(self, name: str, version: str) -> None:
        super().__init__(f"Model version: {version} does not exist for model: {name}")

    @classmethod
    def for_default(cls, name: str, version: str) -> ModelVersionNotFound:
        """The set-default twin: the recorded sentence has no colons (spec/management.md section 1.9)."""
        error = cls(name, version)
        error.message = f"Model version {version} does not exist for model {name}"
        return error


class MethodNotAllowed(TserveError):
    status, grpc_status, type_name = 405, "UNIMPLEMENTED", "MethodNotAllowedException"

    def __init__(self) -> None:
        super().__init__("Requested method is not allowed, please refer to API document.")


class ModelApiDisabled(TserveError):
    """How gRPC says that register and unregister are off; REST says MethodNotAllowed (spec/management.md 1.11)."""

    status, grpc_status, type_name = 405, "PERMISSION_DENIED", "ModelException"

    def __init__(self) -> None:
        super().__init__("Model API disabled", cause={"reason": "model_api_off", "setting": "enable_model_api"})


class AnswerTimeout(TserveError):
    """A version's own limit for its clients; the recorded server never answers them (spec/inference.md section 9.5)."""

    status, grpc_status, type_name = 504, "DEADLINE_EXCEEDED", "RequestTimeoutException"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"No answer within clientTimeoutInMills, {timeout_s * 1000:.0f} ms.", cause={"reason": "client_timeout"}
        )


class InvalidKey(TserveError):
    """No token, or none that is good for what was asked: 400 as recorded, never 401 (spec/management.md 1.10)."""

    status, grpc_status, type_name = 400, "PERMISSION_DENIED", "InvalidKeyException"

    def __init__(self, *, renewing: bool = False, cause: Mapping[str, object] | None = None) -> None:
        what = "Authentication" if renewing else "Authorization"
        super().__init__(
            f"Token {what} failed. Token either incorrect, expired, or not provided correctly", cause=cause
        )


class TooManyWrongTokens(TserveError):
    """What a wrong token is answered after many others from the same address; a right one is always taken."""

    status, grpc_status, type_name = 429, "RESOURCE_EXHAUSTED", "TooManyRequestsException"

    def __init__(self, retry_s: int) -> None:
        super().__init__(
            "Too many wrong tokens came from this address.", cause={"reason": "wrong_tokens", "retry_after": retry_s}
        )


class Forbidden(TserveError):
    """What a browser must not send, whoever asked it to (docs/security.md)."""

    status, grpc_status, type_name = 403, "PERMISSION_DENIED", "ForbiddenException"


class Conflict(TserveError):
    status, grpc_status, type_name = 409, "ALREADY_EXISTS", "ConflictStatusException"

    def __init__(self, name: str, version: str) -> None:
        super().__init__(f"Model version {version} is already registered for model {name}")
        self.name, self.version = name, version


class PayloadTooLarge(TserveError):
    status, grpc_status, type_name = 413, "RESOURCE_EXHAUSTED", "PayloadTooLargeException"

    def __init__(self, limit: int) -> None:
        super().__init__(f"Request body is larger than max_request_size, {limit} bytes.")


class InternalServer(TserveError):
    """What went wrong inside or in a handler; `code` may be 500, 503, 507 or what the handler chose."""

    def __init__(self, message: str, *, code: int = 500, cause: Mapping[str, object] | None = None) -> None:
        super().__init__(message, cause=cause)
        self.code = code

    @classmethod
    def workers_failed(
        cls, name: str, version: str | None, *, code: int = 500, cause: Mapping[str, object] | None = None
    ) -> InternalServer:
        """`version` is None when the call named none; the recorded sentence then says `null`."""
        shown = "null" if version is None else version
        return cls(f"Failed to start workers for model {name} version: {shown}", code=code, cause=cause)


class WorkerInitialization(TserveError):
    type_name = "WorkerInitializationException"

    @classmethod
    def no_devices(cls, name: str, parallel_level: int, *, gpus: int) -> WorkerInitialization:
        """Not even one worker of that many GPUs fits (spec/management.md section 1.4)."""
        cause = {"reason": "not_enough_gpus", "detail": f"{gpus} GPUs may be used, a worker takes {parallel_level}"}
        return cls(f"No enough gpu devices for model:{name} parallelLevel:{parallel_level}", cause=cause)


class ServiceUnavailable(TserveError):
    status, grpc_status, type_name = 503, "UNAVAILABLE", "ServiceUnavailableException"

    @classmethod
    def no_worker(
        cls, name: str, version: str | None, *, cause: Mapping[str, object] | None = None
    ) -> ServiceUnavailable:
        """One sentence for no worker and for a full queue; the stray quote is recorded (spec/inference.md 4.1)."""
        asked = f'"{name}" Version {version}"' if version is not None else f'"{name}"'
        return cls(
            f"Model {asked} has no worker to serve inference request. Please use scale workers API to add workers. "
            "If this is a sequence inference, please check if it is closed, or expired; or exceeds "
            "maxSequenceJobQueueSize",
            cause=cause,
        )

    @classmethod
    def too_many_connections(cls, most: int) -> ServiceUnavailable:
        """All of them are at work: one that is idle would have been closed for the new one."""
        cause = {"reason": "too_many_connections", "field": "max_connections", "allowed": f"at most {most} on a port"}
        return cls("Too many connections.", cause=cause)

    @classmethod
    def no_worker_to_describe(cls, name: str, *, cause: Mapping[str, object] | None = None) -> ServiceUnavailable:
        """The sentence of a describe call with `customized=true` (spec/management.md section 1.6)."""
        return cls(
            f'Model "{name}" has no worker to serve describe request. Please use scale workers API to add workers.',
            cause=cause,
        )


class StreamCut(Exception):
    """A streamed answer breaks off by `error`: the connection is all that can still tell the client."""

    def __init__(self, error: TserveError) -> None:
        super().__init__(error.message)
        self.error = error


class StartError(Exception):
    """The server cannot start; `exit_code` is what the command ends with (docs/command.md lists them)."""

    exit_code: ClassVar[int] = 1


class BadConfiguration(StartError):
    exit_code = 3


class PortTaken(StartError):
    exit_code = 4


class StateLocked(StartError):
    exit_code = 5


class SchemaTooNew(StartError):
    exit_code = 6


class StateUnusable(StartError):
    exit_code = 7


class CannotSign(StartError):
    """`tserve archive` cannot do what it was asked: a file that is not there, a key that is none."""

    exit_code = 9


class TokenRefused(StartError):
    """`tserve token` cannot do what it was asked: a name that is taken, or that nobody has."""

    exit_code = 8
