"""What an interface does by itself, as ethtool(8) shows and switches it: checksums, cutting large packets up, and so on.

Sources: Documentation/networking/ethtool-netlink.rst, linux/ethtool_netlink.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from errno import EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink import codec, genl
from isolib._kernel.netlink.codec import MalformedError
from isolib.errors import PlanError, SyscallError, Unsupported
from isolib.net.values import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.netlink.codec import Message
    from isolib._kernel.netlink.genl import Family
    from isolib._kernel.netlink.socket import Request, Socket

__all__ = ["GROUPS", "change_features", "get_request", "parse_features", "read_features", "set_request"]

GROUPS: Final[Mapping[str, str]] = {
    "rx": "rx-checksum",
    "tx": "tx-checksum-*",
    "sg": "tx-scatter-gather*",
    "tso": "tx-tcp*-segmentation",
    "gso": "tx-generic-segmentation",
    "gro": "rx-gro",
    "lro": "rx-lro",
}
"""The words of ethtool(8) for features that belong together, and the pattern of their names: new kernels have more of them."""

# linux/ethtool_netlink.h
_GET, _SET = 11, 12
_HEADER, _HARDWARE, _WANTED, _ACTIVE, _NOCHANGE = 1, 2, 3, 4, 5
_DEVICE, _FLAGS = 1, 3
_OMIT_REPLY: Final = 2
_BITS, _BIT = 3, 1
_BIT_INDEX, _BIT_NAME, _BIT_VALUE = 1, 2, 3
_NOMASK: Final = 1
_U32: Final = struct.Struct("=I")

_HINTS: Final = {
    ENODEV: "there is no such link in this namespace",
    EPERM: "it takes CAP_NET_ADMIN over the namespace",
    EOPNOTSUPP: "an interface of this kind has none",
    EINVAL: "the interface does not take this",
}


# ---- messages ----


def get_request(family: Family, index: int, label: str) -> Request:
    """Return the request for the features of an interface, each with its name."""
    header = codec.nested(_HEADER, codec.u32(_DEVICE, index))
    return genl.command(family, _GET, header, op="ETHTOOL_MSG_FEATURES_GET", target=label, hints=_HINTS)


def set_request(family: Family, index: int, label: str, wanted: Mapping[str, bool]) -> Request:
    """Return the request that changes features of an interface, and leaves the others."""
    bits = (
        codec.nested(_BIT, codec.text(_BIT_NAME, name), *([codec.flag(_BIT_VALUE)] if on else []))
        for name, on in wanted.items()
    )
    header = codec.nested(_HEADER, codec.u32(_DEVICE, index), codec.u32(_FLAGS, _OMIT_REPLY))
    body = header + codec.nested(_WANTED, codec.nested(_BITS, *bits))
    return genl.command(family, _SET, body, op="ETHTOOL_MSG_FEATURES_SET", target=label, hints=_HINTS)


def parse_features(message: Message) -> dict[str, Feature]:
    """Return the features that an ETHTOOL_MSG_FEATURES_GET_REPLY tells, by their names, in the kernel's order.

    Raises
    ------
    MalformedError
        It is no such message.
    """
    found = genl.payload(message)
    hardware = _bitset(found.get(_HARDWARE, b""))
    wanted, active, fixed = (
        {name for name, on in _bitset(found.get(kind, b"")).items() if on} for kind in (_WANTED, _ACTIVE, _NOCHANGE)
    )
    return {
        name: Feature(
            name=name,
            active=name in active,
            wanted=name in (wanted if changes and name not in fixed else active),
            fixed=not changes or name in fixed,
        )
        for name, changes in hardware.items()
    }


def _bitset(value: bytes) -> dict[str, bool]:
    """Return the bits of a set by name, in the order of their numbers.

    In one with a mask, those of the mask are listed, and which of them are set is marked; in one without, those that are set.
    """
    parts = codec.table(value)
    is_list = _NOMASK in parts
    bits = {}
    for kind, bit in codec.attributes(parts.get(_BITS, b"")):
        if kind != _BIT:
            continue
        inner = codec.table(bit)
        name = codec.word(inner.get(_BIT_NAME, b""))
        number = inner.get(_BIT_INDEX, b"")
        if len(number) != _U32.size:
            raise MalformedError("a feature without a number")
        if name:  # there are numbers that no feature has any more
            bits[int.from_bytes(number, sys.byteorder)] = name, is_list or _BIT_VALUE in inner
    return dict(bits[number] for number in sorted(bits))


# ---- asking ----


def _family(socket: Socket) -> Family:
    try:
        return genl.resolve(socket, "ethtool")
    except SyscallError as error:
        if error.errno != ENOENT:
            raise
        raise Unsupported(
            "the features of an interface", "the kernel: it has no ethtool netlink", "Linux 5.9 with CONFIG_ETHTOOL_NETLINK"
        ) from None


def read_features(socket: Socket, index: int, label: str) -> dict[str, Feature]:
    """Return the features of an interface."""
    return parse_features(socket.ask(get_request(_family(socket), index, label))[0])


def change_features(socket: Socket, index: int, label: str, changes: Mapping[str, bool]) -> dict[str, Feature]:
    """Change features of an interface, all that are asked for or none; return those that it has then."""
    given: object = changes
    if not isinstance(given, Mapping) or any(not isinstance(on, bool) for on in given.values()):
        raise PlanError(f"changes: names of features, each with True or False, are wanted, not {changes!r}")
    family = _family(socket)
    before = parse_features(socket.ask(get_request(family, index, label))[0])
    wanted = dict(_resolved(changes, before, label))
    if not wanted:
        return before
    request = set_request(family, index, label, wanted)
    after = parse_features(socket.send(request, get_request(family, index, label))[1][0])
    refused = [name for name, on in wanted.items() if after[name].active != on]
    if refused:
        socket.ask(set_request(family, index, label, {name: before[name].wanted for name in wanted}))
        raise Unsupported(
            f"{', '.join(refused)} of {label}",
            "the interface: another feature that it takes, or that excludes it, is not as it must be",
            "change that one in the same call: tx-tcp-segmentation, for one, takes checksums and scatter-gather",
        )
    return after


def _resolved(changes: Mapping[str, bool], known: Mapping[str, Feature], label: str) -> Iterator[tuple[str, bool]]:
    """Yield each feature that is to be changed by its own name."""
    for word, on in changes.items():
        pattern = GROUPS.get(word)
        there = [one for name, one in known.items() if (name == word if pattern is None else fnmatchcase(name, pattern))]
        if not there:
            raise PlanError(f"changes: {word!r} is no feature, and none of {', '.join(map(repr, GROUPS))}")
        free = [one for one in there if not one.fixed]
        if not free and any(one.active != on for one in there):
            state = "on" if not on else "off"
            raise Unsupported(f"{word} of {label}", f"the interface: it is {state} and fixed", "an interface of another kind")
        yield from ((one.name, on) for one in free)
