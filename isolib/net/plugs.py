"""Sockets of a namespace that others come to: bound, and listening where they are streams."""

from __future__ import annotations

import socket
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL
from typing import TYPE_CHECKING, Final

from isolib._kernel.hints import hint
from isolib._kernel.sockets import open_socket
from isolib.errors import from_errno
from isolib.net.serving import take_socket

if TYPE_CHECKING:
    from isolib.net.serving import Socket
    from isolib.net.values import AnyAddress
    from isolib.types import HasFileno

__all__ = ["KINDS", "bound_socket", "new_socket"]

KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
#: Connections that wait to be accepted; net.core.somaxconn bounds it.
_BACKLOG: Final = 1024
_HINTS: Final = {
    EADDRINUSE: "this port is in use there: port 0 finds a free one",
    EADDRNOTAVAIL: "the namespace does not have this address",
    EACCES: "ports below net.ipv4.ip_unprivileged_port_start (1024) take CAP_NET_BIND_SERVICE",
}


def new_socket(ns: HasFileno | None, address: AnyAddress, kind: int) -> Socket:
    """Return a socket of a namespace and of the family of an address, not blocking."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004
    return take_socket(open_socket(ns, family, kind | socket.SOCK_NONBLOCK))


def bound_socket(ns: HasFileno | None, address: AnyAddress, port: int, proto: str) -> Socket:
    """Return a socket of a namespace that others can come to.

    Parameters
    ----------
    ns
        The namespace; None: that of the calling thread.
    address, port
        Where; port 0: a free one.
    proto
        "tcp" or "udp".

    Raises
    ------
    SyscallError
        EADDRINUSE: the port is in use.
    """
    made = new_socket(ns, address, KINDS[proto])
    try:
        if proto == "tcp":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.version != 4:  # noqa: PLR2004
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((str(address), port))
        if proto == "tcp":
            made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        errno = error.errno or 0
        raise from_errno("bind", f"{address} port {port} ({proto})", errno, _HINTS.get(errno) or hint("bind", errno)) from None
    except BaseException:
        made.close()
        raise
    return made
