"""Connections that the kernel tracks and translates: listed, and forgotten (nfnetlink, subsystem ctnetlink).

Source: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import struct
from errno import EINVAL, EOPNOTSUPP
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import Request

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from isolib._kernel.netlink.codec import Message

__all__ = ["Flow", "Server", "forget_flow", "list_flows", "parse_flow"]

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
_FILTER: Final = 25
_IP: Final = 1
_PROTOCOL: Final = 2
_NUMBER: Final = 1
#: Where in each direction a server stands, which a connection was made to, and which answers: kinds of its address and port.
_SERVER: Final = {_ORIGINAL: ({4: 2, 6: 4}, 3), _REPLY: ({4: 1, 6: 3}, 2)}
#: CTA_FILTER_*: the protocol and the server's port, and its address.
_BY_PORT: Final = {_ORIGINAL: 1 << 3 | 1 << 5, _REPLY: 1 << 3 | 1 << 4}
_BY_ADDRESS: Final = {_ORIGINAL: 1 << 1, _REPLY: 1 << 0}
_LACKING: Final = "this kernel tells nobody of connections (CONFIG_NF_CT_NETLINK: modprobe nf_conntrack_netlink)"
_HINTS: Final = {EINVAL: _LACKING, EOPNOTSUPP: _LACKING}


class Server(NamedTuple):
    """A port of an address, and the number of its protocol."""

    protocol: int
    address: IPv4Address | IPv6Address
    port: int


class Flow(NamedTuple):
    """A connection: the server that its client meant, the one that answers behind all translation, and its name."""

    meant: Server
    answers: Server
    key: bytes


def list_flows(server: Server, *, answers: bool) -> Request:
    """Return the request for the connections of a server: those that it answers, or those that were made to it.

    The kernel chooses by protocol and port, and of IPv4 by address (CTA_FILTER, Linux 5.8; an older one lists all): a guest who
    makes many others is no burden.  Who asks looks at what comes.
    """
    side = _REPLY if answers else _ORIGINAL
    of_address, of_port = _SERVER[side][0][server.address.version], _SERVER[side][1]
    address = codec.nested(_IP, codec.attribute(of_address, server.address.packed))
    service = codec.nested(_PROTOCOL, codec.u8(_NUMBER, server.protocol), codec.be16(of_port, server.port))
    # Of IPv6 the kernel lists those whose address is another one (ctnetlink_filter_match_tuple, Linux 6.18): so all
    # of that port.
    by = _BY_PORT[side] | (_BY_ADDRESS[side] if server.address.version == 4 else 0)  # noqa: PLR2004
    wanted = (codec.u32(one, by if one == side else 0) for one in (_ORIGINAL, _REPLY))
    body = _HEAD.pack(_FAMILIES[server.address.version], 0, 0)
    body += codec.nested(side, address, service) + codec.nested(_FILTER, *wanted)
    return Request(_SUBSYSTEM << 8 | _GET, body, 0, _NAMES[_GET], "connections", _HINTS)


def parse_flow(message: Message) -> Flow | None:
    """Return the connection that a message tells of; None where it has no ports, as pings have none."""
    found = codec.table(message.body, _HEAD.size)
    meant, answers = _server(found, _ORIGINAL), _server(found, _REPLY)
    if meant is None or answers is None:
        return None
    key = codec.nested(_ORIGINAL, found[_ORIGINAL])
    if _ID in found:  # else another one that came since, between the same two, would be meant
        key += codec.attribute(_ID, found[_ID])
    return Flow(meant, answers, key)


def _server(found: dict[int, bytes], side: int) -> Server | None:
    direction = codec.table(found.get(side, b""))
    addresses, protocol = codec.table(direction.get(_IP, b"")), codec.table(direction.get(_PROTOCOL, b""))
    kinds, port = _SERVER[side]
    kind = next((one for one in kinds.values() if one in addresses), None)
    if kind is None or port not in protocol:
        return None
    return Server(protocol[_NUMBER][0], ip_address(addresses[kind]), int.from_bytes(protocol[port], "big"))


def forget_flow(flow: Flow) -> Request:
    """Return the request that has the kernel forget a connection, and with it how that is translated."""
    _, address, port = flow.meant
    body = _HEAD.pack(_FAMILIES[address.version], 0, 0) + flow.key
    return Request(_SUBSYSTEM << 8 | _DELETE, body, 0, _NAMES[_DELETE], f"{address} port {port}", _HINTS)
