"""A whole set-up of networks, and what other programs say of it: of every namespace, and of everything in it.

`ip`, `bridge` and `tc` of iproute2, `nft`, pyroute2 and tshark read what the kernel has by code of their own.  What they say is
made values of isolib's own types, and compared whole, so that a field that is added to one of these is compared too.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from isolib import new_netns
from isolib._kernel.netlink import nft, tc
from isolib._kernel.netlink.socket import NETFILTER, open_netlink
from isolib.net import add_rule, kinds, new_network, new_rule, new_tap, new_tun, new_veth, queries, topology
from isolib.net.where import Where
from tests import by_nft, by_pyroute2, oracles
from tests.examined import nft_can
from tests.kinds import refusal
from tests.nets import datagram_reaches, family_of, reaches, socket_in
from tests.oracles import agree
from tests.programs import IS_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from isolib._kernel.handle import Handle
    from isolib.namespaces import NetNS
    from isolib.net import Endpoint, Network
    from isolib.types import HasFileno

pytestmark = pytest.mark.usefixtures("user_namespaces")


@dataclass
class House:
    """All that was made.

    Attributes
    ----------
    spaces
        The namespaces, by a name for who reads what is wrong.
    network
        The one with everything: both kinds of addresses, a way out for root, two endpoints that are apart, and bad weather.
    """

    spaces: dict[str, NetNS] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    ends: dict[str, Endpoint] = field(default_factory=dict)

    @property
    def network(self) -> Network:
        """The one with everything."""
        return self.networks["main"]


@pytest.fixture
def house() -> Iterator[House]:
    """Return networks, a topology, and every kind of link that this host has."""
    with ExitStack() as stack:
        yield build(stack)


def has_firewalls() -> bool:
    """Return whether this host's nft can do for this user what a network's firewalls take."""
    return nft_can("add table inet tried { flags owner; }; add table bridge tried")


def has_way_out() -> bool:
    """Return whether this user may have one here."""
    return IS_ROOT and has_firewalls()


@pytest.fixture
def firewalls() -> None:
    """Skip the test where there are none."""
    if not has_firewalls():
        pytest.skip("the program nft makes no table of its own here")


def build(stack: ExitStack) -> House:
    """Make it all."""
    house = House()

    def space(name: str) -> NetNS:
        house.spaces[name] = stack.enter_context(closing(new_netns()))
        return house.spaces[name]

    host, outside = space("host"), space("outside")
    wan = ("198.51.100.1/24", "198.51.100.2/24")
    stack.enter_context(new_veth(host, outside, names=("wan", "eth0"), addresses=wan))
    # Who is root has the caller's own namespace be a host with a way out; nobody else has rights over that.
    stack.enter_context(host.entered() if IS_ROOT else nullcontext())
    add_networks(stack, house, space)
    lab = stack.enter_context(topology("web - br0 - db, br0 - r1 - br1 - client, client - far", ipv6=True))
    house.spaces |= {f"topology: {name}": lab[name] for name in lab}
    house.spaces["topology: bridges"] = the_space(lab.bridges["br0"].where)
    assert reaches(lab["web"], lab["client"], lab.hosts["client"][0])
    add_kinds(stack, space("kinds"))
    ruled = space("ruled")
    add_rule(new_rule(100, source="10.7.0.0/16", destination="10.6.0.0/15", table=777, incoming="lo"), ns=ruled)
    add_rule(new_rule(101, family=6, mark=3, mask=0xFF, action="prohibit"), ns=ruled)
    return house


def the_space(where: Where) -> NetNS:
    """Return the handle of a namespace that isolib has made for itself."""
    found: NetNS = where.net  # type: ignore[assignment]
    return found


def add_networks(stack: ExitStack, house: House, space: Callable[[str], NetNS]) -> None:
    """Make two networks: one with everything, and one in which nobody reaches another."""
    network = stack.enter_context(new_network("10.77.0.0/24", ipv6="fd77::/64", internet=has_way_out(), name="main"))
    isolated = stack.enter_context(new_network("10.78.0.0/24", isolate=True, name="isolated"))
    house.networks = {"main": network, "isolated": isolated}
    house.spaces |= {f"network {name}": the_space(Where(one.ns)) for name, one in house.networks.items()}
    for name in "abcd":
        house.ends[name] = network.attach(space(name), hostname=name)
    for name in "ef":
        house.ends[name] = isolated.attach(space(name))
    a, b, c, d = (house.ends[name] for name in "abcd")
    for one, other in ((a, b), (c, d)):
        for address in other.addresses:
            assert reaches(one.ns, other.ns, address)
    network.publish(0, a, 80)
    network.publish(0, b, 53, proto="udp", host="::1")
    if has_way_out():
        assert reaches(a.ns, house.spaces["outside"], "198.51.100.2")
        network.deny("192.0.2.0/24", "198.51.100.7", "64.0.0.0/2", "2001:db8:1::/48")
        network.allow("192.0.2.128/25")
    if has_firewalls():
        network.partition([a], [b, c])
    a.impair(rate="8mbit", limit=77)
    b.impair(loss="25%")
    c.impair(delay="3ms", jitter="1ms", loss="1%", duplicate="2%", corrupt="3%", reorder="4%", rate="10mbit", limit=500)
    c.impair(direction="in", loss="5%", rate="20mbit")


def add_kinds(stack: ExitStack, ns: NetNS) -> None:
    """Make a link of every kind that this host has for this user."""
    wires = [stack.enter_context(new_veth(ns, ns, names=(f"wire{n}", f"far{n}"))).a for n in range(3)]
    makers: dict[str, Callable[[], Handle]] = {
        "macvlan": lambda: kinds.new_macvlan(wires[0], ns=ns, mode="private", addresses=["10.1.0.1/24"]),
        "ipvlan": lambda: kinds.new_ipvlan(wires[1], ns=ns, mode="l3", addresses=["10.2.0.1/24"]),
        "vlan": lambda: kinds.new_vlan(wires[2], 7, ns=ns, addresses=["10.3.0.1/24", "fd03::1/64"]),
        "vxlan": lambda: kinds.new_vxlan(9, ns=ns, remote="10.1.0.2", lower=wires[0], mtu=1400),
        "dummy": lambda: kinds.new_dummy(ns=ns, mac="02:00:00:00:00:07", addresses=["10.4.0.1/32"]),
        "tun": lambda: new_tun(ns=ns, addresses=["10.5.0.1/24"]),
        "tap": lambda: new_tap(ns=ns, mtu=9000),
    }
    for kind, make in makers.items():
        if not refusal(kind):
            stack.enter_context(make())


# ---- what there is ----

OURS: dict[str, Callable[[NetNS], object]] = {
    "links": queries.links,
    "addresses": lambda ns: set(queries.addresses(ns)),
    "routes": lambda ns: set(queries.routes(ns, table=None)),
    "neighbours": lambda ns: set(queries.neighbours(ns)),
    "rules": queries.rules,
}
"""What isolib says of a namespace, by the names of the modules' functions that say the same for others."""


def test_ip_agrees(house: House) -> None:
    """Of every namespace ip says the same links, addresses, routes, neighbours and rules, field by field."""
    for space, ns in house.spaces.items():
        for what, ours in OURS.items():
            theirs: Callable[[NetNS], object] = getattr(oracles, what)
            found = agree(lambda ours=ours, ns=ns: ours(ns), lambda theirs=theirs, ns=ns: theirs(ns), f"{what} of {space}")  # type: ignore[misc]
            assert found or what in {"routes", "neighbours"}


def test_pyroute2_agrees(house: House) -> None:
    """Of every namespace pyroute2 says the same of all that ip is asked for, and of queueing disciplines, field by field."""
    for space, ns in house.spaces.items():

        def ours(ns: NetNS = ns) -> dict[str, object]:
            return {what: look(ns) for what, look in OURS.items()} | {"qdiscs": queues(ns)}

        def theirs(ns: NetNS = ns) -> dict[str, object]:
            seen = by_pyroute2.look(ns)
            return {what: getattr(seen, what) for what in OURS} | {"qdiscs": list(map(rounded, seen.qdiscs))}

        agree(ours, theirs, space)


def test_bridge_agrees(house: House) -> None:
    """Of every bridge the program bridge says the same ports, with the same state and settings."""
    bridged = 0
    for space, ns in house.spaces.items():

        def ours(ns: NetNS = ns) -> dict[int, object]:
            return {link.index: link.port for link in queries.links(ns) if link.port is not None}

        def theirs(ns: NetNS = ns) -> dict[int, object]:
            return {**oracles.ports(ns)}

        bridged += len(agree(ours, theirs, f"ports of {space}"))
    assert bridged == 4 + 2 + 3 + 2
    for network in house.networks.values():
        ends = [end for end in house.ends.values() if end in network.endpoints()]
        assert {port.index for port in network.bridge.ports()} == {end.port.index for end in ends}
        told = oracles.ports(the_space(Where(network.ns)))
        assert {one.isolated for one in told.values()} == {network.name == "isolated"}


def test_endpoints_are_what_ip_says(house: House) -> None:
    """What an endpoint says of itself is what ip says of its interface."""
    for name, end in house.ends.items():
        ns = house.spaces[name]
        (link,) = [one for one in oracles.links(ns) if one.name == end.name]
        assert (link.index, link.mac, link.kind) == (end.interface.index, end.mac, "veth")
        found = {one.interface.ip for one in oracles.addresses(ns) if one.index == link.index and one.scope == "global"}
        assert found == set(end.addresses)
        network = next(one for one in house.networks.values() if end in one.endpoints())
        gateways = {one.gateway for one in oracles.routes(ns) if one.destination.prefixlen == 0}
        assert gateways == {one for one in (network.gateway, network.gateway6) if one is not None}


# ---- bad weather ----

BY_ITSELF = {"gap", "rate", "limit"}
"""What netem is told although nobody has asked for it: so that packets keep their order, or may overtake."""


def queues(ns: NetNS) -> list[oracles.Object]:
    """Return the queueing disciplines of a namespace as isolib reads them, flat."""
    return [oracles.flat(tc.parse_qdisc(one)) for one in Where(ns).socket.dump(tc.dump_qdiscs())]


def rounded(queue: oracles.Object) -> oracles.Object:
    """Return what others say of one, to be compared with ours: each rounds times and probabilities in its own way."""
    return {name: pytest.approx(value, rel=1e-3) if isinstance(value, float) else value for name, value in queue.items()}


def test_tc_agrees(house: House) -> None:
    """Of every namespace tc says the same queueing disciplines, what they are set to and what has passed them."""
    known = set()
    for space, ns in house.spaces.items():
        found = agree(
            lambda ns=ns: queues(ns),  # type: ignore[misc]
            lambda ns=ns: list(map(rounded, oracles.qdiscs(ns))),  # type: ignore[misc]
            f"queues of {space}",
        )
        known |= {one["kind"] for one in found}
    assert {"noqueue"} < known


def test_weather_is_what_tc_and_nft_say(house: House) -> None:
    """What an endpoint says is in force, tc and nft say too, in its numbers; of what a relay does, that packets go there."""
    assert {name for name, end in house.ends.items() if end.weather()} == {"a", "b", "c"}
    for name, end in house.ends.items():
        for direction, force in end.weather().items():
            here = end.interface if direction == "out" else end.port
            ns = the_space(here.where)
            if force.backends == {"relay"}:
                assert "mirred" in oracles.run_in(ns, "tc", "filter", "show", "dev", here.name, "egress")
                continue
            found = in_force(ns, here.index)
            assert {one.name for one in force} <= set(found), name
            for one in force:
                assert found.pop(one.name) == pytest.approx(one.value, rel=1e-3), (name, one)
            assert not any(value for what, value in found.items() if what not in BY_ITSELF), name


def in_force(ns: NetNS, index: int) -> dict[str, float]:
    """Return what happens to packets that leave by an interface, by tc's and nft's account."""
    found: dict[str, float] = {}
    for one in oracles.qdiscs(ns):
        if one["index"] == index and one["kind"] in oracles.OPTIONS:
            found |= {name: value for name, value in one.items() if name in WEATHER}
    for what, unit in WEATHER.items():
        if what in found:
            found[what] *= unit
    if has_firewalls():
        for rule in by_nft.of_kind(by_nft.ruleset(ns), "rule"):
            if rule["family"] == "netdev" and rule["table"].endswith(f"-{index}"):
                match = by_nft.told(rule)["expr"][0]["match"]
                found["loss"] = match["right"] / match["left"]["numgen"]["mod"]
    return found


CHANCES = ("loss", "duplicate", "corrupt", "reorder")
WEATHER = {"delay": 1e-9, "jitter": 1e-9, "rate": 8, "limit": 1, "gap": 1} | dict.fromkeys(CHANCES, 2**-32)
"""Names, and what makes of numbers of queueing disciplines those of `isolib.net.Effect`."""


# ---- firewalls ----

HOOKS = {
    ("inet", "prerouting"): ("filter", "prerouting", -300, "accept"),
    ("inet", "forward"): ("filter", "forward", 0, "drop"),
    ("inet", "postrouting"): ("nat", "postrouting", 100, "accept"),
    ("bridge", "forward"): ("filter", "forward", -200, "accept"),
    ("netdev", "loss"): ("filter", "egress", 0, "accept"),
}
"""Where chains have packets come in, as the modules that make them say; others are led to.  In a namespace that is not
isolib's own, what nobody spoke of goes on."""


def test_nft_agrees(firewalls: None, house: House) -> None:
    """Of every namespace nft says the same tables, chains, rules and sets as isolib has put there, and no others."""
    tables = {}
    for space, ns in house.spaces.items():
        listed = by_nft.ruleset(ns)
        tables[space] = [(one["family"], one["name"]) for one in by_nft.of_kind(listed, "table")]
        for chain in by_nft.of_kind(listed, "chain"):
            wanted = HOOKS.get((chain["family"], chain["name"]))
            if space == "host" and chain["name"] == "forward":
                wanted = ("filter", "forward", 0, "accept")
            found = tuple(chain[name] for name in ("type", "hook", "prio", "policy") if name in chain)
            assert found == (wanted or ()), (space, chain)
        with open_netlink(ns, NETFILTER) as socket:
            scopes = [nft.Scope(by_number(family), name) for family, name in tables[space]]

            def ours(scopes: list[nft.Scope] = scopes) -> list[object]:
                dumped = [nft.parse_rule(one) for scope in scopes for one in socket.dump(scope.rules())]
                return [by_nft.said(one) for one in dumped]

            def theirs(ns: NetNS = ns) -> list[object]:
                return [by_nft.told(one) for one in by_nft.of_kind(by_nft.ruleset(ns), "rule")]

            agree(ours, theirs, f"rules of {space}")
            for one in by_nft.of_kind(listed, "set") + by_nft.of_kind(listed, "map"):
                scope = nft.Scope(by_number(one["family"]), one["table"])
                assert nft.parse_elements(socket.dump(scope.elements(one["name"]))) == by_nft.elements(one), (space, one)
    check_tables(house, tables)


def by_number(family: str) -> int:
    """Return the number of a family of nftables."""
    return next(number for number, name in nft.NAMES_OF_FAMILIES.items() if name == family)


def check_tables(house: House, tables: dict[str, list[tuple[str, str]]]) -> None:
    """Fail unless each namespace has the tables that what was asked for takes."""
    firewall = house.network._firewall
    assert firewall is not None
    (host,) = tables.pop("host") if has_way_out() else [("inet", "isolib-")]
    assert (host[0], host[1].startswith("isolib-")) == ("inet", True)
    wanted: dict[str, list[tuple[str, str]]] = {space: [] for space in tables}
    wanted["network main"] += [("inet", firewall.name), ("bridge", firewall.name)]
    for name, end in house.ends.items():
        for direction, force in end.weather().items():
            if "nftables" in force.backends:
                space, at = (name, end.interface) if direction == "out" else ("network main", end.port)
                wanted[space].append(("netdev", f"isolib-loss-{at.index}"))
    assert tables == wanted


def test_partitions_and_decisions_are_what_nft_says(firewalls: None, house: House) -> None:
    """Who is apart from whom, and what may not be reached, nft has in sets, by interfaces, addresses and networks."""
    a, b, c = (house.ends[name] for name in "abc")
    listed = by_nft.of_kind(by_nft.ruleset(the_space(Where(house.network.ns))), "set")
    groups = [set(one["elem"]) for one in listed if one["name"].startswith("group")]
    sides = [(a,), (b, c), (a, b, c)]
    for members in (
        [{end.port.name for end in side} for side in sides],
        [{str(end.address) for end in side} for side in sides],
        [{str(end.ipv6) for end in side} for side in sides],
    ):
        assert all(groups.count(side) == 1 for side in members)
    assert len(groups) == 9
    refused = {one["name"]: one["elem"] for one in listed if one["name"].startswith("refused")}
    if has_way_out():
        assert refused == {
            "refused4": [prefix("64.0.0.0", 2), prefix("192.0.2.0", 25), "198.51.100.7"],
            "refused6": [prefix("2001:db8:1::", 48)],
        }
    else:
        assert refused == {}


def prefix(address: str, length: int) -> oracles.Object:
    """Return a network as nft says it."""
    return {"prefix": {"addr": address, "len": length}}


# ---- captures ----

SNAPLEN = 96
SIZES = (0, 1, 100, 1400)


def test_tshark_agrees(network: Network, a: NetNS, b: NetNS, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """What tshark reads of both ends' files is what was sent: how many, how long, when, by whom, which way, cut where asked."""
    ends = network.attach(a), network.attach(b)
    files = tmp_path / "a", tmp_path / "b"
    began = time.time()
    with ends[0].capture(files[0]) as one, ends[1].capture(files[1], snaplen=SNAPLEN) as other:
        for address in ends[1].addresses:
            assert reaches(a, b, address)
            assert datagram_reaches(b, a, ends[0].addresses[ends[1].addresses.index(address)])
            talk(a, b, str(address))
    ended = time.time()
    fields = ("frame.len", "frame.cap_len", "frame.time_epoch", "frame.packet_flags_direction", "eth.src", "eth.dst")
    seen = []
    for file, captured, end, snaplen in zip(files, (one, other), ends, (262144, SNAPLEN), strict=True):
        found = read(file, *fields, "udp.dstport", "ipv6.src", "ip.src")
        assert len(found) == captured.packets
        assert captured.dropped == 0
        times = [float(line[2]) for line in found]
        assert began - 1 <= times[0]
        assert all(before <= after for before, after in pairwise(times))
        assert times[-1] <= ended + 1
        assert all(int(line[1]) == min(int(line[0]), snaplen) for line in found)
        assert all((line[4] == end.mac) == (int(line[3], 16) & 3 == OUT) for line in found)
        assert {line[4] for line in found if line[7] or line[8]} >= {one.mac for one in ends}
        # The rest is the kernels' own, between each of them and the bridge.
        seen.append(
            [(line[0], line[4], line[5], line[6:]) for line in found if {line[4], line[5]} == {one.mac for one in ends}]
        )
    assert sorted(map(repr, seen[0])) == sorted(map(repr, seen[1]))
    headers = 14 + 8
    numbered = [int(line[0]) for line in seen[0] if line[3][0] == str(PORT)]
    assert numbered == [headers + of_ip + size for of_ip in (20, 40) for size in SIZES]


OUT = 2
PORT = 5353


def talk(a: HasFileno, b: HasFileno, address: str) -> None:
    """Send datagrams of several sizes from one to the other, to a port of their own."""
    family = family_of(address)
    with socket_in(b, socket.SOCK_DGRAM, family) as there, socket_in(a, socket.SOCK_DGRAM, family) as here:
        there.bind((address, PORT))
        for size in SIZES:
            here.sendto(bytes(size), (address, PORT))
            assert len(there.recv(2000)) == size
