"""What rules of nftables are written with: each function returns the expressions for one thing that `rule` puts together.

    rule(arrives("br0"), to(net), port("tcp", 80), count(), DROP)

In a table of family inet or bridge, what looks at addresses asks for the protocol first, and what looks at ports for theirs.
All is as the program nft writes it, so that it shows the rules as it would its own.

Source: nft(8).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TypeAlias

from isolib._kernel.netlink import nft_expressions as nft
from isolib._kernel.netlink.nft import BRIDGE, INET, IPV4, IPV6
from isolib._kernel.netlink.nft_expressions import Compare, register
from isolib._kernel.netlink.nft_numbers import Base, Code, CtKey, FibResult, MetaKey, Op, RejectType

if TYPE_CHECKING:
    from fractions import Fraction
    from ipaddress import IPv4Network, IPv6Network

    from isolib._kernel.netlink.nft_expressions import Expression

__all__ = [
    "ESTABLISHED",
    "INVALID",
    "MODULUS",
    "PROTOCOLS",
    "Expressions",
    "arrives",
    "connection",
    "count",
    "destination_in",
    "dnat_to_found",
    "family",
    "from_",
    "icmpv6",
    "interface_in",
    "jump",
    "leaves",
    "lose",
    "masquerade",
    "original",
    "port",
    "protocol",
    "refuse",
    "reset",
    "rule",
    "threshold",
    "to",
    "to_here",
    "translated",
]

Expressions: TypeAlias = "tuple[Expression, ...]"
Subnet: TypeAlias = "IPv4Network | IPv6Network"

PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}

# linux/netfilter/nf_conntrack_common.h: bits that nftables has of a connection's state and status
INVALID: Final = 1
ESTABLISHED: Final = 2 | 4  # related too
_DNAT: Final = 1 << 5
_LOCAL: Final = 2  # RTN_LOCAL
_OF_DESTINATION: Final = 2
_ADMIN_PROHIBITED: Final = 3

MODULUS: Final = 2**32 - 1
"""Random numbers are drawn below this one, the greatest that the kernel takes."""

_NAME: Final = 16
_BYTE: Final = 8
#: Offsets of source and destination in the header of each protocol, and the size of an address.
_SOURCE: Final = {IPV4: 12, IPV6: 8}
_DESTINATION: Final = {IPV4: 16, IPV6: 24}
_SIZE: Final = {IPV4: 4, IPV6: 16}
_ETHERTYPE: Final = {IPV4: b"\x08\x00", IPV6: b"\x86\xdd"}
_DESTINATION_PORT: Final = 2


def rule(*parts: Expressions | Expression) -> Expressions:
    """Return the expressions of all parts, one after the other."""
    return tuple(one for part in parts for one in (part if isinstance(part, tuple) else (part,)))


def family_of(subnet: Subnet) -> int:
    """Return `IPV4` or `IPV6`."""
    return IPV4 if subnet.version == 4 else IPV6  # noqa: PLR2004


# ---- what is asked ----


def _compared(value: bytes, *, other: bool) -> Compare:
    return Compare(Op.NEQ if other else Op.EQ, value)


def _name(meta: MetaKey, name: str, *, other: bool) -> Expressions:
    raw = name.encode()
    value = raw[:-1] if raw.endswith(b"*") else raw.ljust(_NAME, b"\0")
    return nft.Meta(meta, 1), _compared(value, other=other)


def arrives(name: str, *, other: bool = False) -> Expressions:
    """Ask whether a packet comes in by an interface, or by any other; ``eth*`` is all whose names begin so."""
    return _name(MetaKey.IIFNAME, name, other=other)


def leaves(name: str, *, other: bool = False) -> Expressions:
    """Ask whether a packet goes out by an interface, or by any other."""
    return _name(MetaKey.OIFNAME, name, other=other)


def interface_in(meta: MetaKey, name: str, *, other: bool = False) -> Expressions:
    """Ask whether a set has the interface of IIFNAME or OIFNAME."""
    return nft.Meta(meta, 1), nft.Lookup(name, 1, flags=int(other))


def family(of: int, table: int = INET) -> Expressions:
    """Ask whether a packet is one of IPv4 or IPv6."""
    if table == BRIDGE:
        return nft.Meta(MetaKey.PROTOCOL, 1), Compare(Op.EQ, _ETHERTYPE[of])
    return nft.Meta(MetaKey.NFPROTO, 1), Compare(Op.EQ, bytes((of,)))


def protocol(name: str) -> Expressions:
    """Ask for TCP, UDP and the like."""
    return nft.Meta(MetaKey.L4PROTO, 1), Compare(Op.EQ, bytes((PROTOCOLS[name],)))


def port(name: str, number: int) -> Expressions:
    """Ask for a port that it is sent to."""
    value = number.to_bytes(2, "big")
    return (*protocol(name), nft.Payload(Base.TRANSPORT, _DESTINATION_PORT, 2, 1), Compare(Op.EQ, value))


def icmpv6(kind: int, table: int = INET) -> Expressions:
    """Ask for a type of ICMPv6 message."""
    return (*family(IPV6, table), *protocol("icmpv6"), nft.Payload(Base.TRANSPORT, 0, 1, 1), Compare(Op.EQ, bytes((kind,))))


def _address(offsets: dict[int, int], subnet: Subnet, table: int, *, other: bool) -> Expressions:
    of = family_of(subnet)
    offset = offsets[of]
    raw = subnet.network_address.packed
    length = subnet.prefixlen
    if length == 0:  # every address there is: the protocol says it
        return family(of, table) if not other else (*family(of, table), nft.Verdict(Code.BREAK))
    if length % _BYTE == 0:
        size = length // _BYTE
        return (*family(of, table), nft.Payload(Base.NETWORK, offset, size, 1), _compared(raw[:size], other=other))
    mask = nft.Bitwise(subnet.netmask.packed, bytes(len(raw)))
    return (*family(of, table), nft.Payload(Base.NETWORK, offset, len(raw), 1), mask, _compared(raw, other=other))


def from_(subnet: Subnet, *, other: bool = False, table: int = INET) -> Expressions:
    """Ask whether a packet's source is in a network; or whether it is one of the same protocol that is not."""
    return _address(_SOURCE, subnet, table, other=other)


def to(subnet: Subnet, *, other: bool = False, table: int = INET) -> Expressions:
    """Ask whether a packet's destination is in a network; or whether it is one of the same protocol that is not."""
    return _address(_DESTINATION, subnet, table, other=other)


def _address_in(offsets: dict[int, int], of: int, name: str, *, other: bool, table: int) -> Expressions:
    load = nft.Payload(Base.NETWORK, offsets[of], _SIZE[of], 1)
    return (*family(of, table), load, nft.Lookup(name, 1, flags=int(other)))


def source_in(of: int, name: str, *, other: bool = False, table: int = INET) -> Expressions:
    """Ask whether a set has a packet's source."""
    return _address_in(_SOURCE, of, name, other=other, table=table)


def destination_in(of: int, name: str, *, other: bool = False, table: int = INET) -> Expressions:
    """Ask whether a set has a packet's destination."""
    return _address_in(_DESTINATION, of, name, other=other, table=table)


def service_in(name: str) -> Expressions:
    """Ask whether a set has the protocol and the port that a packet is sent to."""
    return *_service(0), nft.Lookup(name, register(0), flags=0)


def _service(word: int) -> Expressions:
    load = nft.Payload(Base.TRANSPORT, _DESTINATION_PORT, 2, register(word + 1))
    return nft.Meta(MetaKey.L4PROTO, register(word)), load


def to_here() -> Expressions:
    """Ask whether a packet is sent to an address of this host."""
    return nft.Fib(FibResult.ADDRESS_TYPE, _OF_DESTINATION, 1), Compare(Op.EQ, _LOCAL.to_bytes(4, sys.byteorder))


def _bits(ct: CtKey, bits: int) -> Expressions:
    mask = nft.Bitwise(bits.to_bytes(4, sys.byteorder), bytes(4))
    return nft.Ct(ct, 1), mask, Compare(Op.NEQ, bytes(4))


def connection(state: int) -> Expressions:
    """Ask for packets whose connection is in one of these states: `ESTABLISHED`, `INVALID`."""
    return _bits(CtKey.STATE, state)


def translated() -> Expressions:
    """Ask for packets of connections that were given another destination."""
    return _bits(CtKey.STATUS, _DNAT)


def original() -> Expressions:
    """Ask for packets in the direction of the first one of their connection."""
    return nft.Ct(CtKey.DIRECTION, 1), Compare(Op.EQ, b"\0")


def threshold(share: Fraction | float) -> int:
    """Return the number below which as many are as this share of all; nothing that is possible becomes impossible."""
    return max(1, round(share * MODULUS)) if share else 0


def lose(share: Fraction | float) -> Expressions:
    """Go on for this share of the packets, picked at random, in steps of 2^-32.

    Raises
    ------
    ValueError
        It is less than nothing or more than all.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1: {share}")
    # Numbers are compared as bytes are.
    return nft.Numgen(MODULUS), nft.Byteorder(1, 4, 4), Compare(Op.LT, threshold(share).to_bytes(4, "big"))


# ---- what is done ----


def count() -> Expressions:
    """Count."""
    return (nft.Counter(),)


def jump(chain: str) -> Expressions:
    """Go through another chain, and go on here when it said nothing."""
    return (nft.Verdict(Code.JUMP, chain),)


def refuse() -> Expressions:
    """Drop a packet and say by ICMP that it is prohibited: whoever connects knows at once."""
    return (nft.Reject(RejectType.ICMPX, _ADMIN_PROHIBITED),)


def reset() -> Expressions:
    """Drop a packet of TCP and reset its connection."""
    return (nft.Reject(RejectType.TCP_RESET),)


def masquerade() -> Expressions:
    """Give the connection the address of the interface that it leaves by."""
    return (nft.Masquerade(),)


def dnat_to_found(of: int, name: str, *, with_address: bool) -> Expressions:
    """Give the connection the destination that a map has for its protocol and port.

    The keys are ``protocol . port``; with the address, ``address . protocol . port``.  The values are ``address . port``.
    """
    size = _SIZE[of] // 4
    start = size if with_address else 0
    address = (nft.Payload(Base.NETWORK, _DESTINATION[of], _SIZE[of], register(0)),) if with_address else ()
    found = nft.Lookup(name, register(0), into=register(0))
    return (*family(of), *address, *_service(start), found, nft.Nat(1, of, register(0), register(size)))
