"""Losing packets by nftables, for kernels without netem: a chain on an interface's way out that drops some by chance.

The table belongs to a socket of its own, and is gone with it.

Source: nft(8); the egress hook is Linux 5.16's.
"""

from __future__ import annotations

from errno import EINVAL, ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink import nft, nft_match
from isolib._kernel.netlink.nft import EGRESS, NETDEV, Hook, Scope
from isolib._kernel.netlink.nft_expressions import DROP
from isolib._kernel.netlink.socket import NETFILTER, open_netlink

if TYPE_CHECKING:
    from isolib._kernel.netlink.socket import Request
    from isolib.types import HasFileno

__all__ = ["LACKING", "Loss"]

LACKING: Final = frozenset({ENOENT, EOPNOTSUPP, EINVAL})
"""What a kernel without nftables, without its random numbers, or without the hook answers."""

_CHAIN: Final = "loss"


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
        self._scope = Scope(NETDEV, f"isolib-loss-{index}")
        self._socket = open_netlink(net, NETFILTER)
        try:
            hook = Hook(EGRESS, 0, device=name)
            self._batch(self._scope.new(owned=True), self._scope.new_chain(_CHAIN, hook), self._rule(probability))
        except BaseException:
            self._socket.close()
            raise

    def _batch(self, *requests: Request) -> None:
        self._socket.batch(nft.SUBSYSTEM, *requests)

    def _rule(self, probability: float) -> Request:
        return self._scope.add(_CHAIN, nft_match.rule(nft_match.lose(probability), nft_match.count(), DROP))

    def change(self, probability: float) -> None:
        """Lose packets with another probability from now on; the kernel exchanges the rule in one step."""
        self._batch(self._scope.empty(_CHAIN), self._rule(probability))

    def close(self) -> None:
        """Lose no more; again is nothing."""
        self._socket.close()
