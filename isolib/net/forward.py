"""Forwarding connections and datagrams in user space: what is published without privileges, rules or another program.

A `Forwarder` has a socket of one network namespace and opens, for each client, a socket of another one, by a function that it
was given. It copies between both. Everything happens on the one thread of `isolib.net.serving`.

What a client sees is what it would see of the server itself, as far as a copy can be true:

- Each direction ends by itself: a half-closed connection stays so, and what was sent before an end arrives before it.
- A connection that broke, or that cannot be made, is reset; it never looks as if it had ended well. (A unix socket knows no
  reset: there the connection ends.)
- Who does not read is not read for: of each direction one chunk is kept at the most, and the sender waits.
- A datagram that cannot be sent on is lost, as datagrams are.

Other than with a rule of the kernel's, the server sees the forwarder's address in place of the client's.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Handle
from isolib.errors import PlanError
from isolib.net.datagrams import DatagramRelay
from isolib.net.serving import disown
from isolib.net.streams import StreamRelay, take_copy

if TYPE_CHECKING:
    from isolib.net.streams import Open, Relay, Target
    from isolib.types import HasFileno

__all__ = ["Forwarder", "Traffic", "new_forwarder"]

LIMIT: Final = 4096
_DATAGRAMS: Final = (socket.AF_INET, socket.AF_INET6)
_STREAMS: Final = (*_DATAGRAMS, socket.AF_UNIX)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a forwarder has done until now.

    Attributes
    ----------
    connections
        How many there were; of datagrams, how many clients.
    active
        How many there are now.
    failed
        How many could not be made, or broke; of datagrams, how many were lost here.
    sent, received
        Bytes from the clients to the server, and back.
    """

    connections: int
    active: int
    failed: int
    sent: int
    received: int


class Forwarder(Handle, made_by="new_forwarder()"):
    """Forwards from a socket to a server in another namespace; by `new_forwarder`.

    Closing it resets all connections, and the socket's address is free when that returns.
    """

    def __init__(self, relay: Relay, name: str) -> None:
        super().__init__()
        self._relay = relay
        self._name = name

    @property
    def error(self) -> BaseException | None:
        """What went wrong last, and only a client could be told of: it was reset."""
        return self._relay.error

    def stats(self) -> Traffic:
        """Return what it has done until now."""
        relay = self._relay
        return Traffic(relay.connections, relay.active, relay.failed, relay.sent, relay.received)

    def _release(self) -> None:
        self._relay.stop()

    def _describe(self) -> str:
        return self._name


def new_forwarder(listening: HasFileno, connect: Open, target: Target, *, limit: int = LIMIT, idle: float = 60.0) -> Forwarder:
    """Forward what comes to a socket to a server, which may be in another network namespace.

    Nothing is needed but the sockets: no privilege, no rule in the kernel, no other program.

    Parameters
    ----------
    listening
        A socket that is bound and, if it is a stream, listening: TCP, UDP, or a unix stream. It is the forwarder's from now on.
    connect
        Returns a new socket, born in the namespace of the server, that is to be connected to it; it is the forwarder's. It is
        called for each client, by the thread that serves all others meanwhile: it must not wait.
    target
        The server's address, as `socket.socket.connect` takes it: ``("10.0.0.2", 80)``, numeric, or the path of a unix socket.
    limit
        How many clients are served at the same time. More connections wait until one has ended; of datagrams, the client that
        was silent for the longest time is forgotten. So it is, too, when what is served by this program has a quarter of the
        descriptors that it may have (RLIMIT_NOFILE), and no more than a quarter is left.
    idle
        Seconds after which a client of datagrams that is silent is forgotten, its server too.

    Returns
    -------
    Forwarder
        Close it.

    Raises
    ------
    PlanError
        The socket is of another kind, or a number makes no sense.
    SyscallError
        There are no more descriptors or threads.

    Examples
    --------
    >>> server = socket.create_server(("127.0.0.1", 0))
    >>> front = socket.create_server(("127.0.0.1", 0))
    >>> address = front.getsockname()
    >>> with new_forwarder(front, socket.socket, server.getsockname()) as forwarder:
    ...     client = socket.create_connection(address)
    ...     inner, _ = server.accept()
    ...     _ = client.sendall(b"hello"), client.shutdown(socket.SHUT_WR)
    ...     inner.makefile("rb").read()
    ...     client.close(), inner.close()
    b'hello'
    (None, None)
    >>> server.close()
    """
    if limit < 1 or not idle > 0:
        raise PlanError(f"limit and idle must be more than nothing, not {limit} and {idle}")
    sock = take_copy(listening, "the socket to forward from")
    kind = sock.type & 0xF
    relays = {int(socket.SOCK_STREAM): (StreamRelay, _STREAMS), int(socket.SOCK_DGRAM): (DatagramRelay, _DATAGRAMS)}
    relay_type, families = relays.get(kind, (StreamRelay, ()))
    if sock.family not in families:
        sock.close()
        raise PlanError(f"only TCP, UDP and unix streams can be forwarded, not family {sock.family}, type {kind}")
    relay = relay_type(sock, connect, target, limit, idle)
    forwarder = Forwarder._make(relay, f"{_show(sock.getsockname())} to {_show(target)}")
    try:
        relay.start()
    except BaseException:
        forwarder.close()
        raise
    disown(listening)
    return forwarder


def _show(address: object) -> str:
    if isinstance(address, tuple):
        return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    return os.fsdecode(address) if isinstance(address, bytes) else str(address)
