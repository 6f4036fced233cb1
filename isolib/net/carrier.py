"""Whether a link carries already, and whether an address is one already.

A link that was brought up carries when the kernel has found that out, some time later: until then, what is sent is dropped, and
asked for again by its sender after a second.  Since Linux 6.8 who asks for a link's state by RTM_GETLINK makes it find out; on
older kernels it is waited for, by the kernel's notification.

An address of IPv6 that was given to a link is one when the kernel has come to it, some time later too (net/ipv6/addrconf.c):
until then nobody finds out whose it is, and who asks does so again after a second.  The last that the kernel does is to enter
the address among its routes, of which a notification comes; that of the address itself comes before.
"""

from __future__ import annotations

from contextlib import closing
from errno import EACCES, EAGAIN, EHOSTUNREACH, EINVAL, ENETUNREACH, ENOBUFS
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel.waiting import Deadline, poll
from isolib.errors import SyscallError
from isolib.net import parsing, requests
from isolib.net.ledger import KINDS
from isolib.net.subscription import LONGEST, subscribe
from isolib.net.values import Link, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from isolib._kernel.netlink.codec import Message
    from isolib._kernel.netlink.socket import Request, Socket
    from isolib.net.interface import Interface
    from isolib.net.values import AnyAddress
    from isolib.types import HasFileno

__all__ = ["heed", "question", "settle", "settle_addresses"]

_IPV6: Final = 6
_PATIENCE: Final = 2.0
"""Seconds, after which it is nobody's business here any more: the kernel looks once a second at least."""
#: In which it is told that a link carries, or has gone, and that an address is one.
_GROUPS: Final = (*KINDS[Link].groups, *KINDS[Route].groups)
#: What the kernel answers where no route leads to an address, or one that is to lead nowhere.
_NOWHERE: Final = frozenset({ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL})


def settle(*interfaces: Interface) -> None:
    """Return when these links carry, those of them that have another end that is up."""
    together: dict[Socket, list[Interface]] = {}
    for interface in interfaces:
        together.setdefault(interface.where.socket, []).append(interface)
    for own, some in together.items():
        for interface, answer in zip(some, own.send(*map(question, some)), strict=True):
            heed(interface, answer[0])


def question(interface: Interface) -> Request:
    """Return the request by which a link is asked, for who sends it with others; `heed` takes what is answered."""
    return requests.get_state(interface.index, interface.name)


def heed(interface: Interface, answer: Message) -> None:
    """Return when a link carries that has answered this."""
    if parsing.is_about_to_carry(answer):
        _wait(interface.ns, partial(_is_about_to, interface))


def _is_about_to(interface: Interface) -> bool:
    return parsing.is_about_to_carry(interface.where.socket.ask(question(interface))[0])


def settle_addresses(interface: Interface, addresses: Iterable[AnyAddress]) -> None:
    """Return when those of IPv6 among the addresses that a link was given are addresses of its namespace."""
    for address in addresses:
        if address.version == _IPV6 and _is_to_come(interface, address):
            _wait(interface.ns, partial(_is_to_come, interface, address))


def _is_to_come(interface: Interface, address: AnyAddress) -> bool:
    try:
        answer = interface.where.socket.ask(requests.find_route(address, interface.index))[0]
    except SyscallError as error:
        if error.errno not in _NOWHERE:
            raise
        interface.where.socket.ask(question(interface))  # Linux 6.12 says no more of a link that is gone
        return True
    return parsing.parse_route(answer).type != "local"


def _wait(ns: HasFileno | None, is_to_come: Callable[[], bool]) -> None:
    """Return when something is no longer to come, or after a while."""
    deadline = Deadline(_PATIENCE)
    with closing(subscribe(ns, _GROUPS)) as news:
        while is_to_come() and poll(news, deadline.milliseconds()) and not deadline.is_over:
            try:
                news.recv(LONGEST)
            except OSError as error:  # more has come than there was room for
                if error.errno not in {EAGAIN, ENOBUFS}:
                    raise
