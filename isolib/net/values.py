"""What there is in a network namespace, as frozen values: links, addresses, routes, neighbours, rules."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TypeAlias

__all__ = [
    "Address",
    "AnyAddress",
    "AnyInterface",
    "AnyNetwork",
    "BridgeOptions",
    "FdbEntry",
    "Feature",
    "Link",
    "LinkStats",
    "Neighbour",
    "PortOptions",
    "PortVlan",
    "Route",
    "Rule",
]

AnyAddress: TypeAlias = IPv4Address | IPv6Address
AnyInterface: TypeAlias = IPv4Interface | IPv6Interface
AnyNetwork: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What has passed through a link since it was made: packets, bytes, and what was lost on the way."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int
    multicast: int
    collisions: int


@dataclass(frozen=True, slots=True)
class BridgeOptions:
    """How a bridge works: times in seconds; ``priority`` is 0 to 65535, the lowest becomes the root of the tree."""

    stp: bool
    forward_delay: float
    hello_time: float
    max_age: float
    ageing_time: float
    priority: int
    vlan_filtering: bool
    default_pvid: int
    multicast_snooping: bool


@dataclass(frozen=True, slots=True)
class PortOptions:
    """How a bridge treats one of its ports.

    ``hairpin``: frames may leave by the port they came from; ``isolated``: it speaks to ports that are not isolated only.
    """

    state: str
    priority: int
    cost: int
    hairpin: bool
    guard: bool
    fast_leave: bool
    learning: bool
    flood: bool
    isolated: bool


@dataclass(frozen=True, slots=True)
class PortVlan:
    """A VLAN that a port of a bridge is in, or the bridge itself.

    Attributes
    ----------
    index
        The number of the port's link, or of the bridge's.
    id
        The number of the VLAN.
    pvid
        Whether frames that come in without a tag belong to it.
    untagged
        Whether its frames leave without a tag.
    """

    index: int
    id: int
    pvid: bool = False
    untagged: bool = False


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """Where a bridge sends what is for a MAC address: an entry of its forwarding database.

    Attributes
    ----------
    mac
        As text, "02:42:ac:11:00:02".
    index
        The number of the port's link; of the bridge's where the address is its own.
    vlan
        In which VLAN, or None.
    state
        "dynamic": it was learned; "static": somebody has said so, and it is not forgotten; "local": it is the bridge's own, or
        a port's.
    sticky
        Whether it stays when the address is heard from behind another port.
    """

    mac: str
    index: int
    vlan: int | None = None
    state: str = "dynamic"
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that an interface can do by itself, such as to compute checksums, or to cut large packets up.

    Attributes
    ----------
    name
        As the kernel calls it: "tx-checksum-ip-generic".
    active
        Whether it does.
    wanted
        Whether it would if it could: another feature that is switched off may keep it from doing so.
    fixed
        Whether it cannot be changed.
    """

    name: str
    active: bool
    wanted: bool
    fixed: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface.

    Attributes
    ----------
    index
        Its number in the namespace.
    name
        At most 15 bytes.
    kind
        "veth", "bridge", "macvlan" and so on; "loopback"; "" for a device that is no virtual one.
    mac
        As text, "02:42:ac:11:00:02"; "" where it has none.
    mtu
        Bytes of the longest packet.
    flags
        "up", "broadcast", "running" and so on.
    state
        What it can do now: "up", "down", "lowerlayerdown" (the other end is down), "unknown".  The kernel may change it up to
        a second later than the flag "lower_up", which says the same of a link that is up.
    master
        The number of the bridge that it is a port of, or None.
    lower
        The number of the link below it, or of a veth's other end; None where there is none.
    lower_nsid
        The namespace of that, as this namespace numbers others; None: this one.
    alias
        A free text.
    stats, bridge, port
        See there; None where the kernel does not tell, or where it is none.
    vlan, vni
        The number of a vlan or vxlan link, or None.
    mode
        Of macvlan and ipvlan: "bridge", "private", "l2" and so on, or None.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    flags: frozenset[str]
    state: str
    master: int | None = None
    lower: int | None = None
    lower_nsid: int | None = None
    alias: str = ""
    stats: LinkStats | None = None
    bridge: BridgeOptions | None = None
    port: PortOptions | None = None
    vlan: int | None = None
    vni: int | None = None
    mode: str | None = None

    @property
    def up(self) -> bool:
        """Whether it was told to be up; whether it can do anything says `state`."""
        return "up" in self.flags


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link.

    Attributes
    ----------
    interface
        With the length of its network's prefix: ``IPv4Interface("10.0.0.2/24")``.
    index
        The number of the link.
    scope
        "global", "link", "host" or "site".
    flags
        "permanent", "tentative", "dadfailed" and so on.
    peer
        The other end's, where it is a point-to-point one.
    broadcast
        Or None.
    valid, preferred
        Seconds, or None: for ever.
    """

    interface: AnyInterface
    index: int
    scope: str
    flags: frozenset[str]
    peer: AnyAddress | None = None
    broadcast: AnyAddress | None = None
    valid: int | None = None
    preferred: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A route.

    Attributes
    ----------
    destination
        ``0.0.0.0/0`` for the default.
    gateway
        Or None: the destination is on the link.
    index
        The number of the link, or None where there is none (blackhole), or several.
    source
        The address that packets get as their source, or None.
    metric
        The lower wins.
    table, protocol, scope, type
        In the words of `ip route`: "main" or a number, "kernel", "link", "unicast".
    hops
        Of a route with several: their gateways, numbers of links and weights.
    mtu
        Bytes of the longest packet on this way, where it has a limit of its own, or None.
    onlink
        Whether the gateway is on the link, whatever addresses the namespace has there.
    """

    destination: AnyNetwork
    gateway: AnyAddress | None = None
    index: int | None = None
    source: AnyAddress | None = None
    metric: int = 0
    table: str | int = "main"
    protocol: str | int = "boot"
    scope: str | int = "global"
    type: str = "unicast"
    hops: tuple[tuple[AnyAddress | None, int, int], ...] = ()
    mtu: int | None = None
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Whom an address on a link belongs to: an entry of ARP or neighbour discovery."""

    address: AnyAddress
    index: int
    mac: str
    state: str
    router: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that chooses the table of routes; the lowest priority is asked first."""

    priority: int
    action: str
    table: str | int
    family: int
    source: AnyNetwork | None = None
    destination: AnyNetwork | None = None
    incoming: str = ""
    outgoing: str = ""
    mark: int = 0
    mask: int = 0
