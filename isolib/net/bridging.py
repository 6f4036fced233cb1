"""What only bridges have: VLANs of their ports, and tables of MAC addresses; requests, and answers read.

Nothing here knows that a kernel exists.  Sources: bridge(8), linux/if_bridge.h, linux/neighbour.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from errno import EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import MalformedError
from isolib._kernel.netlink.socket import Request
from isolib.errors import SyscallError, Unsupported
from isolib.net.checks import check_number
from isolib.net.parsing import AF_BRIDGE, IFINFO, NDMSG
from isolib.net.requests import DELLINK, DELNEIGH, GETLINK, GETNEIGH, NEWNEIGH, SETLINK
from isolib.net.values import FdbEntry, PortVlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.netlink.codec import Message

__all__ = [
    "HIGHEST_VLAN",
    "add_fdb",
    "add_vlans",
    "check_vlan",
    "check_vlans",
    "dump_fdb",
    "dump_vlans",
    "parse_fdb",
    "parse_vlans",
    "remove_fdb",
    "remove_vlans",
    "with_vlans",
    "without_vlans",
]

#: Of the 12 bits for the number, 0 is "none" and 4095 is nobody's (IEEE 802.1Q).
_LOWEST: Final = 1
HIGHEST_VLAN: Final = 4094

# linux/if_link.h
_MASTER: Final = 10
_AF_SPEC: Final = 26
_EXT_MASK: Final = 29

# linux/rtnetlink.h: VLANs that differ in nothing are told as a range; one by one, a trunk has more than a message holds.
_COMPRESSED: Final = 4

# linux/if_bridge.h
_FLAGS, _VLAN_INFO = 0, 2
_BY_SELF: Final = 2
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 2, 4, 8, 16
_INFO: Final = struct.Struct("=HH")

# linux/neighbour.h
_NDA_LLADDR, _NDA_VLAN, _NDA_MASTER = 2, 5, 9
_NTF_SELF, _NTF_MASTER, _NTF_STICKY = 0x02, 0x04, 0x40
_NOARP, _PERMANENT = 0x40, 0x80
_STATES: Final = {_NOARP: "static", _PERMANENT: "local"}

#: What the kernel says where it has no bridges at all.
_NO_BRIDGES: Final = "Unknown device type"

_VLAN_HINTS: Final = {
    EINVAL: "it is no port of a bridge",
    ENODEV: "there is no such link in this namespace",
    EPERM: "it takes CAP_NET_ADMIN over the namespace",
}
_FDB_HINTS: Final = {
    EINVAL: "it is no port of a bridge, or not in this VLAN",
    EOPNOTSUPP: "it is no port of a bridge",
    ENOENT: "the bridge has no such entry",
    ENODEV: "there is no such link in this namespace",
    EPERM: "it takes CAP_NET_ADMIN over the namespace",
}


# ---- VLANs ----


def without_vlans() -> Unsupported:
    """Return what is to be raised where the kernel's bridges have no VLANs."""
    option = "CONFIG_BRIDGE_VLAN_FILTERING"
    return Unsupported("VLANs of a bridge", f"the kernel: it is built without {option}", f"a kernel with {option}")


@contextmanager
def with_vlans(*, asked: bool = True) -> Iterator[None]:
    """Raise `Unsupported` in the block where that is what a refusal means, if VLANs are asked for."""
    try:
        yield
    except SyscallError as error:
        if not asked or error.errno != EOPNOTSUPP or _NO_BRIDGES in (error.hint or ""):
            raise
        raise without_vlans() from error


def check_vlan(value: int, what: str = "vlan") -> int:
    """Return the number of a VLAN.

    Raises
    ------
    PlanError
        It is none: 1 to 4094.
    """
    return check_number(value, what, _LOWEST, HIGHEST_VLAN)


def check_vlans(values: int | Iterable[int], what: str = "vlans") -> list[int]:
    """Return the numbers of VLANs, each once, the lowest first.

    Raises
    ------
    PlanError
        One is none: 1 to 4094.

    Examples
    --------
    >>> check_vlans([20, 10, 20]), check_vlans(7)
    ([10, 20], [7])
    """
    given = values if isinstance(values, Iterable) else [values]
    return sorted({check_vlan(value, what) for value in given})


def _ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each row of numbers without a gap."""
    starts = [number for before, number in pairwise([-1, *numbers]) if number != before + 1]
    ends = [number for number, after in pairwise([*numbers, HIGHEST_VLAN + 2]) if after != number + 1]
    return zip(starts, ends, strict=True)


def _vlans(index: int, numbers: list[int], flags: int, *, is_bridge: bool) -> bytes:
    parts = [codec.u16(_FLAGS, _BY_SELF)] if is_bridge else []
    for first, last in _ranges(numbers):
        if first == last:
            parts.append(codec.attribute(_VLAN_INFO, _INFO.pack(flags, first)))
        else:
            parts.append(codec.attribute(_VLAN_INFO, _INFO.pack(flags | _RANGE_BEGIN, first)))
            parts.append(codec.attribute(_VLAN_INFO, _INFO.pack(flags | _RANGE_END, last)))
    return IFINFO.pack(AF_BRIDGE, 0, index, 0, 0) + codec.nested(_AF_SPEC, *parts)


def add_vlans(
    index: int, label: str, numbers: list[int], *, pvid: bool = False, untagged: bool = False, is_bridge: bool = False
) -> Request:
    """Return the request that puts a port of a bridge, or the bridge itself, in VLANs, or changes how it is in them."""
    flags = (_PVID if pvid else 0) | (_UNTAGGED if untagged else 0)
    return Request(SETLINK, _vlans(index, numbers, flags, is_bridge=is_bridge), 0, "RTM_SETLINK", label, _VLAN_HINTS)


def remove_vlans(index: int, label: str, numbers: list[int], *, is_bridge: bool = False) -> Request:
    """Return the request that takes a port, or the bridge itself, out of VLANs; those that it is not in are nothing."""
    return Request(DELLINK, _vlans(index, numbers, 0, is_bridge=is_bridge), 0, "RTM_DELLINK", label, _VLAN_HINTS)


def dump_vlans() -> Request:
    """Return the request for the VLANs of all bridges and ports."""
    body = IFINFO.pack(AF_BRIDGE, 0, 0, 0, 0) + codec.u32(_EXT_MASK, _COMPRESSED)
    return Request(GETLINK, body, 0, "RTM_GETLINK", "VLANs of bridges")


def parse_vlans(message: Message, bridge: int) -> list[PortVlan]:
    """Return the VLANs that an RTM_NEWLINK of AF_BRIDGE tells, where it is about this bridge or a port of it.

    Raises
    ------
    MalformedError
        It is no such message, or a range has no beginning.
    """
    if len(message.body) < IFINFO.size:
        raise MalformedError(f"a message of type {message.type} with {len(message.body)} bytes")
    index = IFINFO.unpack_from(message.body)[2]
    found = codec.table(message.body, IFINFO.size)
    master = int.from_bytes(found.get(_MASTER, b""), sys.byteorder)
    if bridge not in {index, master}:
        return []
    vlans = []
    start: int | None = None
    for kind, value in codec.attributes(found.get(_AF_SPEC, b"")):
        if kind != _VLAN_INFO:
            continue
        if len(value) != _INFO.size:
            raise MalformedError(f"a VLAN of {len(value)} bytes")
        flags, number = _INFO.unpack(value)
        if number > HIGHEST_VLAN:
            raise MalformedError(f"a VLAN with the number {number}")
        if flags & _RANGE_BEGIN:
            start = number
            continue
        if flags & _RANGE_END and start is None:
            raise MalformedError(f"a range of VLANs that ends with {number} and has no beginning")
        first = start if flags & _RANGE_END and start is not None else number
        start = None
        vlans += [
            PortVlan(index, each, pvid=bool(flags & _PVID), untagged=bool(flags & _UNTAGGED))
            for each in range(first, number + 1)
        ]
    return vlans


# ---- the table of MAC addresses ----


def _entry(index: int, mac: bytes, vlan: int | None, state: int, *, is_bridge: bool, sticky: bool = False) -> bytes:
    flags = (_NTF_SELF if is_bridge else _NTF_MASTER) | (_NTF_STICKY if sticky else 0)
    body = NDMSG.pack(AF_BRIDGE, index, state, flags, 0) + codec.attribute(_NDA_LLADDR, mac)
    return body if vlan is None else body + codec.u16(_NDA_VLAN, vlan)


def add_fdb(
    index: int, label: str, mac: bytes, vlan: int | None = None, *, sticky: bool = False, is_bridge: bool = False
) -> Request:
    """Return the request that says behind which port of a bridge an address is, or that it is the bridge's own."""
    state = _PERMANENT if is_bridge else _NOARP  # what is the bridge's own cannot be sticky, and need not
    body = _entry(index, mac, vlan, state, is_bridge=is_bridge, sticky=sticky and not is_bridge)
    target = f"{mac.hex(':')} on {label}"
    return Request(NEWNEIGH, body, codec.CREATE | codec.REPLACE, "RTM_NEWNEIGH", target, _FDB_HINTS)


def remove_fdb(index: int, label: str, mac: bytes, vlan: int | None = None, *, is_bridge: bool = False) -> Request:
    """Return the request that makes a bridge forget that an address is behind this port."""
    body = _entry(index, mac, vlan, 0, is_bridge=is_bridge)
    return Request(DELNEIGH, body, 0, "RTM_DELNEIGH", f"{mac.hex(':')} on {label}", _FDB_HINTS)


def dump_fdb(bridge: int, label: str) -> Request:
    """Return the request for the table of a bridge; the kernel adds what its ports themselves listen to."""
    body = NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0) + codec.u32(_NDA_MASTER, bridge)
    return Request(GETNEIGH, body, 0, "RTM_GETNEIGH", label, _FDB_HINTS)


def parse_fdb(message: Message, bridge: int) -> FdbEntry | None:
    """Return the entry that an RTM_NEWNEIGH of AF_BRIDGE tells, or None: it is none of this bridge's table.

    Raises
    ------
    MalformedError
        It is no such message.
    """
    if len(message.body) < NDMSG.size:
        raise MalformedError(f"a message of type {message.type} with {len(message.body)} bytes")
    family, index, state, flags, _ = NDMSG.unpack_from(message.body)
    found = codec.table(message.body, NDMSG.size)
    if family != AF_BRIDGE or int.from_bytes(found.get(_NDA_MASTER, b""), sys.byteorder) != bridge:
        return None
    vlan = int.from_bytes(found.get(_NDA_VLAN, b""), sys.byteorder)
    mac = found.get(_NDA_LLADDR, b"")
    if len(mac) != 6:  # noqa: PLR2004 - bytes of a MAC address
        raise MalformedError(f"a MAC address of {len(mac)} bytes")
    return FdbEntry(
        mac=mac.hex(":"), index=index, vlan=vlan or None, state=_STATES.get(state, "dynamic"), sticky=bool(flags & _NTF_STICKY)
    )
