"""What the tables of a network's firewall hold: from what is wanted to the requests that bring it about.  Pure.

Each kind of thing has chains, sets and maps of its own, made when it is first wanted.  What changes while a network lives is
elements of sets and maps, or the whole content of a chain, so a change costs the same however much there is, and never takes
apart what stays.

The table of family inet:

    prerouting   before anything else: nothing for loopback comes from outside
    dnat         published ports, also for connections from here (chain "local")
    input        which services of this namespace may be reached
    forward      partitions, neighbours, what may be reached outside, answers, what is published; nothing else
    postrouting  masquerading

The table of family bridge, which sees the frames from port to port: no port speaks as a router; partitions; isolation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from isolib._kernel.netlink import nft, nft_match
from isolib._kernel.netlink.nft import BRIDGE, INET, IPV4, IPV6, Element, Hook, Scope
from isolib._kernel.netlink.nft_expressions import ACCEPT, DROP
from isolib._kernel.netlink.nft_match import PROTOCOLS, rule
from isolib._kernel.netlink.nft_numbers import MetaKey
from isolib.errors import PlanError
from isolib.net.checks import HIGHEST_PORT, check_address
from isolib.net.egress import Egress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from isolib._kernel.netlink.nft_match import Expressions
    from isolib._kernel.netlink.socket import Request
    from isolib.net.egress import Interval

    Subnet: TypeAlias = "IPv4Network | IPv6Network"
    Address: TypeAlias = "IPv4Address | IPv6Address"

__all__ = ["Changes", "Published", "State", "Target", "check_port", "check_published"]

# linux/netfilter_ipv4.h, linux/netfilter_bridge.h: places among others at a hook
_FIRST: Final = -300
_DNAT: Final = -100
_FILTER: Final = 0
_SNAT: Final = 100
_BRIDGE_FILTER: Final = -200

_FAMILIES: Final = (IPV4, IPV6)
_VERSION: Final = {IPV4: 4, IPV6: 6}
_LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
#: No packet is for these, but a program that leads a network out by sockets would connect to them: to its own loopback, and to
#: addresses of IPv4, whatever was decided about those.  (As a source "::" is what neighbours are looked for with.)
_FOR_NOBODY: Final = (IPv6Network("::/128"), IPv6Network("::ffff:0:0/96"))
_ROUTER_ADVERTISEMENT: Final = 134
_REDIRECT: Final = 137
_WITH_PORTS: Final = ("tcp", "udp", "sctp")
_PORTS: Final = range(1, HIGHEST_PORT + 1)
_UNTOLD: Final = Egress()


class Published(NamedTuple):
    """A port that is open: its protocol, an address, or None for every one of the namespace's own, and its number."""

    proto: str
    host: Address | None
    port: int
    version: int


class Target(NamedTuple):
    """Where a published port leads."""

    address: Address
    port: int


@dataclass(frozen=True)
class State:
    """What the tables hold, as far as later changes depend on it."""

    made: frozenset[tuple[int, str]] = frozenset()
    published: Mapping[Published, Target] = field(default_factory=dict)
    hairpins: frozenset[Subnet] = frozenset()
    egress: Egress = field(default_factory=Egress)
    groups: tuple[tuple[int, str], ...] = ()
    numbers: int = 0


class Changes:
    """Changes that are gathered to be made at once: the requests for them (`batch`), and what there is afterwards.

    Parameters
    ----------
    name
        Of the tables.
    state
        What there is.
    private
        Whether the namespace is ours alone: what nobody spoke of is not forwarded there either, and the tables need not belong
        to the socket, for they go with the namespace.
    subnets
        Networks whose members reach each other without passing here: what is published to one of them is reached from
        another by this way only when it comes back by it too.
    """

    def __init__(self, name: str, state: State, *, private: bool, subnets: Sequence[Subnet]) -> None:
        self.state = state
        self._before = state
        self.requests: list[Request] = []
        self.inet = Scope(INET, name)
        self.bridge = Scope(BRIDGE, name)
        self._private = private
        self._subnets = subnets

    def batch(self) -> list[Request]:
        """Return the requests that make one batch of it all.

        What is refused changes by the difference between before and after, however many decisions were made in between: of one
        batch, the kernel does not always find again what was put into a set of intervals to take it out.
        """
        before, after = _in_force(self._before), _in_force(self.state)
        requests = [*self.requests]
        for of in _FAMILIES if before is not after else ():
            old, new = (set(one.refused(_VERSION[of])) for one in (before, after))
            requests += self.inet.take(_refused(of), _elements(of, sorted(old - new)))
            requests += self.inet.put(_refused(of), _elements(of, sorted(new - old)))
        return requests

    # ---- what the others are made of ----

    def begin(self) -> None:
        """Make the table."""
        self.requests.append(self.inet.new(owned=not self._private))

    def tables(self) -> list[Scope]:
        """Return what there is of them."""
        return [self.inet, self.bridge] if self._is_made(self.bridge, "table") else [self.inet]

    def _is_made(self, scope: Scope, name: str) -> bool:
        return (scope.family, name) in self.state.made

    def _make(self, scope: Scope, name: str) -> bool:
        """Note that something is made; say whether it was not yet."""
        if self._is_made(scope, name):
            return False
        self.state = replace(self.state, made=self.state.made | {(scope.family, name)})
        return True

    def _chain(self, scope: Scope, chain: str, hook: Hook | None = None) -> bool:
        """Make a chain, unless it is there; say whether it was not."""
        if not self._make(scope, f"chain {chain}"):
            return False
        self.requests.append(scope.new_chain(chain, hook))
        return True

    def _number(self) -> int:
        self.state = replace(self.state, numbers=self.state.numbers + 1)
        return self.state.numbers

    def _set(self, scope: Scope, name: str, of: nft.Kind, to: nft.Kind | None = None, *, intervals: bool = False) -> None:
        self.requests.append(scope.new_set(name, of, to, intervals=intervals, number=self._number()))

    def _add(self, scope: Scope, chain: str, comment: str, *parts: Expressions) -> None:
        self.requests.append(scope.add(chain, rule(*parts), comment))

    def _refuse(self, chain: str, comment: str, *parts: Expressions) -> None:
        """Add rules that refuse at once: who connects need not wait."""
        count = nft_match.count()
        self._add(self.inet, chain, comment, *parts, nft_match.protocol("tcp"), count, nft_match.reset())
        self._add(self.inet, chain, comment, *parts, count, nft_match.refuse())

    # ---- loopback ----

    def guard_loopback(self, interface: str | None) -> None:
        """Drop what is for or from loopback and comes in by an interface; None: by any but lo."""
        self._chain(self.inet, "prerouting", Hook(nft.PREROUTING, _FIRST))
        came = nft_match.arrives("lo", other=True) if interface is None else nft_match.arrives(interface)
        for subnet in _LOOPBACK:
            for side in (nft_match.to, nft_match.from_):
                self._add(self.inet, "prerouting", "loopback", came, side(subnet), nft_match.count(), (DROP,))
        for subnet in _FOR_NOBODY:
            self._add(self.inet, "prerouting", "nobody", came, nft_match.to(subnet), nft_match.count(), (DROP,))

    # ---- services ----

    def serve(self, interface: str, services: Iterable[tuple[str, int]]) -> None:
        """Let what comes in by an interface reach these services of the namespace itself, ping and neighbours; no others."""
        checked = [check_port(proto, port, "services") for proto, port in services]
        wanted = [Element(nft.key(bytes((PROTOCOLS[proto],)), port.to_bytes(2, "big"))) for proto, port in checked]
        self._chain(self.inet, "input", Hook(nft.INPUT, _FILTER))
        name = f"services{self._number()}"
        self._set(self.inet, name, nft.joined(nft.PROTOCOL, nft.PORT))
        self.requests += self.inet.put(name, wanted)
        came = nft_match.arrives(interface)
        for parts in (
            (nft_match.connection(nft_match.ESTABLISHED), (ACCEPT,)),
            (nft_match.connection(nft_match.INVALID), nft_match.count(), (DROP,)),
            (nft_match.icmpv6(_ROUTER_ADVERTISEMENT), nft_match.count(), (DROP,)),
            (nft_match.icmpv6(_REDIRECT), nft_match.count(), (DROP,)),
            (nft_match.protocol("icmp"), (ACCEPT,)),
            (nft_match.protocol("icmpv6"), (ACCEPT,)),
            (nft_match.service_in(name), (ACCEPT,)),
        ):
            self._add(self.inet, "input", "services", came, *parts)
        self._refuse("input", "closed ports", came)

    # ---- forwarding ----

    def route(self, inside: str, outside: str | None, *, outward: bool, between: bool = True) -> None:
        """Forward between an interface and others what is allowed, and nothing else."""
        first = self._chain(self.inet, "forward", Hook(nft.FORWARD, _FILTER, accepts=not self._private))
        if first:
            self._parted(self.inet)
            if self._chain(self.inet, "neighbours") and not between:
                self._isolate_neighbours()
            self._add(self.inet, "forward", "partition", nft_match.jump("partition"))
            for of in _FAMILIES:
                self._set(self.inet, _refused(of), nft.ADDRESS[of], intervals=True)
        comes, goes = nft_match.arrives(inside), nft_match.leaves(inside)
        away = nft_match.leaves(inside, other=True)
        self._add(self.inet, "forward", "neighbours", comes, goes, nft_match.jump("neighbours"))
        self._add(self.inet, "forward", "neighbours", comes, goes, (ACCEPT,))
        for of in _FAMILIES:
            refused = nft_match.original(), nft_match.destination_in(of, _refused(of))
            self._refuse("forward", "egress", comes, away, *refused)
        answers, invalid = (nft_match.connection(state) for state in (nft_match.ESTABLISHED, nft_match.INVALID))
        for direction in (comes, goes):
            self._add(self.inet, "forward", "answers", direction, answers, (ACCEPT,))
            self._add(self.inet, "forward", "invalid", direction, invalid, nft_match.count(), (DROP,))
        if outward:
            out = () if outside is None else nft_match.leaves(outside)
            self._add(self.inet, "forward", "outward", comes, away, out, nft_match.count(), (ACCEPT,))
        self._add(self.inet, "forward", "published", goes, nft_match.translated(), nft_match.count(), (ACCEPT,))
        for direction in (comes, goes):
            self._refuse("forward", "not allowed", direction)

    def decide(self, egress: Egress) -> None:
        """Have what may be reached as this says."""
        self.state = replace(self.state, egress=egress)

    # ---- translation ----

    def masquerade(self, subnet: Subnet, out: str | None) -> None:
        """Give what leaves a network the address of the interface it leaves by."""
        self._chain(self.inet, "postrouting", Hook(nft.POSTROUTING, _SNAT, "nat"))
        away = nft_match.to(subnet, other=True) if out is None else nft_match.leaves(out)
        self._add(self.inet, "postrouting", "masquerade", nft_match.from_(subnet), away, nft_match.masquerade())

    def publish(self, port: Published, target: Target) -> None:
        """Lead a port to another address."""
        if port in self.state.published:
            raise PlanError(f"{port.proto} port {port.port} of {port.host or 'every address'} is published already")
        self._make_published()
        self.requests += self.inet.put(*_entry(port, target))
        self._make_hairpin(target.address)
        self.state = replace(self.state, published={**self.state.published, port: target})

    def unpublish(self, port: Published) -> None:
        """Lead it there no more; connections that stand stay."""
        if port not in self.state.published:
            raise PlanError(f"{port.proto} port {port.port} of {port.host or 'every address'} is not published")
        self.requests += self.inet.take(*_entry(port, self.state.published[port]))
        left = {one: target for one, target in self.state.published.items() if one != port}
        self.state = replace(self.state, published=left)

    def _make_published(self) -> None:
        if not self._chain(self.inet, "published"):
            return
        for of in _FAMILIES:
            address, service = nft.ADDRESS[of], nft.joined(nft.PROTOCOL, nft.PORT)
            target = nft.joined(address, nft.PORT)
            exact, every = _maps(of)
            self._set(self.inet, exact, nft.joined(address, nft.PROTOCOL, nft.PORT), target)
            self._set(self.inet, every, service, target)
            self._add(self.inet, "published", "published", nft_match.dnat_to_found(of, exact, with_address=True))
            here = nft_match.to_here()
            self._add(self.inet, "published", "published", here, nft_match.dnat_to_found(of, every, with_address=False))
        self._chain(self.inet, "dnat", Hook(nft.PREROUTING, _DNAT, "nat"))
        self._add(self.inet, "dnat", "published", nft_match.jump("published"))
        self._chain(self.inet, "local", Hook(nft.OUTPUT, _DNAT, "nat"))
        for loopback in _LOOPBACK:  # such a packet would keep its source, and get no answer
            self._add(self.inet, "local", "loopback", nft_match.to(loopback), (ACCEPT,))
        self._add(self.inet, "local", "published", nft_match.jump("published"))

    def _make_hairpin(self, target: Address) -> None:
        """Have those beside a target reach it by its published port: or else it would answer them directly, and not by here."""
        subnet = next((one for one in self._subnets if target in one), None)
        if subnet is None or subnet in self.state.hairpins:
            return
        self.state = replace(self.state, hairpins=self.state.hairpins | {subnet})
        self._chain(self.inet, "postrouting", Hook(nft.POSTROUTING, _SNAT, "nat"))
        within = nft_match.from_(subnet), nft_match.to(subnet), nft_match.translated()
        self._add(self.inet, "postrouting", "hairpin", *within, nft_match.masquerade())

    # ---- between endpoints ----

    def guard_ports(self) -> None:
        """Make the table of the bridge: no port advertises itself to others as their router."""
        if not self._make(self.bridge, "table"):
            return
        self.requests.append(self.bridge.new(owned=not self._private))
        self._parted(self.bridge)
        self._chain(self.bridge, "isolation")
        self._chain(self.bridge, "forward", Hook(nft.FORWARD, _BRIDGE_FILTER))
        for kind in (_ROUTER_ADVERTISEMENT, _REDIRECT):
            parts = nft_match.icmpv6(kind, BRIDGE), nft_match.count(), (DROP,)
            self._add(self.bridge, "forward", "router", *parts)
        for chain in ("partition", "isolation"):
            self._add(self.bridge, "forward", chain, nft_match.jump(chain))

    def isolate(self, *, isolated: bool) -> None:
        """Forward nothing from port to port but what goes to a published port; or all again."""
        self.guard_ports()
        self._chain(self.inet, "neighbours")
        for scope, chain in ((self.bridge, "isolation"), (self.inet, "neighbours")):
            self.requests.append(scope.empty(chain))
        if isolated:
            self._add(self.bridge, "isolation", "isolation", nft_match.count(), (DROP,))
            self._isolate_neighbours()

    def _isolate_neighbours(self) -> None:
        """Have what comes from a network and goes back to it, by way of this namespace, be for published ports only."""
        self._add(self.inet, "neighbours", "isolation", nft_match.translated(), (ACCEPT,))
        self._refuse("neighbours", "isolation")

    def _parted(self, scope: Scope) -> None:
        self._chain(scope, "partition")

    def part(self, groups: Sequence[tuple[Sequence[str], Sequence[Address]]]) -> None:
        """Forward nothing between groups of interfaces and addresses; none: all again."""
        self.guard_ports()
        self._parted(self.inet)
        for scope in (self.bridge, self.inet):
            self.requests.append(scope.empty("partition"))
        for family, name in self.state.groups:
            self.requests.append((self.bridge if family == BRIDGE else self.inet).delete_set(name))
        self.state = replace(self.state, groups=())
        ports = [[Element(name.encode().ljust(nft.IFNAME.size, b"\0")) for name in interfaces] for interfaces, _ in groups]
        self._part(self.bridge, nft.IFNAME, ports, _by_interface)
        for of in _FAMILIES:
            members = [[Element(one.packed) for one in addresses if one.version == _VERSION[of]] for _, addresses in groups]
            self._part(self.inet, nft.ADDRESS[of], members, partial(_by_address, of))

    def _part(
        self, scope: Scope, kind: nft.Kind, groups: Sequence[Sequence[Element]], ask: Callable[[str, str], Expressions]
    ) -> None:
        every = self._group(scope, kind, [one for group in groups for one in group])
        for group in filter(None, groups):
            parted = ask(self._group(scope, kind, group), every)
            self._add(scope, "partition", "partition", parted, nft_match.count(), (DROP,))

    def _group(self, scope: Scope, kind: nft.Kind, members: Sequence[Element]) -> str:
        name = f"group{self._number()}"
        self._set(scope, name, kind)
        self.requests += scope.put(name, members)
        self.state = replace(self.state, groups=(*self.state.groups, (scope.family, name)))
        return name


def _by_interface(group: str, every: str) -> Expressions:
    return rule(
        nft_match.interface_in(MetaKey.IIFNAME, group),
        nft_match.interface_in(MetaKey.OIFNAME, every),
        nft_match.interface_in(MetaKey.OIFNAME, group, other=True),
    )


def _by_address(of: int, group: str, every: str) -> Expressions:
    return rule(
        nft_match.source_in(of, group),
        nft_match.destination_in(of, every),
        nft_match.destination_in(of, group, other=True),
    )


def _refused(of: int) -> str:
    return f"refused{_VERSION[of]}"


def _in_force(state: State) -> Egress:
    """Return what the sets have been told, once they are made."""
    return state.egress if (INET, "chain forward") in state.made else _UNTOLD


def _elements(of: int, intervals: Iterable[Interval]) -> list[Element]:
    size = nft.ADDRESS[of].size
    last = 1 << size * 8
    return [
        Element(one.start.to_bytes(size, "big"), None if one.end == last else one.end.to_bytes(size, "big"))
        for one in intervals
    ]


def _maps(of: int) -> tuple[str, str]:
    """Return the names of the maps of published ports: of one address, and of every address of the namespace."""
    return f"published{_VERSION[of]}", f"open{_VERSION[of]}"


def _entry(port: Published, target: Target) -> tuple[str, list[Element]]:
    exact, every = _maps(IPV4 if port.version == _VERSION[IPV4] else IPV6)
    service = bytes((PROTOCOLS[port.proto],)), port.port.to_bytes(2, "big")
    to = nft.key(target.address.packed, target.port.to_bytes(2, "big"))
    if port.host is None:
        return every, [Element(nft.key(*service), value=to)]
    return exact, [Element(nft.key(port.host.packed, *service), value=to)]


# ---- what was asked for ----


def check_port(proto: str, port: int, what: str) -> tuple[str, int]:
    """Return a protocol that has ports, and a port of it.

    Raises
    ------
    PlanError
        It has none, or there is no such port.
    """
    if proto not in _WITH_PORTS:
        raise PlanError(f"{what}: a protocol with ports is one of {', '.join(_WITH_PORTS)}, not {proto!r}")
    number: object = port
    if not isinstance(number, int) or isinstance(number, bool) or number not in _PORTS:
        raise PlanError(f"{what}: a port is a number from 1 to {HIGHEST_PORT}, not {port!r}")
    return proto, port


def check_published(proto: str, host: str | Address | None, port: int, version: int) -> Published:
    """Return a port that can be published to an address of IPv4 (4) or IPv6 (6).

    Raises
    ------
    PlanError
        There is no such port or address; it is loopback's, where translation does not work.
    """
    check_port(proto, port, "host port")
    address = None if host is None else check_address(host, "host")
    if address is not None and address.version != version:
        raise PlanError(f"host: {address} and the target are not of one protocol, IPv{version}")
    if address is not None and address.is_loopback:
        raise PlanError(f"host: what is sent to {address} never leaves this host, so it cannot be translated: forward it")
    return Published(proto, None if address is None or address.is_unspecified else address, port, version)
