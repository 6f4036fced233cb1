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


def make_link(where: Where, undo: Rollback, name: str, request: Callable[[int], Request]) -> Interface:
    """Have a link made, and know how to undo it, whatever happens.

    Where its namespace does not die with this program, the link is entrusted to the reaper before, by a number that nobody
    has; who removes a link by its name alone may meet another one's.

    Parameters
    ----------
    where
        The namespace that the request goes to.
    undo
        Gets the steps that remove the link.
    name
        Of the link.
    request
        Returns the request for a link with this number; 0: one that the kernel chooses.

    Raises
    ------
    SyscallError
        EEXIST: the name is taken.
    """
    check_free(where, name)
    if where.is_made_here:
        undo.push(_remove_by_name, where, name)
        index = parsing.parse_link(where.socket.send(request(0), requests.get_link(name))[1][0]).index
    else:
        index = _free_number(where)
        undo.push(reaper.entrust_link(where.socket.fileno(), index).strike)
        undo.push(remove, where, index, name)
        where.socket.ask(request(index))
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


def _remove_by_name(where: Where, name: str) -> None:
    """Remove the link of this name, which was free in a namespace of ours."""
    with suppress(ClosedError):
        found = _find(where, requests.get_link(name))
        if found is not None:
            remove(where, found.index, name)


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
