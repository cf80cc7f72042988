"""Tokens over gRPC: the same check as over HTTP, told as recorded (spec/management.md section 1.10)."""

from __future__ import annotations

from collections.abc import Callable

from tserve.domain.access import RULES
from tserve.errors import TserveError
from tserve.grpc.codes import Code
from tserve.grpc.methods import Call, Refusal
from tserve.services.authorization import Authorization


def admission(authorization: Authorization) -> Callable[[Call], None]:
    """What looks at each call before its message; it raises Refusal."""

    def admit(call: Call) -> None:
        given = call.metadata.get("authorization")
        try:
            authorization.check(RULES.get(call.method), [given] if isinstance(given, str) else [], call.actor)
        except TserveError as error:  # the sentence alone, whatever the service says of its other errors
            raise Refusal(Code[error.grpc_status], error.message, error.cause) from error

    return admit
