"""Packets that no kernel would send by itself, for who puts them on the wire."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address


def checksum(data: bytes) -> int:
    """Return the checksum of the internet's headers."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def first_of_ipv6(proto: int, source: str, destination: str, port: int) -> bytes:
    """Return a packet that begins something with a server over IPv6: a datagram, or what asks for a connection of TCP."""
    ends = b"".join(IPv6Address(one).packed for one in (source, destination))
    if proto == socket.IPPROTO_UDP:
        parts = struct.pack(">HHH", 4000, port, 8 + 2), b"hi"
    else:
        parts = struct.pack(">HHIIBBH", 4000, port, 1, 0, 5 << 4, 2, 0xFFFF), b"\0\0"
    size = len(parts[0]) + 2 + len(parts[1])
    found = checksum(ends + struct.pack(">II", size, proto) + parts[0] + b"\0\0" + parts[1])
    return struct.pack(">IHBB", 6 << 28, size, proto, 64) + ends + parts[0] + struct.pack(">H", found) + parts[1]
