"""Links that isolib makes and owns: made whole or not at all, and removed with their handle, or with this program."""

from __future__ import annotations

from contextlib import suppress
from errno import EEXIST, ENODEV
from random import SystemRandom
from typing import TYPE_CHECKING, Final

from isolib._kernel import reaper
from isolib._kernel.handle import Handle
from isolib.errors import ClosedError, SyscallError, from_errno
from isolib.net import parsing, requests
from isolib.net.interface import Interface

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib._kernel.handle import Rollback
    from isolib._kernel.netlink.socket import Request
    from isolib.net.values import Link
    from isolib.net.where import Where

__all__ = ["OwnedLink", "check_free", "make_link", "remove"]

#: Numbers of links that are entrusted before they are made: none that the kernel gives by itself for a long time.
_LOWEST: Final = 1 << 24
_HIGHEST: Final = (1 << 31) - 1
_random: Final = SystemRandom()


def make_link(
    where: Where, undo: Rollback, name: str, request: Callable[[int], Request], *, by: Where | None = None
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
        Returns the request for a link with this number; 0: one that the kernel chooses.
    by
        The namespace that the request goes to, where that is another: that of a link below.

    Raises
    ------
    SyscallError
        EEXIST: the name is taken.
    """
    check_free(where, name)
    maker = where if by is None else by
    if where.is_made_here:
        mine = _Named(where, name)
        undo.push(mine.remove)
        try:
            if by is None:
                index = parsing.parse_link(where.socket.send(request(0), requests.get_link(name))[1][0]).index
            else:
                by.socket.ask(request(0))
                index = parsing.parse_link(where.socket.ask(requests.get_link(name))[0]).index
        except SyscallError as error:
            mine.is_anothers = error.errno == EEXIST
            raise
        mine.index = index
    else:
        index = _free_number(where)
        reaper.entrust_link(where.socket.fileno(), index, lambda ticket: undo.push(ticket.strike))
        undo.push(remove, where, index, name)
        maker.socket.ask(request(index))
    return Interface(where, index, name)


def check_free(where: Where, name: str) -> None:
    """Raise SyscallError with EEXIST when a namespace has a link of this name."""
    if _find(where, requests.get_link(name)) is not None:
        raise from_errno("RTM_NEWLINK", name, EEXIST, "there is a link of this name in the namespace")


def _free_number(where: Where) -> int:
    while _find(where, requests.get_link_by_index(index := _random.randint(_LOWEST, _HIGHEST), "link")) is not None:
        pass
    return index


def _find(where: Where, request: Request) -> Link | None:
    try:
        return parsing.parse_link(where.socket.ask(request)[0])
    except SyscallError as error:
        if error.errno != ENODEV:
            raise
        return None


class _Named:
    """A name that was free in a namespace of ours, unless the kernel says that another thread was faster."""

    def __init__(self, where: Where, name: str) -> None:
        self._where = where
        self._name = name
        self.is_anothers = False
        self.index: int | None = None  # known once it is made; the name may become another's then

    def remove(self) -> None:
        """Remove the link that was given this name."""
        if self.is_anothers:
            return
        with suppress(ClosedError):
            if self.index is None:
                found = _find(self._where, requests.get_link(self._name))
                self.index = None if found is None else found.index
            if self.index is not None:
                remove(self._where, self.index, self._name)


def remove(where: Where, index: int, name: str) -> None:
    """Remove a link, unless it, or its namespace, is gone."""
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
