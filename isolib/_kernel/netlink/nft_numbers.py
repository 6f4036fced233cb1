"""What expressions of nftables are told apart by: keys, operators, verdicts (linux/netfilter/nf_tables.h)."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Base", "Code", "CtKey", "FibResult", "MetaKey", "Op", "RejectType"]


class Base(IntEnum):
    """Where in a packet an offset counts from."""

    LINK = 0
    NETWORK = 1
    TRANSPORT = 2


class MetaKey(IntEnum):
    """What is known of a packet beside its bytes."""

    LENGTH = 0
    PROTOCOL = 1
    MARK = 3
    IIF = 4
    OIF = 5
    IIFNAME = 6
    OIFNAME = 7
    NFPROTO = 15
    L4PROTO = 16


class CtKey(IntEnum):
    """What is known of the connection that a packet belongs to."""

    STATE = 0
    DIRECTION = 1
    STATUS = 2
    MARK = 3


class Op(IntEnum):
    """How two values are compared; the order is that of bytes."""

    EQ = 0
    NEQ = 1
    LT = 2
    LTE = 3
    GT = 4
    GTE = 5


class Code(IntEnum):
    """What becomes of a packet."""

    DROP = 0
    ACCEPT = 1
    CONTINUE = -1
    BREAK = -2
    JUMP = -3
    GOTO = -4
    RETURN = -5


class RejectType(IntEnum):
    """How a sender is told: ICMP of the packet's family, a TCP reset, ICMP with a code that is the same for both families."""

    ICMP = 0
    TCP_RESET = 1
    ICMPX = 2


class FibResult(IntEnum):
    """What is asked of the routing table."""

    OIF = 1
    OIFNAME = 2
    ADDRESS_TYPE = 3
