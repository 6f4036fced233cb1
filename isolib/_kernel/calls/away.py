"""The calling thread goes to another namespace and comes back: in one call, or for the length of a stay."""

from __future__ import annotations

import os
from typing import Any, Final, TypeAlias

from isolib._kernel._ext import ffi, lib
from isolib._kernel.abi import NAMESPACE_FLAGS
from isolib._kernel.calls.checking import checked, path_bytes, taken
from isolib._kernel.handle import Fd
from isolib.errors import ThreadStranded, from_errno

#: ``struct isolib_stay``: what cffi makes has no type.
Stay: TypeAlias = Any

# Of the calling thread: /proc/self would be the main thread.
OWN_FILES: Final = {kind: f"/proc/thread-self/ns/{kind}".encode() for kind in NAMESPACE_FLAGS}

#: How far it came, and the call that failed there.
_STAGES: Final = {
    lib.ISOLIB_AWAY_OPEN: "open",
    lib.ISOLIB_AWAY_WAY_BACK: "setns",
    lib.ISOLIB_AWAY_ENTER: "setns",
    lib.ISOLIB_AWAY_UNSHARE: "unshare",
    lib.ISOLIB_AWAY_LINK_UP: "ioctl SIOCSIFFLAGS",
    lib.ISOLIB_AWAY_HOSTNAME: "sethostname",
    lib.ISOLIB_AWAY_DOMAINNAME: "setdomainname",
    lib.ISOLIB_AWAY_REOPEN: "open",
    lib.ISOLIB_AWAY_SOCKET: "socket",
    lib.ISOLIB_AWAY_FILE: "open",
    lib.ISOLIB_AWAY_PUT: "write",
    lib.ISOLIB_AWAY_CONNECT: "connect",
    lib.ISOLIB_AWAY_RETURN: "setns",
}
#: Where a thread is that could not go back.
_THERE: Final = "another network namespace"
# Looked up by name they would cost more than what they are for.
_STAGE: Final = ffi.typeof("int32_t *")
_IDENTITY: Final = ffi.typeof("struct isolib_identity *")


def new_namespace(
    kind: str, *, lo: bool = False, hostname: str | None = None, domainname: str | None = None
) -> tuple[Fd, tuple[int, int]]:
    """Make a net, uts, ipc or cgroup namespace; the calling thread is in it meanwhile, and where it was afterwards.

    Returns
    -------
    Fd, (int, int)
        Its descriptor, and what tells it from all others: a device and a number on that (stat(2)).

    Raises
    ------
    ThreadStranded
        The thread could not go back. For every other failure it has.
    """
    stage, identity = ffi.new(_STAGE), ffi.new(_IDENTITY)
    host = ffi.NULL if hostname is None else ffi.new("char[]", os.fsencode(hostname))
    domain = ffi.NULL if domainname is None else ffi.new("char[]", os.fsencode(domainname))
    made = Fd.take(lib.isolib_namespace_new, NAMESPACE_FLAGS[kind], OWN_FILES[kind], lo, host, domain, stage, identity)
    if made is None:
        raise failure(stage[0], ffi.errno, f"new {kind} namespace", f"a new {kind} namespace")
    return made, (identity.device, identity.inode)


def new_socket(family: int, kind: int, protocol: int, target: str) -> Fd:
    """Make a socket of the calling thread's network namespace: socket(2)."""
    return taken("socket", target, Fd.take(lib.isolib_socket, family, kind, protocol))


def socket_in(net: int, family: int, kind: int, protocol: int, target: str) -> Fd:
    """Make a socket of another network namespace, which it stays in: socket(2), setns(2).

    Raises
    ------
    ThreadStranded
        As in `new_namespace`.
    SyscallError
        With setns: the thread lacks CAP_SYS_ADMIN over the namespace or over its own user namespace.
    """
    stage = ffi.new(_STAGE)
    made = Fd.take(lib.isolib_socket_in, net, OWN_FILES["net"], family, kind, protocol, stage)
    return _back(made, stage[0], target)


def receive_descriptor(fd: int, target: str) -> Fd:
    """Return a descriptor that has been sent to a unix socket: recvmsg(2), SCM_RIGHTS.  It is not waited for."""
    return taken("recvmsg", target, Fd.take(lib.isolib_receive, fd))


def open_in(net: int, path: str, flags: int) -> Fd:
    """Open a file that is a network namespace's, one of /proc/sys/net: open(2), setns(2).

    Raises
    ------
    ThreadStranded, SyscallError
        As in `socket_in`.
    """
    stage = ffi.new(_STAGE)
    made = Fd.take(lib.isolib_open_in, net, OWN_FILES["net"], path_bytes(path), flags, stage)
    return _back(made, stage[0], path)


def put_in(net: int, path: str, text: str) -> None:
    """Write to a file that is a network namespace's, one of /proc/sys/net: open(2), write(2), setns(2).

    Raises
    ------
    ThreadStranded, SyscallError
        As in `socket_in`.
    """
    stage = ffi.new(_STAGE)
    if lib.isolib_put_in(net, OWN_FILES["net"], path_bytes(path), text.encode(), stage) < 0:
        raise failure(stage[0], ffi.errno, path)


def netlink_in(net: int, protocol: int, target: str, put: tuple[str, str] | None = None) -> Fd:
    """Make a netlink socket of another network namespace, prepared as by `netlink_prepare`; otherwise as `socket_in`.

    ``put`` is a path and a text, written before on the same way, as by `put_in`.
    """
    stage = ffi.new(_STAGE)
    path, text = (ffi.NULL, ffi.NULL) if put is None else (path_bytes(put[0]), put[1].encode())
    made = Fd.take(lib.isolib_netlink_in, net, OWN_FILES["net"], protocol, path, text, stage)
    if put is not None and stage[0] in {lib.ISOLIB_AWAY_FILE, lib.ISOLIB_AWAY_PUT}:
        target = put[0]
    return _back(made, stage[0], target)


def _back(made: Fd | None, stage: int, target: str) -> Fd:
    if made is not None:
        return made
    # No name for the exception: it would be in a circle with this frame, which keeps alive all that its callers have.
    raise failure(stage, ffi.errno, target)


def failure(stage: int, errno: int, target: str, where: str = _THERE) -> Exception:
    """Return the exception for who was kept from something elsewhere, and came so far."""
    error = from_errno(_STAGES[stage], target, errno)
    if stage != lib.ISOLIB_AWAY_RETURN:
        return error
    stranded = ThreadStranded(f"the thread stays in {where}")
    stranded.__cause__ = error
    return stranded


def netlink_prepare(fd: int, target: str) -> None:
    """Connect a netlink socket to the kernel, with room for many answers, and explanations of refusals where there are any.

    What it answers is not waited for: it is there when a send returns.
    """
    checked("connect", target, lib.isolib_netlink_prepare(fd))


_ROOM: Final = 2 * lib.ISOLIB_NETLINK_PART
_allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)


def netlink_talk(fd: int, sent: bytes) -> tuple[bytes, int]:
    """Send requests on a prepared socket, and return what is answered at once; there may be more.

    Returns
    -------
    bytes, int
        Messages, and the error number that kept from hearing more of them, or 0.
    """
    heard = _allocate("char[]", _ROOM)
    error = ffi.new(_STAGE)
    size = checked("netlink", "", lib.isolib_netlink_talk(fd, sent, len(sent), heard, _ROOM, error))
    return ffi.buffer(heard, size)[:], error[0]


def new_stay(kind: str) -> Stay:
    """Return an empty ``struct isolib_stay``; what it holds is closed with it."""
    return ffi.gc(ffi.new("struct isolib_stay *", (NAMESPACE_FLAGS[kind], -1)), lib.isolib_stay_forget)


def begin_stay(stay: Stay, fd: int, kind: str, target: str) -> None:
    """Move the calling thread into a namespace that it can come back from; the stay knows the way back from before that on."""
    result = lib.isolib_stay_begin(stay, fd, OWN_FILES[kind])
    if result < 0:
        errno = ffi.errno
        where = f"{target}, the way back" if result == -2 else target  # noqa: PLR2004 -- as cdef.h says
        raise from_errno("open" if result == -1 else "setns", where, errno)


def end_stay(stay: Stay, target: str) -> None:
    """Move the calling thread back; again is nothing."""
    checked("setns", target, lib.isolib_stay_end(stay))
