"""The few netlink messages that the probes of networks send: packing is pure, `ask` sends one batch and reads the answers."""

from __future__ import annotations

import os
import struct
from typing import Final

from isolib.errors import from_errno

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/pkt_sched.h
NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
RTM_NEWLINK: Final = 16
RTM_NEWQDISC: Final = 36
_REQUEST: Final = 0x001
_ACK: Final = 0x004
_REPLACE: Final = 0x100
_CREATE: Final = 0x400
_ERROR: Final = 2
_NESTED: Final = 0x8000
_TC_ROOT: Final = 0xFFFFFFFF
_IFLA_IFNAME: Final = 3
_IFLA_LINK: Final = 5
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_TCA_KIND: Final = 1
_TCA_OPTIONS: Final = 2

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_NFTABLES: Final = 10
_NEW_TABLE: Final = 0
_NEW_CHAIN: Final = 3
_NEW_RULE: Final = 6
INET: Final = 1

_HEADER: Final = struct.Struct("=IHHII")


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded to four bytes."""
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Return an attribute that holds a string."""
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, body: bytes, *, flags: int = _CREATE, number: int = 1, answer: bool = True) -> bytes:
    """Return a request."""
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | (_ACK if answer else 0) | flags, number, 0) + body


def link(kind: str, index: int, *, lower: int = 0, data: bytes = b"") -> bytes:
    """Return the request for a network device of a kind; it gets the number and, from it, a name."""
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + text(_IFLA_IFNAME, f"probe{index}")
    if lower:
        body += attribute(_IFLA_LINK, struct.pack("=I", lower))
    info = [text(_IFLA_INFO_KIND, kind), *([nested(_IFLA_INFO_DATA, data)] if data else [])]
    return message(RTM_NEWLINK, body + nested(_IFLA_LINKINFO, *info))


def qdisc(kind: str, index: int, options: bytes) -> bytes:
    """Return the request for a queueing discipline at the root of a device, in place of the one there."""
    body = struct.pack("=BxxxiIII", 0, index, 0, _TC_ROOT, 0) + text(_TCA_KIND, kind) + attribute(_TCA_OPTIONS, options)
    return message(RTM_NEWQDISC, body, flags=_CREATE | _REPLACE)


def _nft(kind: int, number: int, *attributes: bytes) -> bytes:
    body = struct.pack("=BBH", INET, 0, 0) + b"".join(attributes)
    return message(_NFTABLES << 8 | kind, body, number=number)


def _batch(*messages: bytes) -> bytes:
    mark = struct.pack("=BBH", 0, 0, int.from_bytes(struct.pack(">H", _NFTABLES), "little"))
    begin = message(_BATCH_BEGIN, mark, flags=0, number=0, answer=False)
    return begin + b"".join(messages) + message(_BATCH_END, mark, flags=0, number=0, answer=False)


def nft_table(name: str, *, flags: int = 0) -> tuple[bytes, int]:
    """Return the batch that makes a table of family inet, and how many answers it has."""
    attributes = [text(1, name), attribute(2, struct.pack(">I", flags))]
    return _batch(_nft(_NEW_TABLE, 1, *attributes)), 1


def nft_masquerade(name: str) -> tuple[bytes, int]:
    """Return the batch that makes a table with a chain for source translation and a rule in it, and its answers."""
    hook = nested(4, attribute(1, struct.pack(">I", 4)), attribute(2, struct.pack(">i", 100)))
    expression = nested(1, text(1, "masq"))
    return _batch(
        _nft(_NEW_TABLE, 1, text(1, name)),
        _nft(_NEW_CHAIN, 2, text(1, name), text(3, "post"), hook, text(7, "nat")),
        _nft(_NEW_RULE, 3, text(1, name), text(2, "post"), nested(4, expression)),
    ), 3


def errors_in(answer: bytes) -> list[int]:
    """Return the error numbers of the acknowledgements in an answer, 0 for success."""
    errors = []
    at = 0
    while at + _HEADER.size + 4 <= len(answer):
        size, kind, *_ = _HEADER.unpack_from(answer, at)
        if kind == _ERROR:
            errors.append(-struct.unpack_from("=i", answer, at + _HEADER.size)[0])
        if size < _HEADER.size:
            break
        at += -(-size // 4) * 4
    return errors


def ask(socket: int, request: bytes, op: str, target: str, answers: int = 1) -> None:
    """Send a request over a netlink socket and read its acknowledgements.

    Raises
    ------
    SyscallError
        With the first error that the kernel answers.
    """
    try:
        os.write(socket, request)
        while answers > 0:
            errors = errors_in(os.read(socket, 65536))
            answers -= len(errors)
            first = next(filter(None, errors), 0)
            if first:
                raise from_errno(op, target, first)
    except OSError as error:
        if hasattr(error, "op"):
            raise
        raise from_errno(op, target, error.errno or 0) from error
