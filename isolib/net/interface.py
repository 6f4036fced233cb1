"""One interface of a namespace, as a point to plug in to: seen, changed, given addresses and routes; it owns nothing."""

from __future__ import annotations

from errno import EADDRNOTAVAIL
from typing import TYPE_CHECKING, Final

from isolib.errors import PlanError, from_errno
from isolib.net import features, parsing, requests
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
    from collections.abc import Mapping

    from isolib.net.values import Address, AnyAddress, AnyInterface, AnyNetwork, Feature, Link, LinkStats, Neighbour
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

    def features(self) -> dict[str, Feature]:
        """Return what it does by itself, by name: checksums, cutting large packets up, putting small ones together.

        Raises
        ------
        PlanError
            It is of a namespace without a handle, in which the calling thread is no more.
        Unsupported
            The kernel has no ethtool netlink.
        SyscallError
            The kernel refused.

        Notes
        -----
        Kernel: Linux 5.9, CONFIG_ETHTOOL_NETLINK.  Source: ethtool(8), Documentation/networking/ethtool-netlink.rst.
        """
        with self._where.generic(self._name) as socket:
            return features.read_features(socket, self.index, self._name)

    def set_features(self, changes: Mapping[str, bool]) -> None:
        """Switch what it does by itself on and off; all of it, or none.

        A veth does nothing of that kind, but hands large packets without checksums on, for who is last to do it: so what is
        captured, or relayed by a program, is not what a wire would carry.  It is with "tx", "gso" and "tso" off at the end that
        sends.

        Parameters
        ----------
        changes
            Names of features (`features`), or one of ethtool's words for several: "rx", "tx", "sg", "tso", "gso", "gro", "lro";
            those of a word that are fixed stay as they are, if any of them is not.

        Raises
        ------
        PlanError
            There is no such feature; or as in `features`.
        Unsupported
            The feature is fixed, or another one keeps it from being on; nothing has changed.
        SyscallError
            The kernel refused.

        Notes
        -----
        Privileges: CAP_NET_ADMIN over the namespace; otherwise as `features`.

        Examples
        --------
        >>> from isolib import new_netns, new_veth
        >>> a, b = new_netns(), new_netns()
        >>> with new_veth(a, b) as cable:
        ...     cable.a.set_features({"tx": False, "tso": False, "gso": False})
        ...     cable.a.features()["tx-checksum-ip-generic"].active
        False
        >>> a.close(), b.close()
        (None, None)
        """
        with self._where.generic(self._name) as socket:
            features.change_features(socket, self.index, self._name, changes)

    def add_address(
        self,
        address: str | AnyInterface,
        *,
        peer: str | AnyAddress | None = None,
        valid: int | None = None,
        preferred: int | None = None,
        noprefixroute: bool = False,
    ) -> None:
        """Give it an address with its network's prefix, "10.0.0.2/24" or "fd00::2/64": to be used at once, unless it is down.

        Parameters
        ----------
        address
            The address.
        peer
            That of the other end, where it is a point-to-point one.
        valid, preferred
            Seconds after which the kernel takes it away, and after which no new connection is made from it, 0: none at all.
            None: never, and ``preferred`` as long as it is valid.
        noprefixroute
            Whether the kernel leaves out the route to the address's network.

        Raises
        ------
        PlanError
            No host can have this address, or a time cannot be one.
        SyscallError
            EEXIST: it has it already.
        """
        own = check_interface(address, "address")
        other = None if peer is None else check_address(peer, "peer")
        times = check_lifetimes(valid, preferred)
        self._where.socket.ask(
            requests.add_address(own, self.index, self._name, peer=other, lifetimes=times, noprefixroute=noprefixroute)
        )
        settle_addresses(self, (own,))

    def change_address(self, address: str | AnyInterface, *, valid: int | None = None, preferred: int | None = None) -> None:
        """Change for how long it has an address, from now on; the arguments are those of `add_address`.

        Raises
        ------
        PlanError
            As in `add_address`.
        SyscallError
            The kernel refused.  EADDRNOTAVAIL: it does not have the address.
        """
        own = check_interface(address, "address")
        times = check_lifetimes(valid, preferred)
        has = [one for one in self.addresses() if one.interface == own]
        if not has:  # the kernel would make one of IPv4
            raise from_errno("RTM_NEWADDR", f"{own} on {self._name}", EADDRNOTAVAIL, "the link does not have this address")
        kept = "noprefixroute" in has[0].flags
        self._where.socket.ask(requests.change_address(own, self.index, self._name, lifetimes=times, noprefixroute=kept))

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
        mtu: int | None = None,
        onlink: bool = False,
    ) -> None:
        """Add a route by this interface; one by several is `isolib.net.add_route`.

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
        mtu
            Bytes of the longest packet on this way; None: what the interface has.
        onlink
            Whether the gateway is on the link, also where no address of the interface says so.

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
        number = check_table(table)
        limit = None if mtu is None else check_mtu(mtu)
        if onlink and by is None:
            raise PlanError("onlink: there is no gateway that could be on the link")
        request = requests.add_route(
            network, gateway=by, index=self.index, metric=metric, table=number, source=own, mtu=limit, onlink=onlink
        )
        self._where.socket.ask(request)

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


def check_lifetimes(valid: int | None, preferred: int | None) -> tuple[int, int]:
    """Return for how many seconds an address is valid, and preferred, as the kernel has it.

    Raises
    ------
    PlanError
        One is no number, or it would be preferred for longer than valid.
    """
    until = MAX_NUMBER if valid is None else check_number(valid, "valid", 1, MAX_NUMBER - 1)
    return until, until if preferred is None else check_number(preferred, "preferred", 0, min(until, MAX_NUMBER - 1))


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
