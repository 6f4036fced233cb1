"""Whole topologies by one line of text: namespaces by name, wired, with addresses and routes."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from isolib._kernel import seam
from isolib._kernel.handle import Handle, Rollback
from isolib._kernel.hints import typed
from isolib.net import requests
from isolib.net.attaching import close_all
from isolib.net.bridge import Bridge, make_bridge, random_mac
from isolib.net.carrier import settle, settle_addresses
from isolib.net.ending import ending
from isolib.net.picture import picture_of
from isolib.net.sysctl import FORWARDING, Sysctls
from isolib.net.veth import connect
from isolib.net.where import Where
from isolib.net.wiring import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.seam import NetNS
    from isolib.net.ending import Ending
    from isolib.net.interface import Interface
    from isolib.net.picture import Picture
    from isolib.net.values import AnyAddress
    from isolib.net.wiring import CableEnd, WiredCable, WiredNode, Wiring

__all__ = ["Topology", "topology"]


class Topology(Handle, made_by="isolib.net.topology()"):
    """Namespaces and bridges, wired; a mapping from the names of the namespaces to their handles, which it owns.

    Attributes
    ----------
    wiring
        What it was made from: who has which address on which segment, and which routes.
    bridges
        The bridges by name.  They lie in one namespace that is nobody else's.
    """

    def __init__(
        self,
        wiring: Wiring,
        spaces: dict[str, NetNS],
        bridges: dict[str, Bridge],
        interfaces: dict[tuple[str, str], Interface],
        undo: Rollback,
    ) -> None:
        super().__init__()
        self.wiring = wiring
        self.bridges = bridges
        self._spaces = spaces
        self._undo = undo
        self._interfaces = interfaces

    def _release(self) -> None:
        self._undo.unwind()

    def _describe(self) -> str:
        return ", ".join(self._spaces)

    def __getitem__(self, name: str) -> NetNS:
        return self._spaces[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spaces)

    def __len__(self) -> int:
        return len(self._spaces)

    def keys(self) -> list[str]:
        """Return the names of the namespaces, in the order of their first mention."""
        return list(self._spaces)

    @property
    def hosts(self) -> dict[str, tuple[AnyAddress, ...]]:
        """The addresses of each namespace by its name."""
        return self.wiring.hosts

    def picture(self) -> Picture:
        """Return what it looks like: printed it is text, in a notebook a drawing; `Picture.to_dot` is for Graphviz."""
        return picture_of(self.wiring, ", ".join(self._spaces))

    def _repr_html_(self) -> str:
        return self.picture()._repr_html_()

    def ending(self) -> Ending:
        """Return what tells when, closed, all of it has ended: the kernel clears up behind; as `isolib.net.ending`.

        Examples
        --------
        >>> lab = topology("web - br0 - db")
        >>> with lab.ending() as end:
        ...     lab.close()
        ...     end.wait()
        True
        """
        self._check_open()
        hubs = [bridge.where.net for bridge in self.bridges.values()]
        return ending(*self._spaces.values(), *(hub for hub in hubs if hub is not None))

    def interfaces(self) -> list[Interface]:
        """Return all interfaces of namespaces and all ports of bridges."""
        return list(self._interfaces.values())

    def interface(self, place: str, port: str = "eth0") -> Interface:
        """Return an interface of a namespace, or a port of a bridge, by name: to pull its cable out, or to look at it.

        Raises
        ------
        KeyError
            There is none.
        """
        self._check_open()
        return self._interfaces[place, port]


@typed("a topology")
def topology(text: str, *, ipv6: bool = False) -> Topology:
    """Make what a text draws: namespaces, bridges and cables, with addresses, and with routes over the routers.

    Parameters
    ----------
    text
        Chains of places and cables, "web - br0 - db, br0 - r1 - br1 - client": what is called "br" and a number is a bridge,
        everything else a namespace, and who is on several segments is a router.  `isolib.net.wire` says more: subnets
        and addresses may be given.
    ipv6
        Whether each segment has an IPv6 subnet too.

    Returns
    -------
    Topology
        Owned: closing it closes all its namespaces.

    Raises
    ------
    PlanError
        The text does not follow the notation; nothing was done.
    SyscallError, SetupFailed
        The kernel refused, and nothing is left.

    Notes
    -----
    Privileges: none where the kernel lets users make user namespaces.  Kernel: CONFIG_VETH, CONFIG_BRIDGE.

    Examples
    --------
    >>> with topology("web - br0 - db, br0 - r1 - br1 - client") as lab:
    ...     lab.hosts["client"], lab["client"].kind
    ((IPv4Address('10.77.1.2'),), 'net')
    """
    wiring = wire(text, ipv6=ipv6)
    with Rollback() as undo:
        handles: list[Handle] = []
        undo.push(close_all, handles)  # when the namespaces have gone: then nothing is taken down link by link
        spaces = {node.name: undo.adopt(seam.new_netns()) for node in wiring.nodes}
        bridges: dict[str, Bridge] = {}
        if wiring.bridges:
            hub = Where(undo.adopt(seam.new_netns()))
            for name in wiring.bridges:
                bridge_undo = Rollback()
                interface = make_bridge(hub, bridge_undo, name, requests.link_attributes(mac=random_mac()))
                bridges[name] = Bridge._make(interface, bridge_undo, hub)
                handles.append(bridges[name])
        interfaces: dict[tuple[str, str], Interface] = {}
        cables = Rollback()  # whose steps nobody needs: the cables go with their namespaces
        for cable in wiring.cables:
            interfaces |= _lay(cable, spaces, bridges, cables)
        cables.dismiss()
        for node in wiring.nodes:
            _equip(node, spaces[node.name], interfaces)
        settle(*interfaces.values(), *(bridge.interface for bridge in bridges.values()))
        for node in wiring.nodes:
            for port in node.ports:
                settle_addresses(interfaces[node.name, port.name], port.addresses)
        made = Topology._make(wiring, spaces, bridges, interfaces, undo)
        undo.keep()
    return made


def _lay(
    cable: WiredCable, spaces: dict[str, NetNS], bridges: dict[str, Bridge], undo: Rollback
) -> dict[tuple[str, str], Interface]:
    ends: tuple[CableEnd, CableEnd] = (cable.a, cable.b) if cable.a.place in bridges else (cable.b, cable.a)
    places = [bridges[end.place].where if end.place in bridges else Where(spaces[end.place]) for end in ends]
    master = bridges[ends[0].place].index if ends[0].place in bridges else None
    pair = connect(places[0], places[1], undo, (ends[0].port, ends[1].port), master=master)
    if ends[1].place in bridges:
        bridges[ends[1].place].add(pair[1])
    return {(end.place, end.port): interface for end, interface in zip(ends, pair, strict=True)}


def _equip(node: WiredNode, ns: NetNS, interfaces: dict[tuple[str, str], Interface]) -> None:
    """Give a namespace its addresses and routes, and let it pass packets on where it is a router."""
    if node.router:
        settings = Sysctls(ns)
        for name in FORWARDING.values():
            if name in settings:  # without IPv6 there is none
                settings[name] = 1
    wanted = []
    for port in node.ports:
        interface = interfaces[node.name, port.name]
        wanted += [requests.add_address(address, interface.index, port.name) for address in port.addresses]
    for route in node.routes:
        interface = interfaces[node.name, route.port]
        destination = ip_network(route.destination)
        wanted.append(requests.add_route(destination, gateway=route.gateway, index=interface.index))
    if wanted:
        ns.netlink().send(*wanted)
