"""Losing packets by nftables, for kernels without netem: a chain on an interface's way out that drops some by chance.

The table belongs to a socket of its own, and is gone with it.  The few expressions that it takes are encoded here.

Source: linux/netfilter/nf_tables.h, nft(8); the egress hook is Linux 5.16's.
"""

from __future__ import annotations

import struct
from errno import EINVAL, ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import NETFILTER, Request, open_netlink

if TYPE_CHECKING:
    from isolib.types import HasFileno

__all__ = ["LACKING", "MODULUS", "Loss", "threshold"]

MODULUS: Final = 2**32 - 1
"""Numbers are drawn below this one, the greatest that the kernel takes."""
LACKING: Final = frozenset({ENOENT, EOPNOTSUPP, EINVAL})
"""What a kernel without nftables, without its random numbers, or without the hook answers."""

# linux/netfilter/nfnetlink.h, nf_tables.h, linux/netfilter.h
_SUBSYSTEM: Final = 10
_NEW_TABLE: Final = 0
_NEW_CHAIN: Final = 3
_NEW_RULE: Final = 6
_GET_RULE: Final = 7
_DELETE_RULE: Final = 8
_NAMES: Final = {
    _NEW_TABLE: "NFT_MSG_NEWTABLE",
    _NEW_CHAIN: "NFT_MSG_NEWCHAIN",
    _NEW_RULE: "NFT_MSG_NEWRULE",
    _GET_RULE: "NFT_MSG_GETRULE",
    _DELETE_RULE: "NFT_MSG_DELRULE",
}
_NETDEV: Final = 5
_EGRESS: Final = 1
_OWNER: Final = 2
_RANDOM: Final = 1
_TO_NETWORK: Final = 1
_LESS: Final = 2
_REGISTER: Final = 1
_CHAIN: Final = "loss"
_HEAD: Final = struct.Struct(">BBH")

_HINTS: Final = {
    ENOENT: "this kernel lacks a part of nftables (CONFIG_NF_TABLES_NETDEV, CONFIG_NFT_NUMGEN)",
    EOPNOTSUPP: "this kernel has no hook for what an interface sends (CONFIG_NETFILTER_EGRESS, Linux 5.16)",
    EINVAL: "this kernel was built without nftables (CONFIG_NF_TABLES)",
}


def threshold(probability: float) -> int:
    """Return below which number a packet is lost; nothing that is possible becomes impossible."""
    return max(1, round(probability * MODULUS)) if probability else 0


def _request(kind: int, table: str, *attributes: bytes, flags: int = 0) -> Request:
    body = _HEAD.pack(_NETDEV, 0, 0) + codec.text(1, table) + b"".join(attributes)
    return Request(_SUBSYSTEM << 8 | kind, body, flags, _NAMES[kind], f"table netdev {table}", _HINTS)


def _expression(name: str, *attributes: bytes) -> bytes:
    return codec.nested(1, codec.text(1, name), codec.nested(2, *attributes))


def rule(below: int) -> bytes:
    """Return the expressions of a rule that drops a packet when a random number is below this one, and counts it."""
    return b"".join(
        (
            _expression("numgen", codec.be32(1, _REGISTER), codec.be32(2, MODULUS), codec.be32(3, _RANDOM), codec.be32(4, 0)),
            # Numbers are compared as bytes, the first one first.
            _expression(
                "byteorder",
                *(codec.be32(kind, value) for kind, value in enumerate((_REGISTER, _REGISTER, _TO_NETWORK, 4, 4), 1)),
            ),
            _expression("cmp", codec.be32(1, _REGISTER), codec.be32(2, _LESS), codec.nested(3, codec.be32(1, below))),
            _expression("counter", codec.be64(1, 0), codec.be64(2, 0)),
            _expression("immediate", codec.be32(1, 0), codec.nested(2, codec.nested(2, codec.be32(1, 0)))),
        )
    )


class Loss:
    """Packets that one interface sends are lost.

    Parameters
    ----------
    net
        The namespace.
    index, name
        Of the interface.
    probability
        That a packet is lost.

    Raises
    ------
    SyscallError, SetupFailed
        The kernel refused, and nothing is left; `LACKING`: it cannot.
    """

    def __init__(self, net: HasFileno | None, index: int, name: str, probability: float) -> None:
        self._table = f"isolib-loss-{index}"
        self._socket = open_netlink(net, NETFILTER)
        try:
            hook = codec.be32(1, _EGRESS), codec.be32(2, 0), codec.text(3, name)
            self._socket.batch(
                _SUBSYSTEM,
                _request(_NEW_TABLE, self._table, codec.be32(2, _OWNER), flags=codec.CREATE | codec.EXCL),
                _request(
                    _NEW_CHAIN,
                    self._table,
                    codec.text(3, _CHAIN),
                    codec.nested(4, *hook),
                    codec.text(7, "filter"),
                    flags=codec.CREATE | codec.EXCL,
                ),
                self._rule(probability),
            )
        except BaseException:
            self._socket.close()
            raise

    def _rule(self, probability: float) -> Request:
        chain, expressions = codec.text(2, _CHAIN), codec.nested(4, rule(threshold(probability)))
        return _request(_NEW_RULE, self._table, chain, expressions, flags=codec.CREATE | codec.APPEND)

    def change(self, probability: float) -> None:
        """Lose packets with another probability from now on; the kernel exchanges the rule in one step."""
        old = _request(_DELETE_RULE, self._table, codec.text(2, _CHAIN))
        self._socket.batch(_SUBSYSTEM, old, self._rule(probability))

    def lost(self) -> int:
        """Return how many packets were lost since the probability was last changed."""
        for message in self._socket.dump(_request(_GET_RULE, self._table, codec.text(2, _CHAIN))):
            for _, one in codec.attributes(codec.table(message.body, _HEAD.size).get(4, b"")):
                found = codec.table(one)
                if codec.word(found.get(1, b"")) == "counter":
                    return int.from_bytes(codec.table(found[2]).get(2, b""), "big")
        return 0

    def close(self) -> None:
        """Lose no more; again is nothing."""
        self._socket.close()
