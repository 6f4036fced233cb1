"""Connections that the kernel tracks and translates: listed, and forgotten (nfnetlink, subsystem ctnetlink).

Source: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import struct
from errno import EINVAL, EOPNOTSUPP
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib._kernel.netlink.codec import Message

__all__ = ["Flow", "forget_flow", "list_flows", "parse_flow"]

_SUBSYSTEM: Final = 1
_GET: Final = 1
_DELETE: Final = 2
_NAMES: Final = {_GET: "IPCTNL_MSG_CT_GET", _DELETE: "IPCTNL_MSG_CT_DELETE"}
#: nfgenmsg: family, version, resource
_HEAD: Final = struct.Struct(">BBH")
_FAMILIES: Final = {4: 2, 6: 10}
# CTA_*
_ORIGINAL: Final = 1
_REPLY: Final = 2
_ID: Final = 12
_IP: Final = 1
_PROTOCOL: Final = 2
_SOURCES: Final[Mapping[int, type[IPv4Address | IPv6Address]]] = {1: IPv4Address, 3: IPv6Address}
_NUMBER: Final = 1
_SOURCE_PORT: Final = 2
_LACKING: Final = "this kernel tells nobody of connections (CONFIG_NF_CT_NETLINK: modprobe nf_conntrack_netlink)"
_HINTS: Final = {EINVAL: _LACKING, EOPNOTSUPP: _LACKING}


class Flow(NamedTuple):
    """A connection: its server as the kernel knows it behind all translation, and how it is named to the kernel."""

    protocol: int
    address: IPv4Address | IPv6Address
    port: int
    key: bytes


def list_flows(version: int) -> Request:
    """Return the request for all connections of a namespace over IPv4 (4) or IPv6 (6)."""
    return Request(_SUBSYSTEM << 8 | _GET, _HEAD.pack(_FAMILIES[version], 0, 0), 0, _NAMES[_GET], "connections", _HINTS)


def parse_flow(message: Message) -> Flow | None:
    """Return the connection that a message tells of; None where it has no ports, as pings have none."""
    found = codec.table(message.body, _HEAD.size)
    reply = codec.table(found.get(_REPLY, b""))
    addresses, protocol = codec.table(reply.get(_IP, b"")), codec.table(reply.get(_PROTOCOL, b""))
    source = next(((kind, value) for kind, value in addresses.items() if kind in _SOURCES), None)
    if source is None or _SOURCE_PORT not in protocol or _ORIGINAL not in found:
        return None
    key = codec.nested(_ORIGINAL, found[_ORIGINAL])
    if _ID in found:  # else another one that came since, between the same two, would be meant
        key += codec.attribute(_ID, found[_ID])
    port = int.from_bytes(protocol[_SOURCE_PORT], "big")
    return Flow(protocol[_NUMBER][0], _SOURCES[source[0]](source[1]), port, key)


def forget_flow(flow: Flow) -> Request:
    """Return the request that has the kernel forget a connection, and with it how that is translated."""
    body = _HEAD.pack(_FAMILIES[flow.address.version], 0, 0) + flow.key
    return Request(_SUBSYSTEM << 8 | _DELETE, body, 0, _NAMES[_DELETE], f"{flow.address} port {flow.port}", _HINTS)
