"""The message classes of the protos, made from their compiled descriptors.

There is no generated code, which would tie the server to few releases of protobuf, and the descriptors live in a pool
of their own, so that the stubs of a client in the same process are not in their way.  `descriptors.binpb` is compiled
from protos/ by tests/grpc/compile_protos.py; a test holds the two together.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService"
INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
OPEN_INFERENCE = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
STANDARD_OPEN_INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
OLDER_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
# The same files in a second package; the bytes of their messages are the same.
_TWINS = {OPEN_INFERENCE: STANDARD_OPEN_INFERENCE, REFLECTION: OLDER_REFLECTION}


def _make_pool() -> descriptor_pool.DescriptorPool:
    twins = {_package(service): _package(twin) for service, twin in _TWINS.items()}
    pool = descriptor_pool.DescriptorPool()
    compiled = resources.files(__package__).joinpath("descriptors.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
        if file.package in twins:
            pool.Add(_moved(file, twins[file.package]))
    return pool


def _package(service: str) -> str:
    return service.rpartition(".")[0]


def _moved(file: Any, package: str) -> Any:
    """A file as one of another package."""
    moved = descriptor_pb2.FileDescriptorProto()
    moved.CopyFrom(file)
    moved.name, moved.package = f"{package}/{file.name}", package
    old, new = f".{file.package}.", f".{package}."
    _rename_types(moved.message_type, old, new)
    for method in moved.service[0].method:
        method.input_type = method.input_type.replace(old, new)
        method.output_type = method.output_type.replace(old, new)
    return moved


def _rename_types(messages: Any, old: str, new: str) -> None:
    for each in messages:
        for field in each.field:
            if field.type_name:  # else to set it, even to nothing, would be an error
                field.type_name = field.type_name.replace(old, new)
        _rename_types(each.nested_type, old, new)


POOL = _make_pool()


def message_of(service: str, name: str) -> Any:
    """The class of a message in the package of a service.  Raises KeyError for an unknown name."""
    return message(f"{_package(service)}.{name}")


def message(full_name: str) -> Any:
    """The class of a message.  Raises KeyError for an unknown name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))
