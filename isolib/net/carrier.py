"""Whether a link carries already, and whether an address is one already.

A link that was brought up carries when the kernel has found that out, some time later: until then, what is sent is dropped, and
asked for again by its sender after a second.  Since Linux 6.8 who asks for a link's state by RTM_GETLINK makes it find out; on
older kernels it is waited for, by the kernel's notification.

An address of IPv6 that was given to a link is one when the kernel has come to it, some time later too (net/ipv6/addrconf.c):
until then nobody finds out whose it is, and who asks does so again after a second.  The kernel's table of routes says when, and
a notification comes.
"""

from __future__ import annotations

import os
import select
import socket
import time
from errno import EHOSTUNREACH, ENETUNREACH
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink.socket import open_netlink
from isolib.errors import SyscallError
from isolib.net import parsing, requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from isolib._kernel.netlink.codec import Message
    from isolib._kernel.netlink.socket import Request, Socket
    from isolib.net.interface import Interface
    from isolib.net.values import AnyAddress
    from isolib.net.where import Where
    from isolib.types import HasFileno

__all__ = ["heed", "question", "settle", "settle_addresses"]

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_LINKS: Final = 1  # RTNLGRP_LINK
_ADDRESSES: Final = 9  # RTNLGRP_IPV6_IFADDR
_LOCAL: Final = 2  # RTN_LOCAL
_IPV6: Final = 6
_PATIENCE: Final = 2.0
"""Seconds, after which it is nobody's business here any more: the kernel looks once a second at least."""


def settle(*interfaces: Interface) -> None:
    """Return when these links carry, those of them that have another end that is up."""
    together: dict[Socket, list[Interface]] = {}
    for interface in interfaces:
        together.setdefault(interface.where.socket, []).append(interface)
    for own, some in together.items():
        for interface, answer in zip(some, own.send(*map(question, some)), strict=True):
            heed(interface, answer)


def question(interface: Interface) -> Request:
    """Return the request by which a link is asked, for who sends it with others; `heed` takes what is answered."""
    return requests.get_link_by_index(interface.index, interface.name)


def heed(interface: Interface, answer: Sequence[Message]) -> None:
    """Return when a link carries that has answered this."""
    if parsing.is_about_to_carry(answer[0]):
        _wait(interface)


def _is_about_to(interface: Interface) -> bool:
    return parsing.is_about_to_carry(interface.where.socket.ask(question(interface))[0])


def _wait(interface: Interface) -> None:
    _wait_for_news(interface.ns, _LINKS, partial(_is_about_to, interface))


def settle_addresses(where: Where, addresses: Iterable[AnyAddress]) -> None:
    """Return when those of IPv6 among these, which links of the namespace were given, are addresses of the namespace."""
    for address in addresses:
        if address.version == _IPV6 and _is_to_come(where, address):
            _wait_for_news(where.net, _ADDRESSES, partial(_is_to_come, where, address))


def _is_to_come(where: Where, address: AnyAddress) -> bool:
    try:
        answer = where.socket.ask(requests.find_route(address))[0]
    except SyscallError as error:
        if error.errno not in {ENETUNREACH, EHOSTUNREACH}:
            raise
        return True
    return parsing.parse_route_type(answer) != _LOCAL


def _wait_for_news(ns: HasFileno | None, group: int, is_to_come: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    with open_netlink(ns) as news:
        with socket.socket(fileno=os.dup(news.fileno())) as own:
            own.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        while is_to_come():
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([news], [], [], left)[0]:
                return
            os.read(news.fileno(), 65536)
