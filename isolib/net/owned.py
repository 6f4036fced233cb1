"""Links that isolib makes and owns: made whole or not at all, and removed with their handle, or with this program."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EEXIST, ENODEV
from random import Random
from typing import TYPE_CHECKING, Final

from isolib._kernel import reaper
from isolib._kernel.handle import Handle
from isolib._kernel.netlink.conversation import Turn
from isolib.errors import ClosedError, SyscallError, from_errno
from isolib.net import parsing, requests
from isolib.net.interface import Interface

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from isolib._kernel.handle import Rollback
    from isolib._kernel.netlink.socket import Request
    from isolib.net.values import Link
    from isolib.net.where import Where

__all__ = ["Announced", "OwnedLink", "announce", "check_free", "make_link", "new_number", "nothing_more", "remove"]

#: Numbers of links that isolib makes: none that the kernel gives by itself for a long time.
_LOWEST: Final = 1 << 24
_BITS: Final = 30
_random: Final = Random()  # noqa: S311 - nobody gains by guessing them
os.register_at_fork(after_in_child=_random.seed)


def new_number() -> int:
    """Return a number for a link: chosen before, it need not be asked for, and is known when nobody has heard the answer."""
    return _LOWEST + _random.getrandbits(_BITS)


def nothing_more(_: Interface) -> tuple[Request, ...]:
    """Return no requests."""
    return ()


def make_link(
    where: Where,
    undo: Rollback,
    name: str,
    request: Callable[[int], Request],
    then: Callable[[Interface], Iterable[Request]] = nothing_more,
    *,
    by: Where | None = None,
    put: tuple[str, str] | None = None,
) -> Interface:
    """Have a link made, and know how to undo it, whatever happens.

    Where its namespace does not die with this program, the link is entrusted to the reaper before, by a number that nobody
    has; who removes a link by its name alone may meet another one's.

    Parameters
    ----------
    where
        The namespace that the link will lie in.
    undo
        Gets the steps that remove the link.
    name
        Of the link.
    request
        Returns the request for a link with this number.
    then
        Returns what is asked for of its namespace together with it.
    by
        The namespace that the request goes to, where that is another: that of a link below.
    put
        A file of /proc/sys/net of its namespace, and what is written to it before; where there is no such file, nothing is.

    Raises
    ------
    SyscallError
        EEXIST: the name is taken.
    """
    link = announce(where, undo, name)
    made = request(link.index)
    interface = Interface(where, link.index, name)
    further = tuple(then(interface))
    try:
        if put is not None:
            where.converse(Turn(where.net, None, (made, *further), put))
        elif by is None:
            where.socket.send(made, *further)
        else:
            by.socket.send(made)
    except SyscallError as error:
        if error.errno == EEXIST and (error.op, error.target) == (made.op, made.target):
            check_free(where, name)
        raise
    link.is_sure = True
    if by is not None:
        where.socket.send(*further)
    return interface


def announce(where: Where, undo: Rollback, name: str) -> Announced:
    """Return a link that is about to be made, when it is known how to undo that, as in `make_link`."""
    is_made_here = where.is_made_here
    link = Announced(where, new_number() if is_made_here else _free_number(where, name), name)
    if not is_made_here:
        reaper.entrust_link(where.socket.fileno(), link.index, lambda ticket: undo.push(ticket.strike))
    undo.push(link.remove)
    return link


class Announced:
    """A link that was asked for; whether it is there, the kernel may have refused, or an interrupt kept from being heard."""

    __slots__ = ("_name", "_where", "index", "is_sure")

    def __init__(self, where: Where, index: int, name: str) -> None:
        self._where = where
        self._name = name
        self.index = index
        self.is_sure = False

    def remove(self) -> None:
        """Remove it; while it is not sure, whoever has its number and not its name is another one."""
        with suppress(ClosedError):
            if not self.is_sure:
                found = _find(self._where, requests.get_link_by_index(self.index, self._name))
                if found is None or found.name != self._name:
                    return
            remove(self._where, self.index, self._name)


def check_free(where: Where, name: str) -> None:
    """Raise SyscallError with EEXIST when a namespace has a link of this name."""
    if _find(where, requests.get_link(name)) is not None:
        raise from_errno("RTM_NEWLINK", name, EEXIST, "there is a link of this name in the namespace")


def _free_number(where: Where, name: str) -> int:
    check_free(where, name)
    while _find(where, requests.get_link_by_index(index := new_number(), "link")) is not None:
        pass
    return index


def _find(where: Where, request: Request) -> Link | None:
    try:
        return parsing.parse_link(where.socket.ask(request)[0])
    except SyscallError as error:
        if error.errno != ENODEV:
            raise
        return None


def remove(where: Where, index: int, name: str) -> None:
    """Remove a link, unless it, or its namespace, is gone."""
    if where.is_over:  # the usual end: it goes with its namespace
        return
    try:
        where.socket.ask(requests.remove_link(index, name))
    except ClosedError:  # the namespace's handle, and with it the link, or it is the business of who keeps the namespace
        return
    except SyscallError as error:
        if error.errno != ENODEV:
            raise


class OwnedLink(Handle, made_by="isolib.new_veth(), isolib.new_bridge() and the like"):
    """A link that lives as long as its handle: the base of all kinds.

    Attributes
    ----------
    interface
        To look at it and to change it.
    """

    def __init__(self, interface: Interface, undo: Rollback) -> None:
        super().__init__()
        self._undo = undo
        self.interface = interface

    def _release(self) -> None:
        self._undo.unwind()

    def _describe(self) -> str:
        return f"{self.interface.name} index={self.interface.index}"

    @property
    def name(self) -> str:
        """Its name."""
        return self.interface.name

    @property
    def index(self) -> int:
        """Its number in its namespace."""
        return self.interface.index
