"""`/token`: a new key in the key file, as upstream has it (spec/management.md section 1.10)."""

from __future__ import annotations

from typing import Final

from tserve.domain.access import Scope
from tserve.errors import InvalidKey
from tserve.http.operations import STRING, Answer, Operation, one_of_texts, text
from tserve.http.render import JSON_TYPE
from tserve.http.routes import ANY, Call, Reply, Route, Table
from tserve.services.keys import KeyFile

_KINDS: Final = {"management": Scope.MANAGEMENT, "inference": Scope.INFERENCE}
TYPE: Final = text("type", "Which key.", one_of_texts(list(_KINDS)), example="inference")
RENEW: Final = Operation(
    id="renewKey",
    tag="management",
    summary="A new key in the key file",
    description="The old one is worth nothing from then on.  The new one is not in the answer.",
    query=(TYPE,),
    answers={200: Answer("A line break.", STRING)},
    shown=("GET",),
)


def token_routes(keys: KeyFile) -> Table:
    """For the management port, when there is a token check.  This very path only, whatever a header says."""

    async def renew(call: Call) -> Reply:
        kind = _KINDS.get(call.query[TYPE] or "")
        if kind is None:
            cause = {"field": TYPE.name, "allowed": " or ".join(_KINDS)}
            raise InvalidKey(renewing=True, cause=cause)
        await keys.renew(kind)
        return Reply(200, b"\n", (JSON_TYPE,))

    return [Route(ANY, "/token", renew, RENEW)]
