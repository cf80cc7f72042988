"""The messages of a call out of the bytes that come: five bytes tell of each how long it is, and if it is packed."""

from __future__ import annotations

import zlib

import trio

from tserve.grpc.codes import Code
from tserve.grpc.methods import Refusal

PREFIX_BYTES = 5
LARGE_BYTES = 64 << 10  # a packed message of more is unpacked in a thread
_EITHER = zlib.MAX_WBITS | 32  # zlib finds out by itself whether it is gzip or deflate
_unpacking = trio.CapacityLimiter(2)

Message = tuple[bool, bytes]  # packed, and what it is


class Inbox:
    """Messages of more than `most` bytes are refused, packed or not."""

    __slots__ = ("_begun", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun = bytearray()  # a message that is not complete

    @property
    def held(self) -> int:
        return len(self._begun)

    @property
    def missing(self) -> int:
        """Bytes until the message that has begun is complete, as far as one can know."""
        if self.held < PREFIX_BYTES:
            return 0
        return PREFIX_BYTES + self._length(self._begun, 0) - self.held

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now.  Raises Refusal."""
        if self._begun:
            self._begun += data
            said: bytes | bytearray = self._begun
        else:
            said = data
        at, found = 0, []
        while len(said) - at >= PREFIX_BYTES:
            end = at + PREFIX_BYTES + self._length(said, at)
            if len(said) < end:
                break
            with memoryview(said) as view:  # cuts a bytearray without copying twice
                found.append((said[at] == 1, bytes(view[at + PREFIX_BYTES : end])))
            at = end
        if at or said is data:
            self._begun = bytearray(said[at:])
        return found

    def _length(self, data: bytes | bytearray, at: int) -> int:
        length = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
        if length > self._most:
            raise Refusal(
                Code.RESOURCE_EXHAUSTED,
                f"The message has {length} bytes, max_request_size allows {self._most}.",
                {"field": "max_request_size", "value": length, "allowed": f"at most {self._most}"},
            )
        if data[at] > 1:
            raise Refusal(Code.INTERNAL, f"A message cannot begin with the byte {data[at]}.", {})
        return length


async def unpacked(message: Message, most: int) -> bytes:
    """Raises Refusal."""
    packed, data = message
    if not packed:
        return data
    if len(data) < LARGE_BYTES:
        return _unpack(data, most)
    return await trio.to_thread.run_sync(_unpack, data, most, limiter=_unpacking)


def _unpack(data: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj(_EITHER)
    try:
        found = unpacker.decompress(data, most + 1)
    except zlib.error as e:
        raise Refusal(Code.INTERNAL, f"The message cannot be unpacked: {e}", {}) from None
    if len(found) > most:
        raise Refusal(Code.RESOURCE_EXHAUSTED, f"Unpacked the message has more than {most} bytes.", {})
    if not unpacker.eof:
        raise Refusal(Code.INTERNAL, "The packed message is cut off.", {})
    return found
