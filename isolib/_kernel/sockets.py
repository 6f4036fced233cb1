"""Sockets that belong to another network namespace than the caller's, and files of /proc/sys/net that do.

A socket stays in the namespace that it was made in, whoever uses it.  A thread with CAP_SYS_ADMIN goes there for the moment of
one call.  Who lacks that sends a process of the launcher, which joins the namespace's owner first, and hands over what it
has opened.
"""

from __future__ import annotations

import fcntl
import os
from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair  # the interpreter's own, not gevent's
from contextlib import contextmanager
from errno import EPERM
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.hints import hint, typed
from isolib._kernel.launch import launch
from isolib._kernel.plan import HOLD, HOST, INSIDE, Builder, Step
from isolib.errors import SyscallError, from_errno

if TYPE_CHECKING:
    from _socket import socket as _Socket  # noqa: N812 - not socket.socket, which gevent replaces
    from collections.abc import Callable, Iterator, Sequence

    from isolib.types import HasFileno

__all__ = [
    "check_refusal",
    "netlink_step",
    "new_namespace_beside",
    "open_file_in",
    "open_netlink_socket",
    "open_socket",
    "open_sockets",
    "put_in",
]

_SILENT: Final = (calls.STDIO_NULL,) * 3
_AF_NETLINK: Final = 16
_SOCK_RAW: Final = 3


def open_socket(net: HasFileno | None, family: int, kind: int, protocol: int = 0, *, label: str = "socket") -> Fd:
    """Return a new socket of a network namespace.

    Parameters
    ----------
    net
        The namespace; None: that of the calling thread.
    family, kind, protocol
        As for socket(2).
    label
        What it is, for errors.

    Raises
    ------
    SyscallError
        The kernel refused.
    SetupFailed
        The same, for who may not go there himself.
    """
    if net is None:
        return calls.new_socket(family, kind, protocol, label)
    return _opened(
        net,
        _socket_step(family, kind, protocol, label),
        label,
        here=lambda: calls.new_socket(family, kind, protocol, label),
        there=lambda fd: calls.socket_in(fd, family, kind, protocol, label),
    )


def open_sockets(net: HasFileno, family: int, kind: int, *, count: int, label: str = "socket") -> list[Fd]:
    """Return new sockets of a network namespace: one, or as many as these where a process is sent for them.

    Otherwise as `open_socket`.
    """
    step = _socket_step(family, kind, 0, label)
    try:
        return [calls.socket_in(net.fileno(), family, kind, 0, label)]
    except SyscallError as error:
        check_refusal(error, label)
    if _is_here(net):
        return [calls.new_socket(family, kind, 0, label)]
    with _pair() as (ours, theirs), calls.namespace_owner(net.fileno()) as owner, typed(label):
        builder = _inside(owner, net)
        way = builder.declare(theirs.fileno(), label)
        for _ in range(count):
            builder.add(INSIDE, Step("SEND", fd=builder.produce(INSIDE, step, label), fd2=way, what=label))
        launch(builder.build(HOLD), builder.fds, stdio=_SILENT).end()
        return [calls.receive_descriptor(ours.fileno(), label) for _ in range(count)]


def open_netlink_socket(net: HasFileno | None, protocol: int, label: str, put: tuple[str, str] | None = None) -> Fd:
    """Return a new netlink socket of a network namespace, prepared for requests; otherwise as `open_socket`.

    On the same way, ``put``, a path and a text, is written before, as by `put_in`; when it cannot be, no socket is made.
    """
    if net is not None:
        try:
            return calls.netlink_in(net.fileno(), protocol, label, put)
        except SyscallError as error:
            check_refusal(error, label)
    if net is not None and not _is_here(net):
        steps = [netlink_step(protocol, label)]
        if put is not None:
            path, text = put
            steps.insert(0, Step("WRITE", text=path.encode(), flags=os.O_WRONLY, text2=text.encode(), what=path))
        made = _by_launcher(net, steps, label)
    else:
        if put is not None:
            put_in(net, *put)
        made = calls.new_socket(_AF_NETLINK, _SOCK_RAW, protocol, label)
    calls.netlink_prepare(made.fileno(), label)
    return made


def netlink_step(protocol: int, what: str) -> Step:
    """Return the step that makes a netlink socket, which is not prepared for requests yet."""
    return _socket_step(_AF_NETLINK, _SOCK_RAW, protocol, what)


def _socket_step(family: int, kind: int, protocol: int, what: str) -> Step:
    return Step("SOCKET", flags=family, value=kind << 32 | protocol, what=what)


def open_file_in(net: HasFileno | None, path: str, flags: int) -> Fd:
    """Open a file beneath /proc/sys/net, which is that of a network namespace.

    Parameters
    ----------
    net
        The namespace; None: that of the calling thread.
    path
        The whole path.
    flags
        O_RDONLY or O_WRONLY.

    Raises
    ------
    SyscallError, SetupFailed
        As in `open_socket`; with ENOENT, there is no such setting.
    """
    if net is None:
        return _open(path, flags)
    step = Step("OPEN", text=path.encode(), flags=flags | os.O_CLOEXEC, what=path)
    return _opened(net, step, path, here=lambda: _open(path, flags), there=lambda fd: calls.open_in(fd, path, flags))


def put_in(net: HasFileno | None, path: str, text: str) -> None:
    """Write to a file beneath /proc/sys/net, which is that of a network namespace; otherwise as `open_file_in`."""
    if net is not None:
        try:
            calls.put_in(net.fileno(), path, text)
        except SyscallError as error:
            check_refusal(error, path)
        else:
            return
    with open_file_in(net, path, os.O_WRONLY) as file:
        try:
            os.write(file.fileno(), text.encode())
        except OSError as error:
            errno = error.errno or 0
            raise from_errno("write", path, errno, hint("write", errno, path)) from None


def _open(path: str, flags: int) -> Fd:
    try:
        fd = Fd.take(os.open, path, flags | os.O_CLOEXEC)
    except OSError as error:
        errno = error.errno or 0
        raise from_errno("open", path, errno, hint("open", errno, path)) from None
    assert fd is not None  # noqa: S101 - os.open raises
    return fd


def _opened(net: HasFileno, step: Step, label: str, *, here: Callable[[], Fd], there: Callable[[int], Fd]) -> Fd:
    try:
        return there(net.fileno())
    except SyscallError as error:
        check_refusal(error, label)
    return here() if _is_here(net) else _by_launcher(net, (step,), label)


def check_refusal(error: SyscallError, label: str) -> None:
    """Raise what went wrong, unless it is that this thread may not go there."""
    if error.op != "setns" or error.errno != EPERM:
        raise from_errno(error.op, error.target, error.errno, hint(error.op, error.errno, label)) from None


def _is_here(net: HasFileno) -> bool:
    return os.path.samestat(os.fstat(net.fileno()), os.stat("/proc/thread-self/ns/net"))


def new_namespace_beside(net: HasFileno | None) -> Fd:
    """Return a new network namespace, without an interface that is up, for who may act in another one.

    Parameters
    ----------
    net
        The other one; None: that of the calling thread.  Where the caller has no privileges himself, the new one belongs to the
        same user namespace.

    Raises
    ------
    SyscallError, SetupFailed
        As in `open_socket`.
    """
    try:
        return calls.new_namespace("net")[0]
    except SyscallError as error:
        if net is None or error.op not in {"setns", "unshare"} or error.errno != EPERM:
            raise from_errno(error.op, error.target, error.errno, hint(error.op, error.errno, error.target)) from None
    label = "network namespace"
    unshare = Step("UNSHARE", flags=calls.NAMESPACE_FLAGS["net"], what=label)
    file = Step("OPEN", text=b"/proc/self/ns/net", flags=os.O_RDONLY | os.O_CLOEXEC, what=label)
    return _by_launcher(net, (unshare, file), label)


@contextmanager
def _pair() -> Iterator[tuple[_Socket, _Socket]]:
    """Give the two ends of a connection for the time of a block; they close themselves too, when nobody has them."""
    pair = socketpair(AF_UNIX, SOCK_SEQPACKET)
    try:
        yield pair
    finally:
        for end in pair:
            end.close()


def _inside(owner: Fd, net: HasFileno) -> Builder:
    """Return a plan that goes to a namespace, as its owner."""
    builder = Builder()
    for fd, kind in ((owner.fileno(), "user"), (net.fileno(), "net")):
        flags = calls.NAMESPACE_FLAGS[kind]
        builder.add(HOST, Step("SETNS", fd=builder.declare(fd, f"{kind} namespace"), flags=flags, what=f"{kind} namespace"))
    return builder


def _by_launcher(net: HasFileno, steps: Sequence[Step], label: str) -> Fd:
    """Send a process there, as the owner; return what the last of the steps yields."""
    with calls.namespace_owner(net.fileno()) as owner, typed(label):
        builder = _inside(owner, net)
        for step in steps[:-1]:
            builder.add(INSIDE, step)
        builder.pty = builder.produce(INSIDE, steps[-1], label)
        launched = launch(builder.build(HOLD), builder.fds, stdio=_SILENT)
        try:
            handed = Fd.take(fcntl.fcntl, launched.pty, fcntl.F_DUPFD_CLOEXEC, 0)
        finally:
            launched.end()
    assert handed is not None  # noqa: S101 - it raises
    return handed
