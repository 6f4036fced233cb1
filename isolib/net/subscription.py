"""What the kernel tells of a network namespace without being asked: sockets that get some of it (rtnetlink(7), RTNLGRP_*)."""

from __future__ import annotations

import os
from _socket import socket as Socket  # noqa: N812 - not socket.socket, which gevent replaces
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink.socket import ROUTE
from isolib._kernel.sockets import open_socket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolib.types import HasFileno

__all__ = ["LONGEST", "subscribe"]

LONGEST: Final = 1 << 16
"""Bytes of the longest message."""

_AF_NETLINK: Final = 16
_SOCK_RAW: Final = 3
_SOL_SOCKET: Final = 1
_SO_RCVBUF: Final = 8
_SO_RCVBUFFORCE: Final = 33
_ROOM: Final = 1 << 22


def subscribe(net: HasFileno | None, groups: Iterable[int]) -> Socket:
    """Return a socket that does not block, and gets what the kernel tells these groups.

    Where more comes than there is room for, reading fails once, with ENOBUFS.

    Raises
    ------
    SyscallError, SetupFailed
        As in `isolib._kernel.sockets.open_socket`.
    """
    with open_socket(net, _AF_NETLINK, _SOCK_RAW, ROUTE, label="netlink route") as fd:
        # In one go of C functions: an interrupt leaves no descriptor that nobody owns.
        sock = next(map(partial(Socket, _AF_NETLINK, _SOCK_RAW, ROUTE), map(os.dup, (fd.fileno(),))))
    try:
        sock.setblocking(False)  # noqa: FBT003 - its one argument
        try:
            sock.setsockopt(_SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        except PermissionError:  # net.core.rmem_max bounds it for who is not root
            sock.setsockopt(_SOL_SOCKET, _SO_RCVBUF, _ROOM)
        sock.bind((0, sum(1 << group - 1 for group in groups)))
    except BaseException:
        sock.close()
        raise
    return sock
