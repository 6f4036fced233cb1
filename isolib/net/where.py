"""In which network namespace something is asked for, or lies: a handle, a descriptor, or where the calling thread is."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from isolib._kernel.handle import home
from isolib._kernel.netlink.conversation import converse
from isolib._kernel.netlink.socket import GENERIC, ROUTE, open_netlink
from isolib.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib._kernel.netlink.conversation import Turn
    from isolib._kernel.netlink.socket import Socket
    from isolib.types import HasFileno

__all__ = ["Where", "check_namespace", "route_socket"]


def check_namespace(value: HasFileno | None, what: str) -> HasFileno | None:
    """Return a namespace that can be used.

    Raises
    ------
    PlanError
        It is no handle of a network namespace.
    ClosedError
        It is closed.
    """
    if value is None:
        return None
    if not hasattr(value, "fileno") or getattr(value, "kind", "net") != "net":
        raise PlanError(f"{what}: a network namespace is wanted (isolib.new_netns(), isolib.open_netns()), not {value!r}")
    value.fileno()
    return value


#: By namespace: the sockets of those that no handle is for, in use now.
_shared: Final[WeakValueDictionary[tuple[object, ...], Socket]] = WeakValueDictionary()
#: Two threads that come first would have two sockets, and take one namespace for two.
_lock = RLock()


def _renew() -> None:
    """Take another lock: of the one that was copied, the owner may be a thread that is not here."""
    global _lock  # noqa: PLW0603
    _lock = RLock()


os.register_at_fork(after_in_child=_renew)


def _here() -> Socket:
    """Return the socket of the namespace that the calling thread is in."""
    status = os.stat("/proc/thread-self/ns/net")
    key = (home(), status.st_dev, status.st_ino)
    with _lock:
        found = _shared.get(key)
        return found if found is not None else _shared.setdefault(key, open_netlink(None))


class Where:
    """A namespace, and how to speak to it: the socket that its handle keeps, or one that those share who have no handle."""

    __slots__ = ("_ask", "_own", "net")

    def __init__(self, net: HasFileno | None) -> None:
        self.net = net
        self._own: Socket | None = None
        self._ask: Callable[..., Socket] | None = None if net is None else getattr(net, "netlink", None)
        if self._ask is None:
            self._own = _here() if net is None else open_netlink(net)

    @property
    def is_made_here(self) -> bool:
        """Whether it dies with its handle, and with it all that is in it."""
        return bool(getattr(self.net, "made_here", False))

    @property
    def is_known(self) -> bool:
        """Whether there is a socket to speak to it by already."""
        return self._ask is None or bool(getattr(self.net, "has_netlink", lambda _: False)(ROUTE))

    @property
    def is_over(self) -> bool:
        """Whether the handle is closed that keeps its socket, or kept it."""
        return self._ask is not None and bool(getattr(self.net, "closed", False))

    @property
    def socket(self) -> Socket:
        """Its rtnetlink socket.

        Raises
        ------
        ClosedError
            The handle of the namespace is closed.
        """
        if self._own is not None:
            return self._own
        assert self._ask is not None  # noqa: S101 - it has no socket of its own
        return self._ask()

    def check_here(self, what: str) -> None:
        """Raise PlanError where something would be done in the calling thread's namespace, and that is another one by now."""
        if self.net is None and self.socket is not Where(None).socket:
            raise PlanError(f"{what} is of a namespace without a handle, in which the calling thread is no more")

    @contextmanager
    def generic(self, what: str) -> Iterator[Socket]:
        """Give a socket of generic netlink of it, for the time of a block; ``what`` it is for, for errors.

        Raises
        ------
        PlanError
            As `check_here`.
        SyscallError, SetupFailed, ClosedError
            As `socket`.
        """
        if self._ask is not None:
            yield self._ask(GENERIC)
            return
        self.check_here(what)
        with open_netlink(self.net, GENERIC) as made:
            yield made

    def converse(self, *turns: Turn) -> None:
        """Take turns, those of this namespace among them, whose socket is made on the way where it has none.

        Raises
        ------
        SyscallError, SetupFailed, ThreadStranded, ClosedError
            As in `isolib._kernel.netlink.conversation.converse`.
        """
        own = next(turn for turn in turns if turn.socket is None)
        found = self._own if self._ask is None else self._ask(make=partial(_made_by, own, turns))
        if own.socket is None:  # it had one
            own.socket = found
            converse(turns)


def _made_by(own: Turn, turns: tuple[Turn, ...]) -> Socket:
    converse(turns)
    assert own.socket is not None  # noqa: S101 - the turn was taken
    return own.socket


@contextmanager
def route_socket(net: HasFileno | None) -> Iterator[Socket]:
    """Give the rtnetlink socket of a namespace for the time of a block."""
    yield Where(check_namespace(net, "ns")).socket
