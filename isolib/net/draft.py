"""A topology while it is being worked out: segments, subnets, addresses, and the shortest ways between them.  Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface
from typing import TYPE_CHECKING, Final, TypeAlias

from isolib.errors import PlanError
from isolib.net.notation import LONGEST_INTERFACE, is_bridge, medium_of
from isolib.net.pool import address_of, choose_subnet, choose_ula, parse_subnet, usable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.net.notation import Medium, Sketch
    from isolib.net.pool import IPAddress, IPNetwork

__all__ = ["Draft", "Ground", "IPInterface"]

IPInterface: TypeAlias = IPv4Interface | IPv6Interface
Plug: TypeAlias = tuple[str, str]
"""The names of a place and of an interface there."""
Way: TypeAlias = "tuple[IPNetwork, IPAddress, int]"
"""A destination, the next router, and the number of the interface that leads there."""

#: Where unique local subnets begin to be looked for: the same text gives the same addresses.
_ULA_BITS: Final = 0x77_0000_0000_0000
_PREFIX: Final = 24


@dataclass(eq=False, slots=True)
class Ground:
    """A segment: what is reached without a router.

    Attributes
    ----------
    number
        Its index among all.
    bridges, nodes
        The names of its bridges and namespaces.
    subnets
        At most one of each IP version.
    addresses
        By namespace, in the order of the subnets.
    """

    number: int
    bridges: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    subnets: list[IPNetwork] = field(default_factory=list)
    addresses: dict[str, list[IPInterface]] = field(default_factory=dict)

    def __str__(self) -> str:
        return " - ".join(self.bridges or self.nodes)

    def subnet(self, version: int) -> IPNetwork | None:
        """Return the subnet of an IP version."""
        return next((subnet for subnet in self.subnets if subnet.version == version), None)

    def address(self, node: str, version: int) -> IPAddress:
        """Return the address of a namespace."""
        return next(address.ip for address in self.addresses[node] if address.version == version)


class Draft:
    """What is known of a topology so far.

    Attributes
    ----------
    grounds
        The segments.
    homes
        By namespace the segments that it is on; the number there is that of its interface.
    bridges
        The names of the bridges.
    cables
        The two ends of each.
    """

    def __init__(self, sketch: Sketch) -> None:
        self._sketch = sketch
        self.bridges = tuple(name for name in sketch.places if is_bridge(name))
        self.homes: dict[str, list[Ground]] = {name: [] for name in sketch.places if not is_bridge(name)}
        self.grounds: list[Ground] = []
        self.cables: list[tuple[Plug, Plug]] = []
        self._by_medium: dict[Medium, Ground] = {}
        self._join()
        self._plug()

    def _join(self) -> None:
        """Make the segments: bridges with cables between them are one."""
        leaders = _leaders(self._sketch)
        for medium in self._sketch.media:
            leader = leaders[medium]
            if leader == medium:
                self._by_medium[medium] = Ground(len(self.grounds))
                self.grounds.append(self._by_medium[medium])
            ground = self._by_medium[medium] = self._by_medium[leader]
            if isinstance(medium, str):
                ground.bridges.append(medium)

    def _plug(self) -> None:
        """Connect the cables, and name the interfaces at their ends."""
        used: Counter[str] = Counter()

        def end(place: str, ground: Ground) -> Plug:
            port = f"{place}p{used[place]}" if is_bridge(place) else f"eth{used[place]}"
            if len(port) > LONGEST_INTERFACE:
                raise PlanError(f"topology: {place!r}: its interface {port!r} is longer than {LONGEST_INTERFACE} characters")
            used[place] += 1
            if place in self.homes:
                if ground in self.homes[place]:
                    raise PlanError(f"topology: {place!r} is on {ground} twice, which is one segment: one cable is enough")
                self.homes[place].append(ground)
                ground.nodes.append(place)
            return place, port

        for left, right in self._sketch.cables:
            ground = self._by_medium[medium_of(left, right)]
            self.cables.append((end(left, ground), end(right, ground)))

    def give_subnets(self, *, ipv6: bool) -> None:
        """Give each segment the subnets that the text gives it, or else the next free ones."""
        given: list[IPNetwork] = []
        for medium, subnets in self._sketch.subnets.items():
            ground = self._by_medium[medium]
            for subnet in dict.fromkeys(subnets):
                if subnet in ground.subnets:
                    continue
                if (other := ground.subnet(subnet.version)) is not None:
                    raise PlanError(f"topology: {ground} has two subnets of IPv{subnet.version}: {other} and {subnet}")
                given.append(parse_subnet(subnet, f"topology: {ground}", taken=given))
                ground.subnets.append(subnet)
        for ground in self.grounds:
            if not ground.subnets:
                # One address of the network, one of everybody, and if there is room one that is free.
                prefix = min(_PREFIX, 32 - (len(ground.nodes) + 2).bit_length())
                ground.subnets.append(choose_subnet(given, prefix=prefix))
                given.append(ground.subnets[-1])
            if ipv6 and ground.subnet(6) is None:
                ground.subnets.append(choose_ula(given, bits=_ULA_BITS))
                given.append(ground.subnets[-1])
            ground.subnets.sort(key=lambda subnet: subnet.version)

    def give_addresses(self) -> None:
        """Give each namespace on a segment the addresses that the text gives it, or else the next free ones."""
        given: dict[tuple[Ground, str, int], IPAddress] = {}
        owners: dict[IPAddress, str] = {}
        for node, addresses in self._sketch.addresses.items():
            for address in dict.fromkeys(addresses):
                ground = self._ground_of(node, address)
                if (owner := owners.setdefault(address, node)) != node:
                    raise PlanError(f"topology: {address} is given to {owner!r} and to {node!r}")
                if (other := given.setdefault((ground, node, address.version), address)) != address:
                    raise PlanError(
                        f"topology: {node!r} is given two addresses in {ground.subnet(address.version)}: {other} and {address}"
                    )
        for ground in self.grounds:
            for subnet in ground.subnets:
                first, last = usable(subnet)
                if len(ground.nodes) > last - first + 1:
                    raise PlanError(
                        f"topology: {ground}: {subnet} has {last - first + 1} addresses for {len(ground.nodes)} namespaces"
                    )
                free = (one for n in range(first, last + 1) if (one := address_of(n, subnet)) not in owners)
                for node in ground.nodes:
                    address = given.get((ground, node, subnet.version)) or next(free)
                    ground.addresses.setdefault(node, []).append(_interface(address, subnet))

    def _ground_of(self, node: str, address: IPAddress) -> Ground:
        for ground in self.homes[node]:
            subnet = ground.subnet(address.version)
            if subnet is not None and address in subnet:
                first, last = usable(subnet)
                if not first <= int(address) <= last:
                    raise PlanError(f"topology: {address} of {node!r} is no host's: it is the first or the last of {subnet}")
                return ground
        subnets = ", ".join(str(subnet) for ground in self.homes[node] for subnet in ground.subnets)
        raise PlanError(
            f"topology: {address} is in no subnet of {node!r} ({subnets or 'it is on no cable'}): "
            "write the subnet at its bridge, br0[...], or on its cable, a -[...]- b"
        )

    def ways(self) -> dict[str, list[Way]]:
        """Return for each namespace how to reach every subnet that it is not on and that can be reached."""
        found: dict[str, list[Way]] = {name: [] for name in self.homes}
        for target in self.grounds:
            for subnet in target.subnets:
                for node, router, number in self._towards(target, subnet.version):
                    gateway = self.homes[node][number].address(router, subnet.version)
                    found[node].append((subnet, gateway, number))
        return found

    def _towards(self, target: Ground, version: int) -> Iterator[tuple[str, str, int]]:
        """Yield each namespace that reaches a segment over others, its next router, and the number of its interface to it.

        Dijkstra's algorithm. A way costs its number of routers in the high bits, and has below them a bit for each router
        and segment on it: no two ways cost the same, so both directions agree on one.
        """
        bits = {name: 1 << (len(self.grounds) + n) for n, name in enumerate(self.homes)}
        hop = 1 << (len(self.grounds) + len(self.homes))
        costs = {target: 0}
        routers: dict[Ground, str] = {}
        queue = [(0, target.number)]
        while queue:
            cost, number = heapq.heappop(queue)
            ground = self.grounds[number]
            if cost > costs[ground]:
                continue
            for router in ground.nodes:
                for beyond in self.homes[router]:
                    total = cost + hop + bits[router] + (1 << beyond.number)
                    if beyond.subnet(version) is not None and total < costs.get(beyond, total + 1):
                        costs[beyond] = total
                        routers[beyond] = router
                        heapq.heappush(queue, (total, beyond.number))
        for node, homes in self.homes.items():
            reached = [(costs[ground], n) for n, ground in enumerate(homes) if ground in costs]
            if reached and target not in homes:
                number = min(reached)[1]
                yield node, routers[homes[number]], number


def _leaders(sketch: Sketch) -> dict[Medium, Medium]:
    """Return for each medium the first one of its segment."""
    leaders: dict[Medium, Medium] = {medium: medium for medium in sketch.media}
    order = {medium: n for n, medium in enumerate(sketch.media)}

    def leader(medium: Medium) -> Medium:
        while leaders[medium] != medium:
            leaders[medium] = medium = leaders[leaders[medium]]
        return medium

    for left, right in sketch.cables:
        if is_bridge(left) and is_bridge(right):
            first, second = sorted((leader(left), leader(right)), key=order.__getitem__)
            if first == second:
                raise PlanError(
                    f"topology: '{left} - {right}' closes a circle of bridges, in which frames would go round for ever"
                )
            leaders[second] = first
    return {medium: leader(medium) for medium in sketch.media}


def _interface(address: IPAddress, subnet: IPNetwork) -> IPInterface:
    pair = int(address), subnet.prefixlen
    return IPv4Interface(pair) if isinstance(subnet, IPv4Network) else IPv6Interface(pair)
