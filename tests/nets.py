"""Sockets of network namespaces, and whether they reach each other."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING

from isolib._kernel.sockets import open_socket

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    from isolib.namespaces import NetNS
    from isolib.types import HasFileno

PATIENCE = 30
"""Seconds after which a test no longer waits for what must come."""
SOON = 0.5
"""Seconds in which nothing has come that must not come."""


def socket_in(
    ns: HasFileno | None, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET, protocol: int = 0
) -> socket.socket:
    """Return a socket of a namespace; it gives up after a while."""
    with open_socket(ns, family, kind, protocol) as fd:
        made = socket.socket(fileno=os.dup(fd.fileno()))
    made.settimeout(PATIENCE)
    return made


def family_of(address: str | IPv4Address | IPv6Address) -> int:
    """Return the family of an address."""
    return socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6


def listen(ns: HasFileno | None, address: str | IPv4Address | IPv6Address, port: int = 0) -> socket.socket:
    """Return a socket of a namespace that waits for connections of TCP."""
    server = socket_in(ns, family=family_of(address))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((str(address), port))
    server.listen(64)
    return server


def dial(ns: HasFileno | None, address: str, port: int) -> socket.socket:
    """Return a connection of TCP, or raise."""
    made = socket_in(ns, family=family_of(address))
    try:
        made.connect((address, port))
    except OSError:
        made.close()
        raise
    return made


def talk(server: socket.socket, client: socket.socket) -> str:
    """Send a word over a connection that was made, and one back; return from where the server sees it come."""
    server.settimeout(PATIENCE)
    accepted, peer = server.accept()
    with accepted:
        accepted.settimeout(PATIENCE)
        client.sendall(b"word")
        assert accepted.recv(100) == b"word"
        accepted.sendall(b"answer")
        assert client.recv(100) == b"answer"
    return str(peer[0])


def reach(client: HasFileno | None, host: str, port: int, server: socket.socket) -> str:
    """Connect and talk; return from where the server sees it come."""
    with dial(client, host, port) as connection:
        return talk(server, connection)


def reaches(
    ns: HasFileno | None, other: HasFileno | None, address: str | IPv4Address | IPv6Address, *, patience: float = PATIENCE
) -> bool:
    """Return whether a namespace reaches a server that listens on an address of another, and is heard there."""
    with listen(other, address) as server, socket_in(ns, family=family_of(address)) as client:
        client.settimeout(patience)
        try:
            client.connect(server.getsockname()[:2])
        except OSError:
            return False
        with server.accept()[0] as there:
            there.settimeout(PATIENCE)
            client.sendall(b"hello")
            assert there.recv(5) == b"hello"
            there.sendall(b"world")
            return client.recv(5) == b"world"


def until(condition: Callable[[], bool]) -> bool:
    """Wait for what the kernel does behind, and return whether it has."""
    tick = threading.Event()
    for _ in range(PATIENCE * 100):
        if condition():
            return True
        tick.wait(0.01)
    return False


def datagram_reaches(ns: HasFileno | None, other: HasFileno | None, address: str | IPv4Address | IPv6Address) -> bool:
    """Return whether a datagram of a namespace comes to another one, and its answer back."""
    with (
        socket_in(other, socket.SOCK_DGRAM, family_of(address)) as there,
        socket_in(ns, socket.SOCK_DGRAM, family_of(address)) as here,
        contextlib.suppress(TimeoutError),
    ):
        there.bind((str(address), 0))
        here.sendto(b"ping", there.getsockname()[:2])
        data, back = there.recvfrom(16)
        there.sendto(data, back)
        return here.recv(16) == b"ping"
    return False


def holders() -> list[Callable[[NetNS], Callable[[], object]]]:
    """Return ways to have a namespace although its handle is closed; each returns how to let it go."""

    def descriptor(ns: NetNS) -> Callable[[], object]:
        number = os.dup(ns.fileno())
        return lambda: os.close(number)

    def program(ns: NetNS) -> Callable[[], object]:
        process = ns.spawn(["sleep", "1000"])

        def end() -> None:
            process.kill()
            process.wait(PATIENCE)
            process.close()

        return end

    return [descriptor, lambda ns: socket_in(ns).close, program]
