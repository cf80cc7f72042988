"""The inference service as a plain grpcio client calls it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from tserve.grpc.messages import INFERENCE, POOL, message
from tserve.grpc.methods import CAUSE_KEY

PATIENCE_S = 60.0


@dataclass
class Told:
    """What a call was answered, and how it ended: `text` is the status text, `cause` as in the trailing metadata."""

    replies: list[Any] = field(default_factory=list)
    code: str = "OK"
    text: str = ""
    cause: dict[str, Any] = field(default_factory=dict)

    @property
    def bodies(self) -> list[bytes]:
        return [bytes(reply.prediction) for reply in self.replies]


def connect(address: str) -> grpc.Channel:
    """A connection of its own, which is not tried again behind the test's back."""
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])


def request_of(method: str, *, service: str = INFERENCE, **fields: Any) -> Any:
    described = POOL.FindServiceByName(service).methods_by_name[method]
    return message(described.input_type.full_name)(**fields)


@dataclass
class Begun:
    """A call under way; iterating over it gives its replies."""

    call: Any
    streams: bool

    def __iter__(self) -> Begun:
        return self

    def __next__(self) -> Any:
        return next(self.call)

    def cancel(self) -> None:
        self.call.cancel()


def begin(
    channel: grpc.Channel,
    method: str,
    request: Any,
    *,
    service: str = INFERENCE,
    within_s: float = PATIENCE_S,
    metadata: Sequence[tuple[str, str]] = (),
) -> Begun:
    """`request` is a message, or its bytes; an iterator of them where the method takes many."""
    described = POOL.FindServiceByName(service).methods_by_name[method]
    many, streams = described.client_streaming, described.server_streaming
    kinds = {(False, False): channel.unary_unary, (False, True): channel.unary_stream}
    reply = message(described.output_type.full_name)
    make = kinds.get((many, streams), channel.stream_stream)(f"/{service}/{method}", _bytes, reply.FromString)
    return Begun((make if streams else make.future)(request, timeout=within_s, metadata=metadata), streams)


def _bytes(request: Any) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def end(begun: Begun) -> Told:
    """Wait for the end of a call."""
    told = Told()
    try:
        if begun.streams:
            for reply in begun.call:
                told.replies.append(reply)
        else:
            told.replies.append(begun.call.result())
    except grpc.FutureCancelledError:
        told.code = "CANCELLED"
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        told.code, told.text = error.code().name, error.details() or ""
        told.cause = json.loads(dict(error.trailing_metadata() or ()).get(CAUSE_KEY, "{}"))
    return told


def ask(channel: grpc.Channel, method: str, request: Any = None, *, service: str = INFERENCE, **fields: Any) -> Told:
    """A whole call; without a `request`, of its `fields`."""
    asked = request_of(method, service=service, **fields) if request is None else request
    return end(begin(channel, method, asked, service=service))


def converse(channel: grpc.Channel, requests: Iterable[dict[str, Any]], **options: Any) -> Told:
    """A conversation whose requests are all there from the start."""
    asked = [request_of("StreamPredictions2", **fields) for fields in requests]
    return end(begin(channel, "StreamPredictions2", iter(asked), **options))
