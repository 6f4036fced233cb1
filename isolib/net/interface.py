"""One interface of a namespace, as a point to plug in to: seen, changed, given addresses and routes; it owns nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isolib.errors import PlanError
from isolib.net import parsing, requests
from isolib.net.carrier import settle_addresses
from isolib.net.checks import (
    check_address,
    check_alias,
    check_interface,
    check_mac,
    check_mtu,
    check_name,
    check_network,
    check_number,
)

if TYPE_CHECKING:
    from isolib.net.values import Address, AnyAddress, AnyInterface, AnyNetwork, Link, LinkStats, Neighbour
    from isolib.net.where import Where
    from isolib.types import HasFileno

__all__ = ["Interface"]

MAX_NUMBER: Final = 0xFFFFFFFF


class Interface:
    """An interface of a namespace, which somebody else owns.

    Attributes
    ----------
    index
        Its number in the namespace, which stays its own.
    """

    __slots__ = ("_name", "_where", "index")

    def __init__(self, where: Where, index: int, name: str) -> None:
        self._where = where
        self.index = index
        self._name = name

    def __repr__(self) -> str:
        return f"<Interface {self._name} index={self.index}>"

    @property
    def ns(self) -> HasFileno | None:
        """The namespace that it was made for; None: that in which the calling thread was then."""
        return self._where.net

    @property
    def where(self) -> Where:
        """The same, and how to speak to it; for who composes."""
        return self._where

    @property
    def name(self) -> str:
        """Its name, as it was made or last renamed here."""
        return self._name

    def link(self) -> Link:
        """Return what the kernel says of it now.

        Raises
        ------
        SyscallError
            With ENODEV: it is gone.
        ClosedError
            The handle of its namespace is closed.
        """
        return parsing.parse_link(self._where.socket.ask(requests.get_link_by_index(self.index, self._name))[0])

    def stats(self) -> LinkStats | None:
        """Return what has passed through it."""
        return self.link().stats

    def addresses(self) -> list[Address]:
        """Return its addresses."""
        found = filter(parsing.is_of_ip, self._where.socket.dump(requests.dump_addresses()))
        return [address for address in map(parsing.parse_address, found) if address.index == self.index]

    def up(self) -> None:
        """Bring it up."""
        self._where.socket.ask(requests.set_link(self.index, self._name, up=True))

    def down(self) -> None:
        """Take it down: nothing passes, and the kernel forgets its routes and its IPv6 addresses."""
        self._where.socket.ask(requests.set_link(self.index, self._name, up=False))

    def change(
        self, *, name: str | None = None, mtu: int | None = None, mac: str | bytes | None = None, alias: str | None = None
    ) -> None:
        """Give it another name, MTU (bytes), MAC address or alias; all of it in one request.

        Raises
        ------
        PlanError
            A value cannot be one; nothing has changed.
        SyscallError
            The kernel refused.  EEXIST: the name is taken.
        """
        attributes = requests.link_attributes(
            name=None if name is None else check_name(name, "name"),
            mtu=None if mtu is None else check_mtu(mtu),
            mac=None if mac is None else check_mac(mac, "mac"),
            alias=None if alias is None else check_alias(alias),
        )
        if attributes:
            self._where.socket.ask(requests.set_link(self.index, self._name, attributes))
        self._name = self._name if name is None else name

    def add_address(self, address: str | AnyInterface, *, peer: str | AnyAddress | None = None) -> None:
        """Give it an address with its network's prefix, "10.0.0.2/24" or "fd00::2/64": to be used at once, unless it is down.

        Raises
        ------
        PlanError
            No host can have this address.
        SyscallError
            EEXIST: it has it already.
        """
        own = check_interface(address, "address")
        other = None if peer is None else check_address(peer, "peer")
        self._where.socket.ask(requests.add_address(own, self.index, self._name, peer=other))
        settle_addresses(self, (own,))

    def remove_address(self, address: str | AnyInterface, *, peer: str | AnyAddress | None = None) -> None:
        """Take an address from it, as it was given; with EADDRNOTAVAIL it did not have it."""
        own = check_interface(address, "address")
        other = None if peer is None else check_address(peer, "peer")
        self._where.socket.ask(requests.remove_address(own, self.index, self._name, peer=other))

    def add_route(
        self,
        destination: str | AnyNetwork = "default",
        *,
        gateway: str | AnyAddress | None = None,
        metric: int | None = None,
        table: str | int = "main",
        source: str | AnyAddress | None = None,
    ) -> None:
        """Add a route by this interface.

        Parameters
        ----------
        destination
            "10.1.0.0/16", or "default", which is that of the gateway's family.
        gateway
            None: the destination is on the link itself.
        metric
            The route with the lower one is taken; None: 0, for IPv6 1024.
        table
            "main", "local", "default" or a number; in others than these three, routes are found by a rule (`routing.add_rule`).
        source
            The address that packets get as their source.

        Raises
        ------
        PlanError
            It is no network, or "default" without a gateway.
        SyscallError
            ENETUNREACH: the gateway is on no network of the namespace; EEXIST: there is such a route.
        """
        by = None if gateway is None else check_address(gateway, "gateway")
        own = None if source is None else check_address(source, "source")
        network = check_destination(destination, by)
        check_metric(metric)
        self._where.socket.ask(
            requests.add_route(network, gateway=by, index=self.index, metric=metric, table=check_table(table), source=own)
        )

    def remove_route(
        self,
        destination: str | AnyNetwork = "default",
        *,
        gateway: str | AnyAddress | None = None,
        metric: int | None = None,
        table: str | int = "main",
    ) -> None:
        """Remove a route by this interface, whoever made it; with ESRCH there was none.

        Where several have this destination, the one with the lowest metric, or with the one that is given.
        """
        by = None if gateway is None else check_address(gateway, "gateway")
        network = check_destination(destination, by)
        check_metric(metric)
        self._where.socket.ask(
            requests.remove_route(network, gateway=by, index=self.index, metric=metric, table=check_table(table))
        )

    def neighbours(self) -> list[Neighbour]:
        """Return whom it has learned of."""
        found = map(parsing.parse_neighbour, self._where.socket.dump(requests.dump_neighbours()))
        return [neighbour for neighbour in found if neighbour is not None and neighbour.index == self.index]

    def add_neighbour(self, address: str | AnyAddress, mac: str | bytes) -> None:
        """Say who has an address on this link, for good: nobody is asked, and nothing that is heard changes it.

        Raises
        ------
        PlanError
            It is no address, or no MAC address.
        """
        own = check_address(address, "address")
        self._where.socket.ask(requests.add_neighbour(own, check_mac(mac, "mac"), self.index, self._name))

    def remove_neighbour(self, address: str | AnyAddress) -> None:
        """Forget who has an address on this link; with ENOENT it was not known."""
        self._where.socket.ask(requests.remove_neighbour(check_address(address, "address"), self.index, self._name))


def check_metric(value: int | None) -> None:
    """Raise `PlanError` where this is no metric: 0 to 4294967295."""
    if value is not None:
        check_number(value, "metric", 0, MAX_NUMBER)


def check_table(value: str | int) -> str | int:
    """Return the name or the number of a table of routes.

    Raises
    ------
    PlanError
        There is no such name, or the number is not from 1 to 4294967295.
    """
    if isinstance(value, str):
        if value not in {"default", "local", "main"}:
            raise PlanError(f"table: 'main', 'local', 'default' or a number is wanted, not {value!r}")
        return value
    return check_number(value, "table", 1, MAX_NUMBER)


def check_destination(value: str | AnyNetwork, gateway: AnyAddress | None) -> AnyNetwork:
    """Return the network that a route is for.

    Raises
    ------
    PlanError
        It is none, or cannot be reached by this gateway.
    """
    if value == "default":
        if gateway is None:
            raise PlanError("destination='default': of which family, says the gateway: give one, or write '0.0.0.0/0'")
        value = "0.0.0.0/0" if gateway.version == 4 else "::/0"  # noqa: PLR2004
    network = check_network(value, "destination")
    if gateway is not None and gateway.version < network.version:
        raise PlanError(f"gateway: {gateway} cannot be that of {network}, which is of IPv6")
    return network
