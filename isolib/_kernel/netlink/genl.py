"""Generic netlink: families of commands that are known by name, and have a number that the kernel gives when it starts.

A message's type is the family's number; a structure with the command and the family's version comes first, and attributes
follow.  Who wants to speak to a family asks the controller for its number, which is that in every namespace.  Nothing here
knows that a kernel exists, but `resolve`, which asks.

Sources: Documentation/userspace-api/netlink/intro.rst, linux/genetlink.h.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from errno import ENOENT, EPERM
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import MalformedError
from isolib._kernel.netlink.socket import Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib._kernel.netlink.codec import Message
    from isolib._kernel.netlink.socket import Socket

__all__ = ["HEADER", "Family", "ask_for_family", "command", "parse_family", "payload", "resolve"]

#: Of every message: the command, the version, and two bytes that nobody uses.
HEADER: Final = struct.Struct("=BBxx")

# linux/genetlink.h: the one family whose number is known beforehand, and its attributes.
_CONTROLLER: Final = 0x10
_GETFAMILY: Final = 3
_ID, _NAME, _VERSION, _GROUPS = 1, 2, 3, 7
_GROUP_NAME, _GROUP_ID = 1, 2


@dataclass(frozen=True, slots=True)
class Family:
    """A family of commands.

    Attributes
    ----------
    id
        Its number: the type of its messages.
    name
        "ethtool".
    version
        Of its messages.
    groups
        The numbers of its multicast groups, by their names.
    """

    id: int
    name: str
    version: int = 1
    groups: Mapping[str, int] = field(default_factory=dict)


def command(
    family: Family, number: int, attributes: bytes, *, op: str, target: str, hints: Mapping[int, str] | None = None
) -> Request:
    """Return the request that a command is; ``op``, ``target`` and ``hints`` are for errors."""
    return Request(family.id, HEADER.pack(number, family.version) + attributes, 0, op, target, hints or {})


def payload(message: Message) -> dict[int, bytes]:
    """Return the attributes of a message by kind.

    Raises
    ------
    MalformedError
        It has no header of generic netlink, or no well-formed attributes.
    """
    if len(message.body) < HEADER.size:
        raise MalformedError(f"a message of generic netlink with {len(message.body)} bytes")
    return codec.table(message.body, HEADER.size)


def ask_for_family(name: str) -> Request:
    """Return the request for a family of this name; ENOENT: the kernel has none."""
    hints = {ENOENT: "this kernel has no such family of generic netlink", EPERM: "it takes CAP_NET_ADMIN over the namespace"}
    controller = Family(_CONTROLLER, "nlctrl")
    return command(controller, _GETFAMILY, codec.text(_NAME, name), op="CTRL_CMD_GETFAMILY", target=name, hints=hints)


def parse_family(message: Message) -> Family:
    """Return the family that the controller has told of.

    Raises
    ------
    MalformedError
        It tells of none.
    """
    found = payload(message)
    number = int.from_bytes(found.get(_ID, b""), sys.byteorder)
    if not number:
        raise MalformedError("a family of generic netlink without a number")
    groups = {}
    for _, group in codec.attributes(found.get(_GROUPS, b"")):
        one = codec.table(group)
        groups[codec.word(one.get(_GROUP_NAME, b""))] = int.from_bytes(one.get(_GROUP_ID, b""), sys.byteorder)
    # The version is told in 32 bits, and has 8 in a message.
    version = int.from_bytes(found.get(_VERSION, b""), sys.byteorder) & 0xFF
    return Family(number, codec.word(found.get(_NAME, b"")), version, groups)


def resolve(socket: Socket, name: str) -> Family:
    """Ask the kernel for a family.

    Raises
    ------
    SyscallError
        ENOENT: it has none of this name.
    """
    return parse_family(socket.ask(ask_for_family(name))[0])
