"""Whether a link carries already.

A link that was brought up carries when the kernel has found that out, some time later: until then, what is sent is dropped, and
asked for again by its sender after a second.  Since Linux 6.8 who asks for a link's state by RTM_GETLINK makes it find out; on
older kernels it is waited for, by the kernel's notification.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink.socket import open_netlink
from isolib.net import parsing, requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.netlink.codec import Message
    from isolib._kernel.netlink.socket import Request, Socket
    from isolib.net.interface import Interface

__all__ = ["heed", "question", "settle"]

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_LINKS: Final = 1  # RTNLGRP_LINK
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
    deadline = time.monotonic() + _PATIENCE
    with open_netlink(interface.ns) as news:
        with socket.socket(fileno=os.dup(news.fileno())) as own:
            own.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _LINKS)
        while _is_about_to(interface):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([news], [], [], left)[0]:
                return
            os.read(news.fileno(), 65536)
