"""The management service as a plain grpcio client calls it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import grpc

from tserve.grpc.messages import MANAGEMENT, POOL, message

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Told:
    """How a call ended: its `msg`, or its status text; `cause` as in the trailing metadata."""

    code: str
    text: str
    cause: dict[str, Any]

    @property
    def sentence(self) -> str:
        """Of a refusal, without its class."""
        return self.text.rpartition("\n")[0]

    @property
    def kind(self) -> str:
        """The short name of a refusal's class."""
        return self.text.rpartition("\n")[2].rpartition(".")[2]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class ManagementClient:
    def __init__(self, address: str) -> None:
        # A subchannel of its own: one of a server that was killed would wait before it tries again.
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        self._channel.close()

    def begin(self, method: str, *, within_s: float = PATIENCE_S, raw: bytes | None = None, **fields: Any) -> Any:
        """The call, begun: a future of grpcio.  `within_s` is its deadline, `raw` is sent in place of the message."""
        described = POOL.FindServiceByName(MANAGEMENT).methods_by_name[method]
        request = message(described.input_type.full_name)(**fields)
        reply = message(described.output_type.full_name)
        call = self._channel.unary_unary(f"/{MANAGEMENT}/{method}", bytes, reply.FromString)
        return call.future(request.SerializeToString() if raw is None else raw, timeout=within_s)

    def call(self, method: str, **fields: Any) -> Told:
        return self.end(self.begin(method, **fields))

    @staticmethod
    def end(call: Any) -> Told:
        """Wait for a call that was begun."""
        try:
            return Told("OK", call.result().msg, {})
        except grpc.RpcError:
            trailing = dict(call.trailing_metadata() or ())
            return Told(call.code().name, call.details(), json.loads(trailing.get("tserve-cause", "{}")))
        except grpc.FutureCancelledError:
            return Told("CANCELLED", "", {})
