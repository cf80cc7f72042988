"""Listening sockets."""

from __future__ import annotations

import socket

from tserve.errors import PortTaken

BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; a name with addresses of both families gets the IPv4 one.

    Raises tserve.errors.PortTaken with the address and the system's reason.
    """
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address[0], port, *address[2:]))
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise PortTaken(f"Cannot listen on {shown}: {error.strerror}") from error
    return sock
