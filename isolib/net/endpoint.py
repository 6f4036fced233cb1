"""A namespace's place in a network: one interface, its addresses, and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib._kernel.handle import Handle, Rollback
from isolib.errors import PlanError
from isolib.net.capture import capture
from isolib.net.carrier import settle
from isolib.net.firewall import Group
from isolib.net.shaping import Shaping
from isolib.net.weather import parse_impairment

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Sequence
    from datetime import timedelta
    from ipaddress import IPv4Address, IPv6Address
    from typing import BinaryIO

    from isolib.net.capture import Capture
    from isolib.net.interface import Interface
    from isolib.net.values import LinkStats
    from isolib.net.weather import InForce
    from isolib.types import HasFileno

__all__ = ["Endpoint", "sides_of"]

_DIRECTIONS = ("out", "in")


class Endpoint(Handle, made_by="Network.attach()"):
    """What a namespace has of a network, until it is detached; its addresses and its name also when the namespace has ended.

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
        leave: Callable[[], None],
        address: IPv4Address | None,
        ipv6: IPv6Address | None,
        mac: str,
        hostname: str | None,
    ) -> None:
        super().__init__()
        self.interface = interface
        self.port = port
        self.address = address
        self.ipv6 = ipv6
        self.mac = mac
        self.hostname = hostname
        self._undo = undo
        self._leave = leave
        self._weather: dict[str, Shaping] = {}

    def _release(self) -> None:
        if not self._weather:
            self._undo.unwind()
            return
        with Rollback() as undo:
            undo.push(self._undo.unwind)
            for shaping in [*self._weather.values()]:
                undo.push(shaping.close)

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

    def impair(
        self,
        *,
        direction: str = "out",
        delay: str | float | timedelta | None = None,
        jitter: str | float | timedelta | None = None,
        loss: str | float | None = None,
        rate: str | int | None = None,
        duplicate: str | float | None = None,
        corrupt: str | float | None = None,
        reorder: str | float | None = None,
        limit: int | None = None,
    ) -> InForce:
        """Give it bad weather, from now on; what was asked for before in this direction is forgotten, and nothing clears it.

        Parameters
        ----------
        direction
            "out": what it sends; "in": what it gets.
        delay, jitter
            How late packets come, and by how much that varies: "20ms", seconds, a timedelta.
        loss, duplicate, corrupt, reorder
            With which probability: 0.01, or "1%".
        rate
            Bits per second: 10_000_000, or "10mbit".
        limit
            How many packets may wait; those that come then are dropped.

        Returns
        -------
        InForce
            What is in force, by which backend and how exactly: netem where the kernel has it, else what it has, else a relay, a
            thread of this program.

        Raises
        ------
        PlanError
            A value cannot be one, or the endpoint is of a namespace without a handle (``attach(None)``), in which the calling
            thread is no more; nothing has changed.
        SyscallError
            The kernel refused.
        ClosedError
            It is detached.

        Notes
        -----
        Kernel: CONFIG_NET_SCH_NETEM, or CONFIG_NET_SCH_TBF, nftables, CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED.

        Examples
        --------
        >>> from isolib import new_netns, new_network
        >>> web = new_netns()
        >>> with new_network() as network:
        ...     endpoint = network.attach(web)
        ...     round(endpoint.impair(delay="20ms")["delay"].value, 3)
        0.02
        >>> web.close()
        """
        self._check_open()
        if direction not in _DIRECTIONS:
            raise PlanError(f"direction: 'out' (what it sends) or 'in' (what it gets) is wanted, not {direction!r}")
        asked = parse_impairment(
            delay=delay,
            jitter=jitter,
            loss=loss,
            rate=rate,
            duplicate=duplicate,
            corrupt=corrupt,
            reorder=reorder,
            limit=limit,
        )
        end = self.interface if direction == "out" else self.port
        end.where.check_here(end.name)
        shaping = self._weather.get(direction)
        if shaping is None:
            shaping = self._weather.setdefault(direction, Shaping(end.where, end.index, end.name))
        return shaping.apply(asked)

    def weather(self) -> dict[str, InForce]:
        """Return what is in force, by direction."""
        return {direction: shaping.in_force for direction, shaping in self._weather.items() if shaping.in_force}

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
        PlanError
            An argument cannot work; or as in `impair`.
        SyscallError
            The kernel refused; CAP_NET_RAW over the namespace is missing, which its owner has.
        ClosedError
            It is detached.
        """
        self._check_open()
        self.interface.where.check_here(self.interface.name)
        return capture(self.ns, self.name, path, snaplen=snaplen, promiscuous=promiscuous)

    def detach(self) -> None:
        """Take the namespace off the network: its interface is gone, and its address free; the same as `close`."""
        self.close()

    def leave(self) -> None:
        """Detach, for who closes the namespace next, and is the last who has it: with that the interface goes, a moment later.

        For who composes.  Nothing passes any more when this returns, and it does not wait until the kernel has removed the
        interface, as `detach` does.  Where somebody else has the namespace, it is removed there within a second.
        """
        if self.is_ours and not self.closed and not self._weather:
            self._leave()
        self.close()


def sides_of(groups: Iterable[Sequence[Endpoint]], own: Collection[Endpoint], network: object) -> list[Group]:
    """Return the sides of a partition.

    Raises
    ------
    PlanError
        A group is no list, or has an endpoint that is not among a network's own.
    """
    found = []
    for group in groups:
        given: object = group
        if not isinstance(given, (tuple, list)):
            raise PlanError(f"partition: lists of endpoints are wanted, not {group!r}")
        for endpoint in group:
            if endpoint not in own:
                raise PlanError(f"partition: {endpoint!r} is none of {network!r}")
        # Addresses too: an endpoint can have its packets take the way by the gateway.
        addresses = tuple(address for one in group for address in one.addresses)
        found.append(Group(tuple(one.port.name for one in group), addresses))
    return found
