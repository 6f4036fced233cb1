"""Sockets of a namespace that others come to: bound, and listening where they are streams."""

from __future__ import annotations

import os
import socket
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Fd
from isolib._kernel.hints import hint
from isolib._kernel.sockets import open_socket, open_sockets
from isolib.errors import PlanError, from_errno
from isolib.net.serving import take_socket

if TYPE_CHECKING:
    from isolib.net.serving import Socket
    from isolib.net.values import AnyAddress
    from isolib.types import HasFileno

__all__ = ["KINDS", "SocketFile", "Stock", "bound_socket", "check_path", "new_socket"]

KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
#: Connections that wait to be accepted; net.core.somaxconn bounds it.
_BACKLOG: Final = 1024
#: How many sockets a process makes that is sent for one: each is a descriptor, of which a program may have 1024.
_STOCK: Final = 16
#: Of a path in an address, which a NUL ends (unix(7)).
_LONGEST_PATH: Final = 107
_IN_THE_WAY: Final = "there is something of this name; a socket that a killed program has left is to be removed by hand"
_HINTS: Final = {
    EADDRINUSE: "this port is in use there: port 0 finds a free one",
    EADDRNOTAVAIL: "the namespace does not have this address",
    EACCES: "ports below net.ipv4.ip_unprivileged_port_start (1024) take CAP_NET_BIND_SERVICE",
}


def new_socket(ns: HasFileno | None, address: AnyAddress, kind: int) -> Socket:
    """Return a socket of a namespace and of the family of an address, not blocking."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004
    return take_socket(open_socket(ns, family, kind | socket.SOCK_NONBLOCK))


class Stock:
    """Sockets of a namespace that are made before somebody needs them, where each would cost a process otherwise.

    Parameters
    ----------
    ns
        The namespace.
    """

    def __init__(self, ns: HasFileno) -> None:
        self._ns = ns
        self._spare: dict[tuple[int, int], list[Fd]] = {}

    def take(self, address: AnyAddress, kind: int) -> Fd:
        """Return a socket of the family of an address, not blocking.  One thread at a time may call this."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004
        spare = self._spare.setdefault((family, kind), [])
        if not spare:
            spare.extend(open_sockets(self._ns, family, kind | socket.SOCK_NONBLOCK, count=_STOCK))
        return spare.pop()

    def close(self) -> None:
        """Close all that nobody has needed; again is nothing."""
        for spare in self._spare.values():
            while spare:
                spare.pop().close()


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


def check_path(value: object, what: str) -> str:
    """Return the whole path of a unix socket.

    Raises
    ------
    PlanError
        It cannot be one.
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(text := os.fspath(value), str) or "/" not in text:
        raise PlanError(f"{what}: the path of a unix socket, with a '/', is wanted, not {value!r}")
    path = os.path.abspath(text)
    try:
        length = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise PlanError(f"{what}: this path cannot be written in bytes: {value!r}") from None
    if "\0" in path or length > _LONGEST_PATH:
        raise PlanError(f"{what}: a unix socket's path has {_LONGEST_PATH} bytes at the most, and no NUL: {path!r}")
    return path


class SocketFile:
    """The file of a unix socket that others come to.

    Parameters
    ----------
    path
        A whole path, at which nothing is.

    Raises
    ------
    SyscallError
        Its directory cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        directory, self._name = os.path.split(path)
        try:
            found = Fd.take(os.open, directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise from_errno("open", directory, error.errno or 0) from None
        assert found is not None  # noqa: S101 - os.open raises
        self._directory = found
        self._sock: Socket | None = None
        self._own: os.stat_result | None = None

    def listen(self, mode: int) -> Socket:
        """Return the socket, listening; its file has never other permissions than these, less those of the umask.

        Raises
        ------
        SyscallError
            EADDRINUSE: there is something of this name.
        """
        made = self._sock = take_socket(open_socket(None, socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        try:
            os.fchmod(made.fileno(), mode)  # which bind(2) gives the file
            made.bind(self.path)
            self._own = self._look()
            made.listen(_BACKLOG)
        except OSError as error:
            self.remove()
            made.close()
            errno = error.errno or 0
            known = _IN_THE_WAY if errno == EADDRINUSE else hint("bind", errno)
            raise from_errno("bind", self.path, errno, known) from None
        except BaseException:
            self.remove()
            made.close()
            raise
        return made

    def _look(self) -> os.stat_result | None:
        try:
            return os.stat(self._name, dir_fd=self._directory.fileno(), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Remove the file, unless it is another one by now; again is nothing."""
        if self._directory.closed:
            return
        if self._own is None and self._sock is not None and self._sock.fileno() >= 0 and self._sock.getsockname():
            self._own = self._look()  # somebody came between the two calls
        found = self._look()
        if found is not None and self._own is not None and os.path.samestat(found, self._own):
            os.unlink(self._name, dir_fd=self._directory.fileno())
        self._directory.close()
