"""Published ports that the kernel translates: by the host's firewall to the cable of the way out, and there to an endpoint.

The host has no route to the network, whose addresses others may have too. So both firewalls translate: the host's has a port
lead to the other end of the cable, and the network's own, where that arrives, to the endpoint. The client keeps its address.

What the kernel cannot translate, as all that is for 127.0.0.1, a forwarder takes, which holds the port too.
"""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Rollback
from isolib.errors import PlanError, SyscallError, Unsupported
from isolib.net.checks import HIGHEST_PORT
from isolib.net.ruleset import check_published
from isolib.net.where import Where

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolib.net.firewall import Firewall
    from isolib.net.values import AnyAddress

__all__ = ["PortMaps"]

_LACKING: Final = frozenset({EINVAL, EOPNOTSUPP})


class PortMaps:
    """The ports of one network that the kernel translates.

    Parameters
    ----------
    here
        The host's namespace.
    outer, inner
        The firewalls of the host's namespace and of the network's own.
    ends
        The addresses that the network's own namespace has at its way out.
    """

    def __init__(self, here: Where, outer: Firewall, inner: Firewall, ends: Iterable[AnyAddress]) -> None:
        self._here: Where | None = here
        self._outer = outer
        self._inner = inner
        self._ends = {one.version: one for one in ends}
        self._lock = RLock()
        self._used: set[tuple[str, int, int]] = set()

    def can_lead(self, outside: AnyAddress, target: AnyAddress) -> bool:
        """Return whether the kernel can translate from an address of the calling thread's namespace to one of the network's."""
        can = not outside.is_loopback and outside.version == target.version
        return can and self._here is not None and Where(None).socket is self._here.socket

    def forget(self) -> None:
        """Let go of the host's namespace: the way is there no longer."""
        self._here = None

    def lead(self, proto: str, outside: AnyAddress, port: int, target: AnyAddress, inner_port: int) -> Rollback:
        """Have the kernel translate a port, until what is returned is unwound; nothing that was translated passes then.

        Raises
        ------
        Unsupported
            The kernel does not tell of connections, so those that stand could not be ended.
        SyscallError
            The kernel refused.
        PlanError
            It is translated already.
        """
        end = self._ends[target.version]
        with Rollback() as undo:
            between = self._take(undo, proto, target.version, port)
            try:
                self._inner.cut(proto, end, between)  # there are none; what cannot be ended is not begun
            except SyscallError as error:
                if error.errno not in _LACKING:
                    raise
                raise Unsupported(
                    "ports that the kernel publishes", "the kernel: it tells nobody of connections", error.hint or ""
                ) from error
            undo.push(self._inner.cut, proto, end, between)
            self._inner.publish(proto, end, between, target, inner_port)
            undo.push(self._withdraw, self._inner, proto, end, between)
            # Or they would lead to who has the cable's port next.
            undo.push(partial(self._outer.cut, proto, end, between, answers=True))
            self._outer.publish(proto, outside, port, end, between)
            undo.push(self._withdraw, self._outer, proto, outside, port)
            undo.keep()
        return undo

    @staticmethod
    def _withdraw(firewall: Firewall, proto: str, host: AnyAddress, port: int) -> None:
        if check_published(proto, host, port, host.version) in firewall.published:  # a step may be run twice
            firewall.unpublish(proto, host, port)

    def _take(self, undo: Rollback, proto: str, version: int, wanted: int) -> int:
        """Return a port of the cable's end: the same as outside, unless another address is published at that one too."""
        with self._lock:
            ports: Iterable[int] = (wanted, *range(HIGHEST_PORT, 0, -1))
            for port in ports:
                key = proto, version, port
                if key not in self._used:
                    undo.push(self._used.discard, key)
                    self._used.add(key)
                    return port
        raise PlanError(f"host_port: all {HIGHEST_PORT} ports of the way out are published")
