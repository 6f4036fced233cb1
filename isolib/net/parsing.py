"""From rtnetlink's messages to values; nothing here knows that a kernel exists.

Sources: rtnetlink(7), linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h, linux/neighbour.h, linux/fib_rules.h.
"""

from __future__ import annotations

import struct
import sys
from functools import cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink.codec import MalformedError, first, table, word
from isolib.net.values import Address, BridgeOptions, Link, LinkStats, Neighbour, PortOptions, Route, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib._kernel.netlink.codec import Message
    from isolib.net.values import AnyAddress, AnyInterface, AnyNetwork

__all__ = [
    "is_about_to_carry",
    "is_of_ip",
    "parse_address",
    "parse_destination",
    "parse_extent",
    "parse_link",
    "parse_neighbour",
    "parse_route",
    "parse_rule",
    "parse_way",
]

AF_INET: Final = 2
AF_BRIDGE: Final = 7
AF_INET6: Final = 10

IFINFO: Final = struct.Struct("=BxHiII")
IFADDR: Final = struct.Struct("=BBBBI")
RTMSG: Final = struct.Struct("=BBBBBBBBI")
NDMSG: Final = struct.Struct("=BxxxiHBB")

#: Bytes of an address, by family.
_LENGTHS: Final = {AF_INET: 4, AF_INET6: 16}
_FOREVER: Final = 0xFFFFFFFF

# linux/if.h
_LOOPBACK: Final = 0x8
_LOWER_UP: Final = 0x10000
_FLAGS: Final = {
    0x1: "up",
    0x2: "broadcast",
    0x8: "loopback",
    0x10: "pointopoint",
    0x40: "running",
    0x80: "noarp",
    0x100: "promisc",
    0x200: "allmulti",
    0x400: "master",
    0x800: "slave",
    0x1000: "multicast",
    0x10000: "lower_up",
    0x20000: "dormant",
}
_STATES: Final = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
_UP: Final = _STATES.index("up").to_bytes(1, sys.byteorder)
_PORT_STATES: Final = ("disabled", "listening", "learning", "forwarding", "blocking")

# linux/rtnetlink.h
TABLES: Final = {0: "unspec", 253: "default", 254: "main", 255: "local"}
_PROTOCOLS: Final = {0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 16: "dhcp"}
_ONLINK: Final = 4
_SCOPES: Final = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
TYPES: Final = (
    *("unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw"),
    *("nat", "xresolve"),
)

# linux/if_addr.h
_ADDRESS_FLAGS: Final = {
    0x01: "secondary",
    0x02: "nodad",
    0x04: "optimistic",
    0x08: "dadfailed",
    0x10: "home",
    0x20: "deprecated",
    0x40: "tentative",
    0x80: "permanent",
    0x100: "mngtmpaddr",
    0x200: "noprefixroute",
    0x800: "stable-privacy",
}

# linux/neighbour.h
_NEIGHBOUR_STATES: Final = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}

# linux/fib_rules.h
ACTIONS: Final = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}


def _number(attributes: Mapping[int, bytes], kind: int, default: int = 0) -> int:
    value = attributes.get(kind)
    return default if not value else int.from_bytes(value, sys.byteorder)


def _optional(attributes: Mapping[int, bytes], kind: int) -> int | None:
    return _number(attributes, kind) if kind in attributes else None


def _signed(attributes: Mapping[int, bytes], kind: int) -> int | None:
    value = attributes.get(kind)
    return struct.unpack("=i", value)[0] if value is not None and len(value) == 4 else None  # noqa: PLR2004 - an int


def _flags(value: int, names: Mapping[int, str]) -> frozenset[str]:
    return _flags_of(value, tuple(names.items()))


@cache
def _flags_of(value: int, names: tuple[tuple[int, str], ...]) -> frozenset[str]:
    return frozenset(name for bit, name in names if value & bit)


def _mac(value: bytes | None) -> str:
    return value.hex(":") if value else ""


def _ip(value: bytes | None) -> AnyAddress | None:
    if value is None:
        return None
    try:
        return ip_address(value)
    except ValueError:
        raise MalformedError(f"an address of {len(value)} bytes") from None


def _unpack(layout: struct.Struct, message: Message) -> tuple[int, ...]:
    if len(message.body) < layout.size:
        raise MalformedError(f"a message of type {message.type} with {len(message.body)} bytes")
    return layout.unpack_from(message.body)


def is_of_ip(message: Message) -> bool:
    """Return whether it is about IPv4 or IPv6: the kernel tells of routes and rules of multicast forwarding, too."""
    return bool(message.body) and message.body[0] in _LENGTHS


def parse_link(message: Message) -> Link:
    """Return the link of an RTM_NEWLINK or RTM_DELLINK."""
    _, _, index, flags, _ = _unpack(IFINFO, message)
    found = table(message.body, IFINFO.size)
    info = table(found.get(18, b""))
    kind = word(info.get(1, b"")) or ("loopback" if flags & _LOOPBACK else "")
    data = table(info.get(2, b"")) if kind in _DATA else {}
    state = _number(found, 16)
    master = _optional(found, 10)
    lower = _optional(found, 5)
    return Link(
        index=index,
        name=word(found.get(3, b"")),
        kind=kind,
        mac=_mac(found.get(1)),
        mtu=_number(found, 4),
        flags=_flags(flags, _FLAGS),
        state=_STATES[state] if state < len(_STATES) else "unknown",
        master=master,
        lower=(_number(data, 3) if kind == "vxlan" else lower) or None,
        lower_nsid=_signed(found, 37),
        alias=word(found.get(20, b"")),
        stats=_parse_stats(found.get(23, b"")),
        bridge=_parse_bridge(data) if kind == "bridge" else None,
        port=_parse_port(table(info[5])) if word(info.get(4, b"")) == "bridge" and 5 in info else None,  # noqa: PLR2004
        vlan=_optional(data, 1) if kind == "vlan" else None,
        vni=_optional(data, 1) if kind == "vxlan" else None,
        mode=_parse_mode(kind, data),
    )


def is_about_to_carry(message: Message) -> bool:
    """Return whether the link of an RTM_NEWLINK has a carrier, and the kernel has not drawn its conclusions yet."""
    flags = _unpack(IFINFO, message)[3]
    return bool(flags & _LOWER_UP) and first(message.body, 16, IFINFO.size) != _UP


#: Kinds whose own attributes are looked at.
_DATA: Final = frozenset({"bridge", "vlan", "vxlan", "macvlan", "macvtap", "ipvlan"})
MACVLAN_MODES: Final = {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"}
IPVLAN_MODES: Final = {0: "l2", 1: "l3", 2: "l3s"}
_STATS: Final = struct.Struct("=10Q")
#: The kernel counts the times of a bridge in hundredths of a second (USER_HZ).
HZ: Final = 100


def _parse_stats(value: bytes) -> LinkStats | None:
    return LinkStats(*_STATS.unpack_from(value)) if len(value) >= _STATS.size else None


def _parse_bridge(data: Mapping[int, bytes]) -> BridgeOptions:
    return BridgeOptions(
        stp=bool(_number(data, 5)),
        forward_delay=_number(data, 1) / HZ,
        hello_time=_number(data, 2) / HZ,
        max_age=_number(data, 3) / HZ,
        ageing_time=_number(data, 4) / HZ,
        priority=_number(data, 6),
        vlan_filtering=bool(_number(data, 7)),
        default_pvid=_number(data, 39),
        multicast_snooping=bool(_number(data, 23)),
    )


def _parse_port(data: Mapping[int, bytes]) -> PortOptions:
    state = _number(data, 1)
    return PortOptions(
        state=_PORT_STATES[state] if state < len(_PORT_STATES) else str(state),
        priority=_number(data, 2),
        cost=_number(data, 3),
        hairpin=bool(_number(data, 4)),
        guard=bool(_number(data, 5)),
        fast_leave=bool(_number(data, 7)),
        learning=bool(_number(data, 8)),
        flood=bool(_number(data, 9)),
        isolated=bool(_number(data, 33)),
    )


def _parse_mode(kind: str, data: Mapping[int, bytes]) -> str | None:
    if kind in {"macvlan", "macvtap"}:
        return MACVLAN_MODES.get(_number(data, 1))
    if kind == "ipvlan":
        return IPVLAN_MODES.get(_number(data, 1))
    return None


def parse_address(message: Message) -> Address:
    """Return the address of an RTM_NEWADDR or RTM_DELADDR."""
    family, prefix, flags, scope, index = _unpack(IFADDR, message)
    found = table(message.body, IFADDR.size)
    local, address = _ip(found.get(2)), _ip(found.get(1))
    own = local or address
    if own is None or family not in _LENGTHS:
        raise MalformedError(f"an address of family {family} without an address")
    preferred, valid = _lifetimes(found.get(6, b""))
    return Address(
        interface=_interface(own, prefix),
        index=index,
        scope=str(_SCOPES.get(scope, scope)),
        flags=_flags(_number(found, 8, flags), _ADDRESS_FLAGS),
        peer=address if local is not None and address != local else None,
        broadcast=_ip(found.get(4)),
        valid=valid,
        preferred=preferred,
    )


def _lifetimes(value: bytes) -> tuple[int | None, int | None]:
    if len(value) < 8:  # noqa: PLR2004 - two numbers
        return None, None
    preferred, valid = struct.unpack_from("=II", value)
    return (None if preferred == _FOREVER else preferred), (None if valid == _FOREVER else valid)


def parse_route(message: Message) -> Route:
    """Return the route of an RTM_NEWROUTE or RTM_DELROUTE."""
    family, length, _, _, number, protocol, scope, kind, flags = _unpack(RTMSG, message)
    if family not in _LENGTHS:
        raise MalformedError(f"a route of family {family}")
    found = table(message.body, RTMSG.size)
    number = _number(found, 15, number)
    anywhere = bytes(_LENGTHS[family])
    return Route(
        destination=_network(found.get(1, anywhere), length),
        gateway=_ip(found.get(5)) or _via(found.get(18)),
        index=_optional(found, 4),
        source=_ip(found.get(7)),
        metric=_number(found, 6),
        table=TABLES.get(number, number),
        protocol=_PROTOCOLS.get(protocol, protocol),
        scope=_SCOPES.get(scope, scope),
        type=TYPES[kind] if kind < len(TYPES) else str(kind),
        hops=_hops(found.get(9, b"")),
        mtu=_number(table(found.get(8, b"")), 2) or None,
        onlink=bool(flags & _ONLINK),
    )


def parse_destination(message: Message) -> AnyNetwork:
    """Return no more than the destination of the same."""
    family, length = _unpack(RTMSG, message)[:2]
    value = first(message.body, 1, RTMSG.size)
    return _network(bytes(_LENGTHS[family]) if value is None else value, length)


def parse_extent(message: Message) -> tuple[str | int, int]:
    """Return no more than the table of the same, where that has a name, and the length of the destination's prefix."""
    _, length, _, _, number = _unpack(RTMSG, message)[:5]
    return TABLES.get(number, number), length


def parse_way(message: Message) -> int | None:
    """Return no more than the number of the link that the same leads to, or None: there is none, or several are."""
    value = first(message.body, 4, RTMSG.size)
    return None if value is None else int.from_bytes(value, sys.byteorder)


def _via(value: bytes | None) -> AnyAddress | None:
    """Return a gateway of the other family: struct rtvia."""
    return None if value is None else _ip(value[2:])


def _hops(value: bytes) -> tuple[tuple[AnyAddress | None, int, int], ...]:
    layout = struct.Struct("=HBBi")
    hops = []
    at = 0
    while at + layout.size <= len(value):
        size, _, weight, index = layout.unpack_from(value, at)
        if size < layout.size or at + size > len(value):
            raise MalformedError(f"a next hop of {size} bytes")
        inner = table(value[at + layout.size : at + size])
        hops.append((_ip(inner.get(5)) or _via(inner.get(18)), index, weight + 1))
        at += size + (-size % 4)
    return tuple(hops)


def parse_neighbour(message: Message) -> Neighbour | None:
    """Return the neighbour of an RTM_NEWNEIGH or RTM_DELNEIGH, or None for an entry of a bridge's table of MAC addresses."""
    family, index, state, flags, _ = _unpack(NDMSG, message)
    found = table(message.body, NDMSG.size)
    address = _ip(found.get(1)) if family in _LENGTHS else None
    if address is None:
        return None
    return Neighbour(
        address=address,
        index=index,
        mac=_mac(found.get(2)),
        state=_NEIGHBOUR_STATES.get(state, "none"),
        router=bool(flags & 0x80),
    )


def parse_rule(message: Message) -> Rule:
    """Return the rule of an RTM_NEWRULE or RTM_DELRULE."""
    family, to_length, from_length, _, number, _, _, action, _ = _unpack(RTMSG, message)
    if family not in _LENGTHS:
        raise MalformedError(f"a rule of family {family}")
    found = table(message.body, RTMSG.size)
    number = _number(found, 15, number)
    return Rule(
        priority=_number(found, 6),
        action=ACTIONS.get(action, str(action)),
        table=TABLES.get(number, number),
        family=family,
        source=_network(found[2], from_length) if 2 in found else None,  # noqa: PLR2004
        destination=_network(found[1], to_length) if 1 in found else None,
        incoming=word(found.get(3, b"")),
        outgoing=word(found.get(17, b"")),
        mark=_number(found, 10),
        mask=_number(found, 16),
    )


def _interface(address: AnyAddress, length: int) -> AnyInterface:
    try:
        pair = int(address), length  # a text would be read again
        return IPv4Interface(pair) if isinstance(address, IPv4Address) else IPv6Interface(pair)
    except ValueError:
        raise MalformedError(f"{address} with a prefix of {length} bits") from None


def _network(value: bytes, length: int) -> AnyNetwork:
    if len(value) not in _LENGTHS.values() or length > 8 * len(value):
        raise MalformedError(f"a network of {len(value)} bytes with a prefix of {length} bits")
    kind = IPv4Network if len(value) == _LENGTHS[AF_INET] else IPv6Network
    return kind((value, length), strict=False)
