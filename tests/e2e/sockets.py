"""Which addresses a server and all that comes of it listen on, by the kernel's own tables."""

from __future__ import annotations

import ipaddress
import re
import struct
from contextlib import suppress
from pathlib import Path

from tests.e2e.processes import tree

_LISTEN = "0A"


def listening(pid: int) -> set[tuple[str, int]]:
    """Address and port of every TCP socket in state LISTEN, and of every UDP socket, of a process and its children."""
    inodes = {inode for each in tree(pid) for inode in _inodes(each)}
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (table.startswith("udp") or fields[3] == _LISTEN):
                host, _, port = fields[1].partition(":")
                found.add((_address(host), int(port, 16)))
    return found


def _inodes(pid: int) -> set[str]:
    inodes = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                match = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
                if match is not None:
                    inodes.add(match[1])
    return inodes


def _address(shown: str) -> str:
    """The kernel shows each 32 bits as a number of the machine's byte order."""
    words = [int(shown[start : start + 8], 16) for start in range(0, len(shown), 8)]
    return str(ipaddress.ip_address(b"".join(struct.pack("=I", word) for word in words)))
