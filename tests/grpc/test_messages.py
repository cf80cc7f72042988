"""The messages are those of the protos, and the same on the wire in each package they are in."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2

import tserve.grpc.messages
from tests.grpc.compile_protos import compiled
from tserve.grpc.messages import (
    HEALTH,
    INFERENCE,
    MANAGEMENT,
    OLDER_REFLECTION,
    OPEN_INFERENCE,
    POOL,
    REFLECTION,
    STANDARD_OPEN_INFERENCE,
    message,
)

GRPC = Path(tserve.grpc.messages.__file__).parent


def test_descriptors_are_compiled_from_the_protos() -> None:
    """Else: python tests/grpc/compile_protos.py"""
    kept = descriptor_pb2.FileDescriptorSet.FromString((GRPC / "descriptors.binpb").read_bytes())
    fresh = descriptor_pb2.FileDescriptorSet.FromString(compiled(GRPC / "protos"))
    assert [file.name for file in kept.file] == [file.name for file in fresh.file]
    for file, again in zip(kept.file, fresh.file, strict=True):
        if not file.name.startswith("google/protobuf/"):  # those of whichever protoc compiled them
            assert file == again


@pytest.mark.parametrize(
    ("service", "twin"), [(OPEN_INFERENCE, STANDARD_OPEN_INFERENCE), (REFLECTION, OLDER_REFLECTION)]
)
def test_twins_differ_in_their_package_only(service: str, twin: str) -> None:
    one, other = POOL.FindServiceByName(service), POOL.FindServiceByName(twin)
    assert [method.name for method in one.methods] == [method.name for method in other.methods]
    for method, same in zip(one.methods, other.methods, strict=True):
        for described, again in ((method.input_type, same.input_type), (method.output_type, same.output_type)):
            assert again.file.package == twin.rpartition(".")[0]
            assert shape_of(described) == shape_of(again)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("inference.ModelInferRequest", service_pb2.ModelInferRequest),
        ("inference.ModelInferResponse", service_pb2.ModelInferResponse),
        ("inference.ModelMetadataResponse", service_pb2.ModelMetadataResponse),
        ("inference.ServerMetadataResponse", service_pb2.ServerMetadataResponse),
        ("inference.ModelReadyRequest", service_pb2.ModelReadyRequest),
        (f"{HEALTH.rpartition('.')[0]}.HealthCheckRequest", health_pb2.HealthCheckRequest),
        (f"{HEALTH.rpartition('.')[0]}.HealthCheckResponse", health_pb2.HealthCheckResponse),
        ("grpc.reflection.v1alpha.ServerReflectionRequest", reflection_pb2.ServerReflectionRequest),
        ("grpc.reflection.v1alpha.ServerReflectionResponse", reflection_pb2.ServerReflectionResponse),
    ],
)
def test_messages_are_what_others_take_them_for(ours: str, theirs: object) -> None:
    """Whatever ours have, theirs have by the same number and type; they may have more."""
    mine, other = shape_of(message(ours).DESCRIPTOR), shape_of(theirs.DESCRIPTOR)  # type: ignore[attr-defined]
    assert mine.items() <= other.items()


def shape_of(described: object, above: tuple[str, ...] = ()) -> dict[str, tuple[object, ...]]:
    """Every field below a message by its path: number, type, whether it is repeated."""
    shape: dict[str, tuple[object, ...]] = {}
    for field in described.fields:  # type: ignore[attr-defined]
        path = (*above, field.name)
        shape[".".join(path)] = (field.number, field.type, field.is_repeated)
        if field.message_type is not None and len(path) < 6:
            shape |= shape_of(field.message_type, path)
    return shape


def test_the_numbers_of_the_contract() -> None:
    """spec/inference.md section 8.1."""
    package = INFERENCE.rpartition(".")[0]
    request = message(f"{package}.PredictionsRequest").DESCRIPTOR
    assert {field.name: field.number for field in request.fields} == {
        "model_name": 1,
        "model_version": 2,
        "input": 3,
        "sequence_id": 4,
    }
    methods = POOL.FindServiceByName(INFERENCE).methods
    assert {m.name: (m.client_streaming, m.server_streaming) for m in methods} == {
        "Ping": (False, False),
        "Predictions": (False, False),
        "StreamPredictions": (False, True),
        "StreamPredictions2": (True, True),
    }
    assert len(POOL.FindServiceByName(MANAGEMENT).methods) == 6
