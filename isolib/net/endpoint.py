"""A namespace's place in a network: one interface, its addresses, and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib._kernel.handle import Handle
from isolib.net.capture import capture
from isolib.net.carrier import settle

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address
    from typing import BinaryIO

    from isolib._kernel.handle import Rollback
    from isolib.net.capture import Capture
    from isolib.net.interface import Interface
    from isolib.net.values import LinkStats
    from isolib.types import HasFileno

__all__ = ["Endpoint"]


class Endpoint(Handle, made_by="Network.attach()"):
    """What a namespace has of a network, until it is detached.

    Attributes
    ----------
    address, ipv6
        Its addresses, without prefixes; None where the network has none of that kind.
    mac
        Of its interface, as text.
    hostname
        By which the others find it, or None.
    interface
        Its interface, inside.
    port
        The other end of its cable, at the bridge.
    """

    def __init__(
        self,
        interface: Interface,
        port: Interface,
        undo: Rollback,
        *,
        address: IPv4Address | None,
        ipv6: IPv6Address | None,
        mac: str,
        hostname: str | None,
        left: Callable[[Endpoint], object],
    ) -> None:
        super().__init__()
        self.interface = interface
        self.port = port
        self.address = address
        self.ipv6 = ipv6
        self.mac = mac
        self.hostname = hostname
        self._undo = undo
        self._left = left

    def _release(self) -> None:
        self._undo.unwind()
        self._left(self)

    def _describe(self) -> str:
        return f"{self.hostname or self.name} {self.address or self.ipv6}"

    @property
    def name(self) -> str:
        """The name of its interface, inside."""
        return self.interface.name

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Its addresses, IPv4 first."""
        return tuple(address for address in (self.address, self.ipv6) if address is not None)

    @property
    def ns(self) -> HasFileno | None:
        """The namespace; None: that in which the calling thread was when it was attached."""
        return self.interface.ns

    def up(self) -> None:
        """Plug its cable in again, after `down`."""
        self._check_open()
        self.port.up()
        settle(self.port, self.interface)

    def down(self) -> None:
        """Pull its cable out at the bridge: inside, the interface keeps its addresses and routes, and has no carrier."""
        self._check_open()
        self.port.down()

    def stats(self) -> LinkStats | None:
        """Return what has passed through its interface, as seen from inside.

        Raises
        ------
        ClosedError
            It is detached, or the handle of its namespace is closed.
        """
        self._check_open()
        return self.interface.stats()

    def capture(self, path: str | os.PathLike[str] | BinaryIO, *, snaplen: int = 262144, promiscuous: bool = True) -> Capture:
        """Write the packets of its interface to a file, in both directions, until that is closed; as `isolib.net.capture`.

        Parameters
        ----------
        path
            A file, which is overwritten, or an object that takes bytes: pcapng, which tshark and Wireshark read.
        snaplen
            How many bytes of each packet are kept.
        promiscuous
            Whether packets for others are captured too, that come by.

        Raises
        ------
        SyscallError
            The kernel refused; CAP_NET_RAW over the namespace is missing, which its owner has.
        ClosedError
            It is detached.
        """
        self._check_open()
        return capture(self.ns, self.name, path, snaplen=snaplen, promiscuous=promiscuous)

    def detach(self) -> None:
        """Take the namespace off the network: its interface is gone, and its address free; the same as `close`."""
        self.close()
