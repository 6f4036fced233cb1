"""The requests of rtnetlink that isolib makes, as values; nothing here knows that a kernel exists.

Sources: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h, linux/veth.h.
"""

from __future__ import annotations

import struct
import sys
from errno import (
    EADDRNOTAVAIL,
    EBUSY,
    EEXIST,
    EINVAL,
    ENETDOWN,
    ENETUNREACH,
    ENODEV,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
    ESRCH,
)
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import Request
from isolib.net.parsing import ACTIONS, AF_BRIDGE, AF_INET, AF_INET6, IFADDR, IFINFO, NDMSG, RTMSG, TABLES, TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from isolib.net.values import AnyAddress, AnyInterface, AnyNetwork, Rule

    Hop: TypeAlias = tuple[AnyAddress | None, int, int]

__all__ = [
    "add_address",
    "add_host",
    "add_neighbour",
    "add_route",
    "add_rule",
    "bring_up",
    "change_address",
    "default_route",
    "dump_addresses",
    "dump_links",
    "dump_neighbours",
    "dump_routes",
    "dump_rules",
    "find_route",
    "get_link",
    "get_link_by_index",
    "get_state",
    "link_attributes",
    "new_link",
    "remove_address",
    "remove_link",
    "remove_neighbour",
    "remove_route",
    "remove_rule",
    "set_kind",
    "set_link",
    "set_port",
    "table_number",
    "veth_peer",
]

# linux/rtnetlink.h
NEWLINK: Final = 16
DELLINK: Final = 17
GETLINK: Final = 18
SETLINK: Final = 19
NEWADDR: Final = 20
DELADDR: Final = 21
GETADDR: Final = 22
NEWROUTE: Final = 24
DELROUTE: Final = 25
GETROUTE: Final = 26
NEWNEIGH: Final = 28
DELNEIGH: Final = 29
GETNEIGH: Final = 30
NEWRULE: Final = 32
DELRULE: Final = 33
GETRULE: Final = 34

IFF_UP: Final = 1
_STATIC: Final = 4
_BYTE: Final = 255
_TABLE_NUMBERS: Final = {name: number for number, name in TABLES.items()}
RULE_ACTIONS: Final = {name: number for number, name in ACTIONS.items()}
_LINK_SCOPE: Final = 253
#: Of a route to be removed: whatever its scope is.
_NOWHERE: Final = 255
_NODAD: Final = 0x02
_PERMANENT: Final = 0x80
_NOPREFIXROUTE: Final = 0x200
_FOREVER: Final = 0xFFFFFFFF
_LIFETIMES: Final = struct.Struct("=IIII")
_ONLINK: Final = 4
_HOP: Final = struct.Struct("=HBBi")

#: IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS (Linux 4.4).
_NO_COUNTS: Final = codec.u32(29, 8)

_FAMILIES: Final = {None: 0, 4: AF_INET, 6: AF_INET6}
_EVERYWHERE: Final = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}

_NEW_HINTS: Final = {
    EEXIST: "the name, or the number, of this link is taken in its namespace",
    EOPNOTSUPP: "this kernel has no links of this kind: isolib.doctor() says what it would need",
    EPERM: "it takes CAP_NET_ADMIN over the namespaces of both ends",
    EINVAL: "the kernel does not take these options together",
    EBUSY: "the link below is in use by one of another kind",
    ENETDOWN: "the link below is down: bring it up first",
    ENODEV: "there is no such link below",
    ERANGE: "it is a number, or a size, that this kind of link cannot have",
}
_LINK_HINTS: Final = {
    ENODEV: "there is no such link in this namespace",
    EPERM: "it takes CAP_NET_ADMIN over the namespace",
    EBUSY: "it is a port of a bridge already, or up where it must be down",
    EEXIST: "another link has this name",
    EINVAL: "the link cannot have this value",
}
_ADDRESS_HINTS: Final = {
    EEXIST: "the link has this address already",
    EADDRNOTAVAIL: "the link does not have this address",
    ENODEV: "there is no such link in this namespace",
    EPERM: "it takes CAP_NET_ADMIN over the namespace",
}
_NEIGHBOUR_HINTS: Final = {
    ENOENT: "the link has no such neighbour",
    ENODEV: "there is no such link in this namespace",
    EPERM: "it takes CAP_NET_ADMIN over the namespace",
}
_RULE_HINTS: Final = {
    EEXIST: "there is such a rule already",
    ENOENT: "there is no such rule",
    EPERM: "it takes CAP_NET_ADMIN over the namespace",
}
_ROUTE_HINTS: Final = {
    EEXIST: "there is a route with this destination and metric already",
    ENETUNREACH: "the gateway is on no network that this namespace has an address of",
    ENODEV: "there is no such link in this namespace",
    ESRCH: "there is no such route",
    EINVAL: "the kernel does not take these together, or a gateway is one of the namespace's own addresses",
    EPERM: "it takes CAP_NET_ADMIN over the namespace",
}


# ---- links ----


def link_attributes(
    *,
    name: str | None = None,
    mac: bytes | None = None,
    mtu: int | None = None,
    master: int | None = None,
    lower: int | None = None,
    alias: str | None = None,
    net: int | None = None,
) -> bytes:
    """Return the attributes that every kind of link may have; ``net`` is a descriptor of the namespace to be born in."""
    parts = []
    if name is not None:
        parts.append(codec.text(3, name))
    if mac is not None:
        parts.append(codec.attribute(1, mac))
    if mtu is not None:
        parts.append(codec.u32(4, mtu))
    if master is not None:
        parts.append(codec.u32(10, master))
    if lower is not None:
        parts.append(codec.u32(5, lower))
    if alias is not None:
        parts.append(codec.attribute(20, alias.encode()))
    if net is not None:
        parts.append(codec.u32(28, net))
    return b"".join(parts)


def new_link(kind: str, attributes: bytes, *, name: str, index: int = 0, up: bool = False, data: bytes = b"") -> Request:
    """Return the request for a new link; ``data`` are the attributes of its kind, ``index`` a number, or 0: a free one."""
    flag = IFF_UP if up else 0
    info = [codec.text(1, kind), *([codec.nested(2, data)] if data else [])]
    body = IFINFO.pack(0, 0, index, flag, flag) + attributes + codec.nested(18, *info)
    return Request(NEWLINK, body, codec.CREATE | codec.EXCL, "RTM_NEWLINK", f"{kind} {name}", _NEW_HINTS)


def veth_peer(attributes: bytes, index: int) -> bytes:
    """Return the ``data`` of a veth: what its other end is, and where; its number counts where the first end has one too."""
    return codec.nested(1, IFINFO.pack(0, 0, index, 0, 0) + attributes)


def set_link(index: int, label: str, attributes: bytes = b"", *, up: bool | None = None) -> Request:
    """Return the request that changes a link."""
    change = 0 if up is None else IFF_UP
    body = IFINFO.pack(0, 0, index, IFF_UP if up else 0, change) + attributes
    return Request(NEWLINK, body, 0, "RTM_NEWLINK", label, _LINK_HINTS)


def set_port(index: int, label: str, options: bytes) -> Request:
    """Return the request that changes how a bridge treats one of its ports; ``options`` are IFLA_BRPORT_* attributes."""
    body = IFINFO.pack(AF_BRIDGE, 0, index, 0, 0) + codec.nested(12, options)
    words = "it is no port of a bridge, or the kernel does not take this value"
    hints = {**_LINK_HINTS, EINVAL: words, EOPNOTSUPP: words}
    return Request(SETLINK, body, 0, "RTM_SETLINK", label, hints)


def set_kind(index: int, label: str, kind: str, data: bytes) -> Request:
    """Return the request that changes what only links of this kind have."""
    info = codec.nested(18, codec.text(1, kind), codec.nested(2, data))
    return Request(NEWLINK, IFINFO.pack(0, 0, index, 0, 0) + info, 0, "RTM_NEWLINK", label, _LINK_HINTS)


def bring_up(name: str) -> Request:
    """Return the request that brings up the link of this name."""
    return Request(NEWLINK, IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + codec.text(3, name), 0, "RTM_NEWLINK", name, _LINK_HINTS)


def remove_link(index: int, label: str) -> Request:
    """Return the request that removes a link."""
    return Request(DELLINK, IFINFO.pack(0, 0, index, 0, 0), 0, "RTM_DELLINK", label, _LINK_HINTS)


def get_link(name: str) -> Request:
    """Return the request for what the kernel knows of the link of this name."""
    body = IFINFO.pack(0, 0, 0, 0, 0) + codec.text(3, name)
    return Request(GETLINK, body, 0, "RTM_GETLINK", name, _LINK_HINTS)


def get_link_by_index(index: int, label: str) -> Request:
    """Return the request for what the kernel knows of the link with this number."""
    return Request(GETLINK, IFINFO.pack(0, 0, index, 0, 0), 0, "RTM_GETLINK", label, _LINK_HINTS)


def get_state(index: int, label: str) -> Request:
    """Return the request for what the kernel knows of the link with this number, but for what it has counted."""
    return Request(GETLINK, IFINFO.pack(0, 0, index, 0, 0) + _NO_COUNTS, 0, "RTM_GETLINK", label, _LINK_HINTS)


def dump_links() -> Request:
    """Return the request for all links."""
    return Request(GETLINK, IFINFO.pack(0, 0, 0, 0, 0), 0, "RTM_GETLINK", "links")


# ---- addresses ----


def _address(
    packed: bytes,
    prefix: int,
    index: int,
    peer: AnyAddress | None = None,
    *,
    lifetimes: tuple[int, int] | None = None,
    noprefixroute: bool = False,
) -> bytes:
    is_4 = len(packed) == 4  # noqa: PLR2004
    valid, preferred = lifetimes or (_FOREVER, _FOREVER)
    flags = (0 if is_4 else _NODAD) | (_PERMANENT if valid == _FOREVER else 0) | (_NOPREFIXROUTE if noprefixroute else 0)
    # RFC 3927, RFC 4291
    is_local = packed[:2] == b"\xa9\xfe" if is_4 else packed[0] == 0xFE and packed[1] & 0xC0 == 0x80  # noqa: PLR2004
    head = AF_INET if is_4 else AF_INET6, prefix, flags & _BYTE, _LINK_SCOPE if is_local else 0, index
    body = IFADDR.pack(*head) + codec.attribute(2, packed) + codec.attribute(1, peer.packed if peer else packed)
    body += codec.u32(8, flags)
    if lifetimes is not None:
        body += codec.attribute(6, _LIFETIMES.pack(preferred, valid, 0, 0))
    if is_4 and peer is None and prefix < 31:  # noqa: PLR2004 - there is none in a network of two
        body += codec.attribute(4, (int.from_bytes(packed, "big") | 0xFFFFFFFF >> prefix).to_bytes(4, "big"))
    return body


def add_address(
    interface: AnyInterface,
    index: int,
    label: str,
    *,
    peer: AnyAddress | None = None,
    lifetimes: tuple[int, int] | None = None,
    noprefixroute: bool = False,
) -> Request:
    """Return the request that gives a link an address; one of IPv6 is not asked about first, and so usable at once."""
    packed, prefix = interface.packed, interface.network.prefixlen
    body = _address(packed, prefix, index, peer, lifetimes=lifetimes, noprefixroute=noprefixroute)
    return Request(NEWADDR, body, codec.CREATE | codec.EXCL, "RTM_NEWADDR", (interface, " on ", label), _ADDRESS_HINTS)


def change_address(
    interface: AnyInterface, index: int, label: str, *, lifetimes: tuple[int, int], noprefixroute: bool
) -> Request:
    """Return the request that changes for how many seconds an address is valid, and preferred."""
    packed, prefix = interface.packed, interface.network.prefixlen
    body = _address(packed, prefix, index, lifetimes=lifetimes, noprefixroute=noprefixroute)
    return Request(NEWADDR, body, codec.REPLACE, "RTM_NEWADDR", f"{interface} on {label}", _ADDRESS_HINTS)


def add_host(address: AnyAddress, prefix: int, index: int, label: str) -> Request:
    """Return the same request, for an address without its prefix and the length of that."""
    body = _address(address.packed, prefix, index)
    return Request(
        NEWADDR, body, codec.CREATE | codec.EXCL, "RTM_NEWADDR", (address, "/", prefix, " on ", label), _ADDRESS_HINTS
    )


def remove_address(interface: AnyInterface, index: int, label: str, *, peer: AnyAddress | None = None) -> Request:
    """Return the request that takes an address from a link."""
    body = _address(interface.packed, interface.network.prefixlen, index, peer)
    return Request(DELADDR, body, 0, "RTM_DELADDR", (interface, " on ", label), _ADDRESS_HINTS)


def dump_addresses(version: int | None = None) -> Request:
    """Return the request for all addresses, or for those of one version of IP, for which newer kernels wait for nobody."""
    return Request(GETADDR, IFADDR.pack(_FAMILIES[version], 0, 0, 0, 0), 0, "RTM_GETADDR", "addresses")


# ---- routes ----


def _gateway(gateway: AnyAddress | None, version: int) -> bytes:
    """Return the attribute for a gateway of the family of a route, or of the other one: IPv4 by IPv6, struct rtvia."""
    if gateway is None:
        return b""
    if gateway.version == version:
        return codec.attribute(5, gateway.packed)
    return codec.attribute(18, AF_INET6.to_bytes(2, sys.byteorder) + gateway.packed)


def _hops(hops: Sequence[Hop], version: int) -> bytes:
    """Return the next hops of a route that has several: struct rtnexthop, each with attributes of its own."""
    found = []
    for gateway, index, weight in hops:
        inner = _gateway(gateway, version)
        found.append(_HOP.pack(_HOP.size + len(inner), 0, weight - 1, index) + inner)
    return codec.attribute(9, b"".join(found))


def _route(
    destination: AnyNetwork,
    protocol: int,
    scope: int,
    *,
    gateway: AnyAddress | None,
    index: int | None,
    metric: int | None,
    table: str | int,
    kind: str,
    source: AnyAddress | None = None,
    mtu: int | None = None,
    onlink: bool = False,
    hops: Sequence[Hop] = (),
) -> bytes:
    version, length = destination.version, destination.prefixlen
    family = AF_INET if version == 4 else AF_INET6  # noqa: PLR2004
    number = table_number(table)
    small = number if number <= _BYTE else 0
    flags = _ONLINK if onlink else 0
    head = RTMSG.pack(family, length, 0, 0, small, protocol, scope, TYPES.index(kind), flags)
    parts = [head, codec.u32(15, number)]
    if length:
        parts.append(codec.attribute(1, destination.network_address.packed))
    parts.append(_gateway(gateway, version))
    if index is not None:
        parts.append(codec.u32(4, index))
    if source is not None:
        parts.append(codec.attribute(7, source.packed))
    if metric is not None:
        parts.append(codec.u32(6, metric))
    if mtu is not None:
        parts.append(codec.nested(8, codec.u32(2, mtu)))
    if hops:
        parts.append(_hops(hops, destination.version))
    return b"".join(parts)


def add_route(
    destination: AnyNetwork,
    *,
    gateway: AnyAddress | None = None,
    index: int | None = None,
    metric: int | None = None,
    table: str | int = "main",
    source: AnyAddress | None = None,
    kind: str = "unicast",
    mtu: int | None = None,
    onlink: bool = False,
    hops: Sequence[Hop] = (),
) -> Request:
    """Return the request for a route by a gateway, by a link whose neighbours are the destination, by several, or by none."""
    on_link = gateway is None and kind == "unicast" and all(hop[0] is None for hop in hops)
    scope = _LINK_SCOPE if on_link else 0
    body = _route(
        *(destination, _STATIC, scope),
        gateway=gateway,
        index=index,
        metric=metric,
        table=table,
        kind=kind,
        source=source,
        mtu=mtu,
        onlink=onlink,
        hops=hops,
    )
    by = (len(hops), " hops") if hops else (gateway,) if gateway else ("link ", index)
    about = (destination, " via ", *by) if kind == "unicast" else (kind, " ", destination)
    return Request(NEWROUTE, body, codec.CREATE | codec.EXCL, "RTM_NEWROUTE", about, _ROUTE_HINTS)


def default_route(gateway: AnyAddress, index: int) -> Request:
    """Return the request for the route by a gateway to everywhere that no other one leads to."""
    return add_route(_EVERYWHERE[gateway.version], gateway=gateway, index=index)


def remove_route(
    destination: AnyNetwork,
    *,
    gateway: AnyAddress | None = None,
    index: int | None = None,
    metric: int | None = None,
    table: str | int = "main",
    kind: str = "unspec",
) -> Request:
    """Return the request that removes a route, whoever made it."""
    body = _route(destination, 0, _NOWHERE, gateway=gateway, index=index, metric=metric, table=table, kind=kind)
    return Request(DELROUTE, body, 0, "RTM_DELROUTE", str(destination), _ROUTE_HINTS)


def find_route(destination: AnyAddress, index: int) -> Request:
    """Return the request for the route that a packet to this address would take by this link."""
    family = AF_INET if destination.version == 4 else AF_INET6  # noqa: PLR2004
    body = RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += codec.attribute(1, destination.packed) + codec.u32(4, index)
    return Request(GETROUTE, body, 0, "RTM_GETROUTE", str(destination), _ROUTE_HINTS)


def dump_routes(version: int | None = None) -> Request:
    """Return the request for all routes of all tables, or those of one version of IP; as `dump_addresses`."""
    return Request(GETROUTE, RTMSG.pack(_FAMILIES[version], 0, 0, 0, 0, 0, 0, 0, 0), 0, "RTM_GETROUTE", "routes")


def _rule(rule: Rule) -> bytes:
    lengths = [0 if network is None else network.prefixlen for network in (rule.destination, rule.source)]
    number = table_number(rule.table) if rule.action == "lookup" else 0
    parts = [RTMSG.pack(rule.family, *lengths, 0, number if number <= _BYTE else 0, 0, 0, RULE_ACTIONS[rule.action], 0)]
    parts += [codec.u32(6, rule.priority), *([codec.u32(15, number)] if number else [])]
    for kind, network in ((1, rule.destination), (2, rule.source)):
        if network is not None and network.prefixlen:
            parts.append(codec.attribute(kind, network.network_address.packed))
    parts += [codec.text(kind, name) for kind, name in ((3, rule.incoming), (17, rule.outgoing)) if name]
    if rule.mark or rule.mask:
        parts += [codec.u32(10, rule.mark), codec.u32(16, rule.mask)]
    return b"".join(parts)


def add_rule(rule: Rule) -> Request:
    """Return the request for a rule."""
    return Request(NEWRULE, _rule(rule), codec.CREATE | codec.EXCL, "RTM_NEWRULE", f"rule {rule.priority}", _RULE_HINTS)


def remove_rule(rule: Rule) -> Request:
    """Return the request that removes the first rule that is like this."""
    return Request(DELRULE, _rule(rule), 0, "RTM_DELRULE", f"rule {rule.priority}", _RULE_HINTS)


def table_number(table: str | int) -> int:
    """Return the number of a table of routes, which some have a name for."""
    return _TABLE_NUMBERS[table] if isinstance(table, str) else table


def dump_rules() -> Request:
    """Return the request for the rules that choose among tables."""
    return Request(GETRULE, RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0), 0, "RTM_GETRULE", "rules")


# ---- neighbours ----


def add_neighbour(address: AnyAddress, mac: bytes, index: int, label: str) -> Request:
    """Return the request for a permanent neighbour: who has this address on this link."""
    family = AF_INET if address.version == 4 else AF_INET6  # noqa: PLR2004
    body = NDMSG.pack(family, index, _PERMANENT, 0, 0) + codec.attribute(1, address.packed) + codec.attribute(2, mac)
    flags = codec.CREATE | codec.REPLACE
    return Request(NEWNEIGH, body, flags, "RTM_NEWNEIGH", f"{address} on {label}", _NEIGHBOUR_HINTS)


def remove_neighbour(address: AnyAddress, index: int, label: str) -> Request:
    """Return the request that makes a link forget who has an address."""
    family = AF_INET if address.version == 4 else AF_INET6  # noqa: PLR2004
    body = NDMSG.pack(family, index, 0, 0, 0) + codec.attribute(1, address.packed)
    return Request(DELNEIGH, body, 0, "RTM_DELNEIGH", f"{address} on {label}", _NEIGHBOUR_HINTS)


def dump_neighbours() -> Request:
    """Return the request for all neighbours."""
    return Request(GETNEIGH, NDMSG.pack(0, 0, 0, 0, 0), 0, "RTM_GETNEIGH", "neighbours")
