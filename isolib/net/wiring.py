"""What a topology stands for: namespaces, bridges, cables, and an address and routes for each.  Pure: text in, values out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from isolib.net.draft import Draft
from isolib.net.notation import read

if TYPE_CHECKING:
    from isolib.net.draft import IPInterface
    from isolib.net.pool import IPAddress, IPNetwork

__all__ = ["CableEnd", "Segment", "WiredCable", "WiredNode", "WiredPort", "WiredRoute", "Wiring", "wire"]


@dataclass(frozen=True, slots=True)
class WiredPort:
    """An interface of a namespace.

    Attributes
    ----------
    name
        ``"eth0"``, ``"eth1"``: in the order in which its cables are mentioned.
    segment
        The number of the segment that it is on.
    addresses
        Its addresses with their prefixes: one of IPv4, one of IPv6, or one of each.
    """

    name: str
    segment: int
    addresses: tuple[IPInterface, ...]


@dataclass(frozen=True, slots=True)
class WiredRoute:
    """A static route.

    Attributes
    ----------
    destination
        The subnet of a segment that its namespace is not on.
    gateway
        The address of the next router.
    port
        The name of the interface that leads there.
    """

    destination: IPNetwork
    gateway: IPAddress
    port: str


@dataclass(frozen=True, slots=True)
class WiredNode:
    """A namespace.

    Attributes
    ----------
    name
        As in the text.
    ports
        Its interfaces.
    routes
        One for every subnet that it is not on and that can be reached.
    """

    name: str
    ports: tuple[WiredPort, ...]
    routes: tuple[WiredRoute, ...]

    @property
    def router(self) -> bool:
        """Whether it is on more than one segment, and so has to forward packets between them."""
        return len(self.ports) > 1

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Its addresses, interface by interface."""
        return tuple(address.ip for port in self.ports for address in port.addresses)


@dataclass(frozen=True, slots=True)
class Segment:
    """What is reached without a router: one bridge, several with cables between them, or one cable.

    Attributes
    ----------
    subnets
        One of IPv4, one of IPv6, or one of each.
    bridges
        The names of its bridges; none if it is a cable between two namespaces.
    nodes
        The names of its namespaces.
    """

    subnets: tuple[IPNetwork, ...]
    bridges: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CableEnd:
    """Where a cable is plugged in.

    Attributes
    ----------
    place
        The name of a namespace or a bridge.
    port
        The name of the interface there: ``"eth0"``, or of a bridge ``"br0p0"``, which no other bridge has too.
    """

    place: str
    port: str


@dataclass(frozen=True, slots=True)
class WiredCable:
    """A cable, of which both ends are interfaces (veth(4))."""

    a: CableEnd
    b: CableEnd


@dataclass(frozen=True)
class Wiring:
    """A topology: everything is in the order of its first mention.

    Attributes
    ----------
    nodes
        The namespaces.
    bridges
        The names of the bridges.
    segments
        What is reached without a router.
    cables
        The cables, one for each "-".
    """

    nodes: tuple[WiredNode, ...]
    bridges: tuple[str, ...]
    segments: tuple[Segment, ...]
    cables: tuple[WiredCable, ...]

    @cached_property
    def _by_name(self) -> dict[str, WiredNode]:
        return {node.name: node for node in self.nodes}

    def __getitem__(self, name: str) -> WiredNode:
        return self._by_name[name]

    @property
    def hosts(self) -> dict[str, tuple[IPAddress, ...]]:
        """The addresses of each namespace by its name, as for a hosts(5) file."""
        return {node.name: node.addresses for node in self.nodes}


def wire(text: str, *, ipv6: bool = False) -> Wiring:
    """Return what a topology stands for.

    Places whose names are ``br`` and a number are bridges, others are namespaces, and ``-`` is a cable between two places::

        web - br0 - db, br0 - r1 - br1 - client

    Chains are separated by ``,``, ``;`` or line feeds; a ``#`` begins a comment. A cable between two namespaces is a segment
    of its own, bridges with a cable between them are one together. A namespace on several segments is a router, and the
    others have routes over it, so that everything that is connected reaches everything.

    Each segment has a subnet, the first 10.77.0.0/24, the next 10.77.1.0/24, and its namespaces have addresses in the order
    in which their cables are mentioned. Both can be given: ``web(10.0.0.5) - br0[10.0.0.0/24]``, and for a cable between two
    namespaces ``a -[10.1.0.0/30]- b``. A segment whose subnet is given has no other one of the same IP version; with one of
    IPv6 alone it has no IPv4. ``isolib/net/notation.py`` says it exactly.

    Parameters
    ----------
    text
        The topology.
    ipv6
        Whether each segment has an IPv6 subnet too, the first fd77::/64.

    Returns
    -------
    Wiring
        The same for the same text. A route goes over as few routers as possible and, of equally good ways, over the same
        one in both directions, as reverse path filters (rp_filter) want it.

    Raises
    ------
    PlanError
        The text does not follow the notation; subnets overlap or are too small; an address is in no subnet of its namespace,
        or is no host's, or another one's; bridges are connected in a circle; a namespace is on one segment twice.

    Examples
    --------
    >>> wiring = wire("web - br0 - db, br0 - r1 - br1 - client")
    >>> for name, addresses in wiring.hosts.items():
    ...     print(name, *addresses)
    web 10.77.0.1
    db 10.77.0.2
    r1 10.77.0.3 10.77.1.1
    client 10.77.1.2
    >>> wiring["client"].routes
    (WiredRoute(destination=IPv4Network('10.77.0.0/24'), gateway=IPv4Address('10.77.1.1'), port='eth0'),)
    """
    draft = Draft(read(text))
    draft.give_subnets(ipv6=ipv6)
    draft.give_addresses()
    ways = draft.ways()
    nodes = []
    for name, grounds in draft.homes.items():
        ports = (WiredPort(f"eth{n}", one.number, tuple(one.addresses[name])) for n, one in enumerate(grounds))
        routes = (WiredRoute(destination, gateway, f"eth{n}") for destination, gateway, n in ways[name])
        nodes.append(WiredNode(name, tuple(ports), tuple(routes)))
    return Wiring(
        nodes=tuple(nodes),
        bridges=draft.bridges,
        segments=tuple(Segment(tuple(one.subnets), tuple(one.bridges), tuple(one.nodes)) for one in draft.grounds),
        cables=tuple(WiredCable(CableEnd(*a), CableEnd(*b)) for a, b in draft.cables),
    )
