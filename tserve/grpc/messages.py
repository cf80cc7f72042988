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


def _make_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    compiled = resources.files(__package__).joinpath("descriptors.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
        if file.package == OPEN_INFERENCE.rpartition(".")[0]:
            pool.Add(_under_standard_package(file))
    return pool


def _under_standard_package(file: Any) -> Any:
    """The same file in the package that the protocol itself gives it; the bytes of its messages are the same."""
    renamed = descriptor_pb2.FileDescriptorProto()
    renamed.CopyFrom(file)
    renamed.name, renamed.package = f"standard/{file.name}", STANDARD_OPEN_INFERENCE.rpartition(".")[0]
    _rename_types(renamed.message_type, f".{file.package}.", f".{renamed.package}.")
    for method in renamed.service[0].method:
        method.input_type = method.input_type.replace(f".{file.package}.", f".{renamed.package}.")
        method.output_type = method.output_type.replace(f".{file.package}.", f".{renamed.package}.")
    return renamed


def _rename_types(messages: Any, old: str, new: str) -> None:
    for each in messages:
        for field in each.field:
            if field.type_name:  # else to set it, even to nothing, would be an error
                field.type_name = field.type_name.replace(old, new)
        _rename_types(each.nested_type, old, new)


POOL = _make_pool()


def message(full_name: str) -> Any:
    """The class of a message.  Raises KeyError for an unknown name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))
