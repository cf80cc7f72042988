"""The standard reflection service: what is served on a port, for tools like grpcurl."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import trio
from google.protobuf import descriptor_pb2

from tserve.grpc.codes import Code
from tserve.grpc.messages import OLDER_REFLECTION, POOL, REFLECTION, message_of
from tserve.grpc.methods import Call, Method, Send, Service, cancel_at, refuse_by_code


def reflection_services(names: Sequence[str]) -> list[Service]:
    """`names` are those of the other services of the port."""
    both = (REFLECTION, OLDER_REFLECTION)
    return [_service(name, _ReflectionApi(name, sorted([*names, *both]))) for name in both]


def _service(name: str, api: _ReflectionApi) -> Service:
    return Service(name, [Method("ServerReflectionInfo", api.info, True, True)], refuse_by_code)


class _ReflectionApi:
    def __init__(self, service: str, names: Sequence[str]) -> None:
        self._response = message_of(service, "ServerReflectionResponse")
        self._names = names

    async def info(self, requests: AsyncIterator[Any], call: Call, send: Send) -> None:
        """Tools keep this call open: it ends when the server begins to stop."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_at, call.stopping, nursery.cancel_scope)
            async for request in requests:
                await send(self._answer(request))
            nursery.cancel_scope.cancel()

    def _answer(self, request: Any) -> Any:
        response = self._response(valid_host=request.host, original_request=request)
        try:
            match request.WhichOneof("message_request"):
                case "list_services":
                    for name in self._names:
                        response.list_services_response.service.add(name=name)
                case "file_by_filename":
                    _add_files(response, POOL.FindFileByName(request.file_by_filename))
                case "file_containing_symbol":
                    _add_files(response, POOL.FindFileContainingSymbol(request.file_containing_symbol))
                case "all_extension_numbers_of_type":  # there are none
                    found = POOL.FindMessageTypeByName(request.all_extension_numbers_of_type)
                    response.all_extension_numbers_response.base_type_name = found.full_name
                case _:
                    raise KeyError
        except KeyError:
            response.error_response.error_code, response.error_response.error_message = Code.NOT_FOUND, "not found"
        return response


def _add_files(response: Any, file: Any) -> None:
    """The file, and behind it those that it needs."""
    waiting, seen = [file], {file.name}
    while waiting:
        described = waiting.pop(0)
        proto = descriptor_pb2.FileDescriptorProto()
        described.CopyToProto(proto)
        response.file_descriptor_response.file_descriptor_proto.append(proto.SerializeToString())
        for needed in described.dependencies:
            if needed.name not in seen:
                seen.add(needed.name)
                waiting.append(needed)
