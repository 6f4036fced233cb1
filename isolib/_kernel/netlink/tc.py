"""Traffic control over rtnetlink: requests for queueing disciplines, classes and filters, and what the kernel says of them.

Pure: values in, bytes out, and back.  Nothing here knows that a kernel exists.  The queueing disciplines themselves are in
`isolib._kernel.netlink.qdiscs`.

Source: tc(8), linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from errno import EINVAL, ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.qdiscs import QDISCS, Clsact, Ingress, unpack, wide, words
from isolib._kernel.netlink.socket import Request

if TYPE_CHECKING:
    from isolib._kernel.netlink.codec import Message
    from isolib._kernel.netlink.qdiscs import AnyQdisc, HtbClass

__all__ = [
    "ANY_PROTOCOL",
    "CLSACT",
    "EGRESS",
    "INGRESS",
    "ROOT",
    "QdiscState",
    "QueueStats",
    "add_class",
    "add_filter",
    "add_qdisc",
    "delete_filter",
    "delete_qdisc",
    "dump_qdiscs",
    "handle",
    "parse_qdisc",
    "pass_filter",
    "redirect_filter",
]

# linux/rtnetlink.h
NEWQDISC: Final = 36
DELQDISC: Final = 37
GETQDISC: Final = 38
NEWTCLASS: Final = 40
NEWTFILTER: Final = 44
DELTFILTER: Final = 45
_NAMES: Final = {
    NEWQDISC: "RTM_NEWQDISC",
    DELQDISC: "RTM_DELQDISC",
    GETQDISC: "RTM_GETQDISC",
    NEWTCLASS: "RTM_NEWTCLASS",
    NEWTFILTER: "RTM_NEWTFILTER",
    DELTFILTER: "RTM_DELTFILTER",
}

TCMSG: Final = struct.Struct("=BBHiIII")
_KIND: Final = 1
_OPTIONS: Final = 2
_STATS2: Final = 7

# linux/pkt_sched.h
ROOT: Final = 0xFFFFFFFF
CLSACT: Final = 0xFFFFFFF1
"""The parent of `Ingress` and `Clsact`."""
_CLSACT_HANDLE: Final = 0xFFFF0000
INGRESS: Final = 0xFFFFFFF2
EGRESS: Final = 0xFFFFFFF3
"""The parents of filters in a `Clsact`."""
ANY_PROTOCOL: Final = 0x0003
"""ETH_P_ALL."""
_QDISC_HINTS: Final = {
    ENOENT: "this kernel has no such queueing discipline (CONFIG_NET_SCH_*), or there is none here of this number",
    EOPNOTSUPP: "this kernel was built without it (CONFIG_NET_SCH_*)",
    EINVAL: "the kernel does not take these options, or somebody else's queueing discipline has this number",
}
_FILTER_HINTS: Final = {
    ENOENT: "this kernel lacks the filter or the action (CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED)",
    EOPNOTSUPP: "this kernel was built without filters or actions (CONFIG_NET_CLS_ACT)",
}


def handle(major: int, minor: int = 0) -> int:
    """Return the number of a queueing discipline or class, ``1:2`` as tc(8) writes it.

    Examples
    --------
    >>> hex(handle(1, 2))
    '0x10002'
    """
    return major << 16 | minor


# ---- requests ----


def _request(kind: int, numbers: tuple[int, int, int, int], rest: bytes, flags: int, label: str) -> Request:
    body = TCMSG.pack(0, 0, 0, *numbers) + rest
    return Request(kind, body, flags, _NAMES[kind], label, _FILTER_HINTS if kind >= NEWTFILTER else _QDISC_HINTS)


def _described(kind: str, options: bytes) -> bytes:
    return codec.text(_KIND, kind) + codec.attribute(_OPTIONS, options)


def add_qdisc(index: int, qdisc: AnyQdisc, label: str, *, number: int = 0, parent: int = ROOT) -> Request:
    """Return the request that puts a queueing discipline on an interface, in place of another one if there is one.

    One of the same kind and number is changed, and keeps what waits in it.  A place for filters is made anew only: with EEXIST
    there is one.

    Parameters
    ----------
    index
        Of the interface.
    qdisc
        What it is to be.
    label
        The interface, for errors.
    number
        Its handle; 0: the kernel chooses.
    parent
        `ROOT`, or the class that it is to be in.
    """
    flags = codec.CREATE | codec.REPLACE
    if isinstance(qdisc, (Clsact, Ingress)):
        number, parent, flags = _CLSACT_HANDLE, CLSACT, codec.CREATE | codec.EXCL
    rest = _described(qdisc.kind, qdisc.options())
    return _request(NEWQDISC, (index, number, parent, 0), rest, flags, f"{qdisc.kind} of {label}")


def delete_qdisc(index: int, label: str, *, parent: int = ROOT) -> Request:
    """Return the request that removes a queueing discipline with all below it; with ENOENT there is none but the default."""
    return _request(DELQDISC, (index, 0, parent, 0), b"", 0, f"queueing discipline of {label}")


def add_class(index: int, what: HtbClass, label: str, *, number: int, parent: int) -> Request:
    """Return the request that makes or changes a class."""
    rest = _described(what.kind, what.options())
    flags = codec.CREATE | codec.REPLACE
    return _request(NEWTCLASS, (index, number, parent, 0), rest, flags, f"{what.kind} class of {label}")


def dump_qdiscs(index: int = 0) -> Request:
    """Return the request for all queueing disciplines, of one interface where the kernel can tell them apart."""
    return _request(GETQDISC, (index, 0, 0, 0), b"", 0, "queueing disciplines")


# linux/pkt_cls.h
_TERMINAL: Final = 1
_STOLEN: Final = 4
_EGRESS_REDIR: Final = 1


def _everything() -> bytes:
    """Return a struct tc_u32_sel whose one key all packets have."""
    return struct.pack("=BBBxHHhhI", _TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)


def pass_filter() -> bytes:
    """Return the options of a filter (u32) that lets everything of its protocol pass, and keeps it from those after it."""
    return codec.attribute(5, _everything())


def redirect_filter(target: int) -> bytes:
    """Return the options of a filter (u32) that makes everything of its protocol leave by another interface (mirred)."""
    parameters = struct.pack("=IIiii", 0, 0, _STOLEN, 0, 0) + struct.pack("=iI", _EGRESS_REDIR, target)
    action = codec.nested(1, codec.text(1, "mirred"), codec.nested(2, codec.attribute(2, parameters)))
    return codec.attribute(5, _everything()) + codec.nested(7, action)


def add_filter(index: int, options: bytes, label: str, *, parent: int, priority: int, protocol: int) -> Request:
    """Return the request for a filter; those of a lower priority come first."""
    info = priority << 16 | _swapped(protocol)
    rest = _described("u32", options)
    flags = codec.CREATE | codec.EXCL
    return _request(NEWTFILTER, (index, 0, parent, info), rest, flags, f"filter of {label}")


def delete_filter(index: int, label: str, *, parent: int, priority: int, protocol: int) -> Request:
    """Return the request that removes the filters of one priority."""
    info = priority << 16 | _swapped(protocol)
    return _request(DELTFILTER, (index, 0, parent, info), b"", 0, f"filter of {label}")


def _swapped(protocol: int) -> int:
    """Return a protocol in the network's order, as the number that this machine reads it as."""
    return int(struct.unpack("=H", struct.pack(">H", protocol))[0])


# ---- what the kernel says ----


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What has passed a queueing discipline.

    Attributes
    ----------
    sent_bytes, sent
        Bytes, packets.
    dropped
        Packets: too many waited, or that is what it is for.
    waiting, waiting_bytes
        What is in it now.
    overlimits
        How often a packet had to wait for the rate.
    """

    sent_bytes: int = 0
    sent: int = 0
    dropped: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    overlimits: int = 0


@dataclass(frozen=True, slots=True)
class QdiscState:
    """A queueing discipline that is there.

    Attributes
    ----------
    index
        Of its interface.
    kind
        Its name.
    number, parent
        Its handle, and that of the class that it is in, or `ROOT`.
    options
        What it is set to; None for kinds that are not known here.
    stats
        What has passed it.
    """

    index: int
    kind: str
    number: int
    parent: int
    options: AnyQdisc | None
    stats: QueueStats


def parse_qdisc(message: Message) -> QdiscState:
    """Return what an RTM_NEWQDISC says.

    Raises
    ------
    MalformedError
        It is too short, or its options are.
    """
    _, _, _, index, own, parent, _ = unpack(TCMSG, message.body)
    found = codec.table(message.body, TCMSG.size)
    kind = codec.word(found.get(_KIND, b""))
    reader = QDISCS.get(kind)
    options = reader.parse(found[_OPTIONS]) if reader is not None and _OPTIONS in found else None
    return QdiscState(index, kind, own, parent, options, _parse_stats(found.get(_STATS2, b"")))


def _parse_stats(data: bytes) -> QueueStats:
    found = codec.table(data)
    basic = found.get(1, b"")  # struct gnet_stats_basic: a padded one is longer
    sent_bytes, sent = struct.unpack_from("=QI", basic) if len(basic) >= 12 else (0, 0)  # noqa: PLR2004
    waiting, waiting_bytes, dropped, _, overlimits = words(found.get(3, b""), 5)
    return QueueStats(
        sent_bytes=sent_bytes,
        sent=wide(found, 8, sent),
        dropped=dropped,
        waiting=waiting,
        waiting_bytes=waiting_bytes,
        overlimits=overlimits,
    )
