"""Topologies as texts, and the namespaces, addresses and routes that they stand for."""

from __future__ import annotations

import pickle
from collections import Counter
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.errors import PlanError
from isolib.net.notation import read
from isolib.net.wiring import WiredRoute, wire

if TYPE_CHECKING:
    from isolib.net.pool import IPAddress
    from isolib.net.wiring import Wiring

EXAMPLE = "web - br0 - db, br0 - r1 - br1 - client"


def addresses(text: str) -> dict[str, list[str]]:
    """Return the addresses in a topology by namespace, as texts."""
    return {name: list(map(str, found)) for name, found in wire(text).hosts.items()}


def travel(wiring: Wiring, source: str, target: IPAddress) -> list[str] | None:
    """Return the namespaces that a packet passes, from its source to the owner of its address; None where it finds no way."""
    owners = {address: node.name for node in wiring.nodes for address in node.addresses}
    passed = [source]
    while target not in wiring[passed[-1]].addresses:
        node = wiring[passed[-1]]
        assert len(passed) == 1 or node.router
        assert len(passed) <= len(wiring.nodes), "it goes round"
        if any(target in interface.network for port in node.ports for interface in port.addresses):
            passed.append(owners[target])
            continue
        routes = [route for route in node.routes if target in route.destination]
        if not routes:
            return None
        assert len(routes) == 1
        port = next(port for port in node.ports if port.name == routes[0].port)
        assert any(routes[0].gateway in interface.network for interface in port.addresses), "the gateway is not there"
        passed.append(owners[routes[0].gateway])
    return passed


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Return cables of a topology that is allowed: no circle of bridges, nobody on one segment twice."""
    nodes = [f"n{n}x" for n in range(draw(st.integers(1, 7)))]
    bridges = [f"br{n}" for n in range(draw(st.integers(0, 4)))]
    places = draw(st.permutations(nodes + bridges))
    pairs = [(a, b) for i, a in enumerate(places) for b in places[i + 1 :]]
    if not pairs:
        return []
    wanted = draw(st.lists(st.sampled_from(pairs), max_size=14, unique=True))
    segment = {name: name for name in bridges}
    cables: list[tuple[str, str]] = []
    on: set[tuple[str, str]] = set()
    for a, b in wanted:
        if {a, b} <= set(bridges):
            if segment[a] == segment[b] or any({(n, segment[a]), (n, segment[b])} <= on for n in nodes):
                continue
            old, new = segment[b], segment[a]
            segment = {name: new if one == old else one for name, one in segment.items()}
            on = {(n, new if one == old else one) for n, one in on}
        elif bridge := next((one for one in (a, b) if one in bridges), None):
            node = a if bridge == b else b
            if (node, segment[bridge]) in on:
                continue
            on.add((node, segment[bridge]))
        cables.append((a, b))
    return cables


def written(cables: list[tuple[str, str]]) -> str:
    """Return the text of cables."""
    return ", ".join(f"{a} - {b}" for a, b in cables) or "lonely"


def parts(cables: list[tuple[str, str]]) -> dict[str, str]:
    """Return for each place the name of one that stands for all that are connected with it."""
    of = {place: place for cable in cables for place in cable}
    for _ in of:
        for a, b in cables:
            of[a] = of[b] = min(of[a], of[b])
    return of


class TestNotation:
    def test_example(self) -> None:
        """Chains share the places that they name."""
        sketch = read(EXAMPLE)
        assert sketch.places == ["web", "br0", "db", "r1", "br1", "client"]
        assert sketch.cables == [("web", "br0"), ("br0", "db"), ("br0", "r1"), ("r1", "br1"), ("br1", "client")]
        assert sketch.media == ["br0", "br1"]

    @pytest.mark.parametrize(
        "text",
        [
            "a - b, b - br0",
            "a - b - br0",
            "a -b -br0",
            "a- b- br0",
            " a --b,\tb --- br0 ; ",
            "a - b\nb - br0\n",
            "# two\na - b  # cable\n\n,;\r\nb - br0",
            "a - b; b - br0,",
            "a, b, a - b, b - br0",
        ],
    )
    def test_spellings(self, text: str) -> None:
        """Spaces, comments, line feeds, empty chains and the length of a cable mean nothing."""
        assert wire(text) == wire("a - b - br0")

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "'' mentions no place"),
            (" ,;\n # nothing", "mentions no place"),
            ("web -", "'-' after 'web' leads to no place"),
            ("web - , db", "'-' after 'web' leads to no place"),
            ("- web", "'-': the name of a place is missing before it"),
            ("web - - db", "'-' after 'web -': the name of a place is missing"),
            ("web db", "'db' after 'web': between two places is a '-' or a ','"),
            ("web - web", "'web - web' connects 'web' with itself"),
            ("br0 - br0", "connects 'br0' with itself"),
            ("web - db, db - web", "'db - web' is a second cable between the two"),
            ("web - br0 - web", "'br0 - web' is a second cable"),
            ("web-br0-db", "'web-br0-db' is one name: put spaces around the '-'"),
            ("br0-br1 - db", "'br0-br1' is one name: put spaces"),
            ("web-db", "'web-db' is one name, and no cable leads there: put spaces"),
            ("a - b, web-1", "'web-1' is one name, and no cable leads there"),
            ("Web - br0 - web", "'Web' and 'web': host names know no capitals"),
            ("Br0 - br0", "'br0' and 'Br0'|'Br0' and 'br0'"),
            ("wéb - br0", "'é' after 'w': names are made of ASCII letters"),
            ("web. - br0", "'.' after 'web': names are made of"),
            ("we/b - br0", "'/' after 'we'"),
            ("a - b\nc - \0", r"'\\x00' after 'c -'"),
            ("web(10.0.0.5 - br0", r"'\(' after 'web': it is not closed"),
            ("br0[10.0.0.0/24\n] - web", r"'\[' after 'br0': it is not closed"),
            ("web) - br0", r"'\)' after 'web': it was not opened"),
            ("(10.0.0.5) - br0", "the name of a place is missing before it"),
            ("web - (10.0.0.5) br0", "the name of a place is missing before it"),
            ("a -[10.0.0.0/24] b", r"'\[10\.0\.0\.0/24\]' after 'a -': the name of a place is missing before it"),
            ("web() - br0", r"'web\(\)': there is nothing in the brackets"),
            ("a -[ ]- b", "nothing in the brackets"),
            ("web[10.0.0.0/24] - br0", "a namespace has addresses"),
            ("br0(10.0.0.1) - web", "a bridge has no address here"),
            ("br0[10.0.0.1/24] - web", r"'br0\[10\.0\.0\.1/24\]': .* the subnet that it is in is 10\.0\.0\.0/24"),
            ("web(10.0.0.300) - br0", "is no address"),
            ("web(10.0.0.3/24) - br0", "is no address"),
            ("1 - br0", "'1' ends in a number"),
            ("web.7 - br0", "'web.7' ends in a number"),
            ("0x7f - br0", "'0x7f' ends in a number"),
            ("10.0.0.5 - br0", "ends in a number"),
            ("localhost - br0", "'localhost' is what every host calls itself"),
            ("a" * 64 + " - br0", "more than 63 characters between dots"),
            ("a." + "b" * 63 + " - br0", "is longer than 64 characters, the most for a host"),
            ("br" + "1" * 14 + " - web", "is longer than 15 characters, the most for an interface"),
            ("br" + "1" * 13 + " - web", "its interface 'br1111111111111p0' is longer than 15 characters"),
        ],
    )
    def test_refused(self, text: str, why: str) -> None:
        """What does not follow the notation is refused, and the message says where and why."""
        with pytest.raises(PlanError, match=f"^topology: .*{why}|^topology: {why}"):
            wire(text)

    @pytest.mark.parametrize("value", [None, b"web - br0", 5, ["web"]])
    def test_no_text(self, value: str) -> None:
        """Only a text is a topology."""
        with pytest.raises(PlanError, match="it is a text as"):
            wire(value)

    @pytest.mark.parametrize(
        "name", ["a" * 63, "web-1", "redis-0.redis", "_x", "br", "brx", "xbr0", "br0x", "7of9", "eth0", "a." + "b" * 62]
    )
    def test_names(self, name: str) -> None:
        """Every other name of a host is one of a namespace."""
        assert [node.name for node in wire(f"{name} - br0").nodes] == [name]

    def test_longest_bridge(self) -> None:
        """A bridge's name may be as long as leaves room for the names of its interfaces."""
        wiring = wire("br12345678901 - web")
        assert wiring.cables[0].a.port == "br12345678901p0"

    @given(st.text("ab01r-.,;[]()\n /#é", max_size=40) | st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        """Any text stands for a topology or is refused, and nothing else happens."""
        try:
            wiring = wire(text)
        except PlanError:
            return
        assert wiring.nodes or wiring.bridges


class TestAddresses:
    def test_example(self) -> None:
        """A segment has the next subnet, and its namespaces addresses in the order of their cables."""
        assert addresses(EXAMPLE) == {
            "web": ["10.77.0.1"],
            "db": ["10.77.0.2"],
            "r1": ["10.77.0.3", "10.77.1.1"],
            "client": ["10.77.1.2"],
        }
        wiring = wire(EXAMPLE)
        assert [segment.subnets for segment in wiring.segments] == [
            (ip_network("10.77.0.0/24"),),
            (ip_network("10.77.1.0/24"),),
        ]
        assert [segment.nodes for segment in wiring.segments] == [("web", "db", "r1"), ("r1", "client")]
        assert [segment.bridges for segment in wiring.segments] == [("br0",), ("br1",)]

    def test_cables(self) -> None:
        """Interfaces are numbered by place in the order of their cables, and have names of their own on all bridges."""
        wiring = wire(EXAMPLE)
        assert [(cable.a.place, cable.a.port, cable.b.place, cable.b.port) for cable in wiring.cables] == [
            ("web", "eth0", "br0", "br0p0"),
            ("br0", "br0p1", "db", "eth0"),
            ("br0", "br0p2", "r1", "eth0"),
            ("r1", "eth1", "br1", "br1p0"),
            ("br1", "br1p1", "client", "eth0"),
        ]
        assert wiring.bridges == ("br0", "br1")
        assert [(port.name, port.segment) for port in wiring["r1"].ports] == [("eth0", 0), ("eth1", 1)]

    def test_direct_cable(self) -> None:
        """A cable between two namespaces is a segment, with or without a given subnet."""
        assert addresses("a - b - c") == {"a": ["10.77.0.1"], "b": ["10.77.0.2", "10.77.1.1"], "c": ["10.77.1.2"]}
        assert addresses("a -[10.1.0.0/31]- b") == {"a": ["10.1.0.0"], "b": ["10.1.0.1"]}
        assert wire("a - b").segments[0].bridges == ()

    def test_bridges_in_a_row(self) -> None:
        """Bridges with a cable between them are one segment with one subnet, whichever of them it is written at."""
        for text in (
            "a - br0 - br1[10.5.0.0/24] - b",
            "a - br0 -[10.5.0.0/24]- br1 - b",
            "a - br0, b - br1[10.5.0.0/24], br1 - br0",
        ):
            wiring = wire(text)
            assert len(wiring.segments) == 1
            assert wiring.segments[0].bridges == ("br0", "br1")
            assert wiring.hosts == {"a": (ip_address("10.5.0.1"),), "b": (ip_address("10.5.0.2"),)}
            assert not any(node.router or node.routes for node in wiring.nodes)

    def test_given(self) -> None:
        """Addresses and subnets that are written are kept, and the others are chosen round them."""
        text = "br0[10.0.0.0/29] - web(10.0.0.1), br0 - db, br0 - r(10.0.0.6, 10.77.0.9) - br1, br1 - z"
        assert addresses(text) == {
            "web": ["10.0.0.1"],
            "db": ["10.0.0.2"],
            "r": ["10.0.0.6", "10.77.0.9"],
            "z": ["10.77.0.1"],
        }

    def test_given_later(self) -> None:
        """An address may be written at any mention, and a subnet that is given is not chosen for another segment."""
        assert addresses("a - br0 - b, b(10.77.1.1), b - br1[10.77.0.0/24]") == {
            "a": ["10.77.1.2"],
            "b": ["10.77.1.1", "10.77.0.1"],
        }

    def test_ipv6(self) -> None:
        """With ipv6=True each segment has a subnet of each version, and routes of each."""
        wiring = wire("a - r - b", ipv6=True)
        assert [str(address) for address in wiring["r"].addresses] == ["10.77.0.2", "fd77::2", "10.77.1.1", "fd77:0:0:1::1"]
        assert [str(route.destination) for route in wiring["a"].routes] == ["10.77.1.0/24", "fd77:0:0:1::/64"]
        assert str(wiring["a"].routes[1].gateway) == "fd77::2"

    def test_given_ipv6(self) -> None:
        """With ipv6=True a segment whose subnet of IPv6 is given has no other one."""
        wiring = wire("a -[fd99::/64 10.9.0.0/24]- b -[10.8.0.0/24]- c", ipv6=True)
        assert [tuple(map(str, segment.subnets)) for segment in wiring.segments] == [
            ("10.9.0.0/24", "fd99::/64"),
            ("10.8.0.0/24", "fd77::/64"),
        ]

    def test_only_ipv6(self) -> None:
        """A segment with one given subnet has no other one, and a way of IPv4 does not lead over it."""
        wiring = wire("a - br0 - r1 -[fd99::/64]- r2 - br1 - b")
        assert [str(one) for one in wiring["r1"].addresses] == ["10.77.0.2", "fd99::1"]
        assert travel(wiring, "a", ip_address("10.77.1.2")) is None
        assert wiring["a"].routes == ()
        both = wire("a - br0 - r1 -[fd99::/64 10.9.0.0/30]- r2 - br1 - b")
        assert travel(both, "a", ip_address("10.77.1.2")) == ["a", "r1", "r2", "b"]

    def test_large_segment(self) -> None:
        """A segment with more namespaces than a /24 has addresses gets a larger subnet."""
        for count, prefix in ((253, 24), (300, 23), (1022, 21)):
            wiring = wire(",".join(f"n{n}x - br0" for n in range(count)))
            assert wiring.segments[0].subnets[0].prefixlen == prefix
            assert len({address for found in wiring.hosts.values() for address in found}) == count

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("web(10.0.0.5) - br0", r"10\.0\.0\.5 is in no subnet of 'web' \(10\.77\.0\.0/24\): write the subnet"),
            ("web(10.0.0.5)", r"10\.0\.0\.5 is in no subnet of 'web' \(it is on no cable\)"),
            ("web(fd77::5) - br0", "fd77::5 is in no subnet of 'web'"),
            ("web(10.77.0.0) - br0", r"10\.77\.0\.0 of 'web' is no host's"),
            ("web(10.77.0.255) - br0", r"10\.77\.0\.255 of 'web' is no host's"),
            ("web(10.77.0.5) - br0 - db(10.77.0.5)", r"10\.77\.0\.5 is given to 'web' and to 'db'"),
            (
                "web(10.77.0.5 10.77.0.6) - br0",
                r"'web' is given two addresses in 10\.77\.0\.0/24: 10\.77\.0\.5 and 10\.77\.0\.6",
            ),
            ("br0[10.0.0.0/24] - web, br0[10.1.0.0/24]", r"br0 has two subnets of IPv4: 10\.0\.0\.0/24 and 10\.1\.0\.0/24"),
            ("br0[10.0.0.0/24] - br1[10.1.0.0/24]", "br0 - br1 has two subnets of IPv4"),
            ("br0[10.0.0.0/24], br1[10.0.0.0/16]", r"br1: 10\.0\.0\.0/16 overlaps 10\.0\.0\.0/24"),
            ("br0[10.0.0.0/24], br1[10.0.0.0/24]", r"br1: 10\.0\.0\.0/24 overlaps 10\.0\.0\.0/24"),
            ("a - br0[10.0.0.0/30] - b, br0 - c", r"br0: 10\.0\.0\.0/30 has 2 addresses for 3 namespaces"),
            ("br0 - br1 - br2 - br0", "'br2 - br0' closes a circle of bridges"),
            ("a - br0 - br1 - a", "'a' is on br0 - br1 twice"),
            ("a - br0, a - br1, br1 - br0", "'a' is on br0 - br1 twice"),
        ],
    )
    def test_refused(self, text: str, why: str) -> None:
        """What cannot be addressed or connected is refused, and the message names the place."""
        with pytest.raises(PlanError, match=f"^topology: {why}"):
            wire(text)

    @given(graphs(), st.booleans())
    def test_any_graph(self, cables: list[tuple[str, str]], ipv6: bool) -> None:  # noqa: FBT001 - hypothesis gives it
        """Every namespace has one address of each version on each of its segments, all different, and no subnets overlap."""
        wiring = wire(written(cables), ipv6=ipv6)
        subnets = [subnet for segment in wiring.segments for subnet in segment.subnets]
        kinds = (IPv4Network, IPv6Network) if ipv6 else (IPv4Network,)
        for kind in kinds:
            family = [subnet for subnet in subnets if type(subnet) is kind]
            assert len(family) == len(wiring.segments)
            assert sum(subnet.num_addresses for subnet in family) == len(family) * family[0].num_addresses if family else True
            assert not any(a.overlaps(b) for i, a in enumerate(family) for b in family[:i])
        for node in wiring.nodes:
            for port in node.ports:
                assert [address.network for address in port.addresses] == list(wiring.segments[port.segment].subnets)
            assert len({port.segment for port in node.ports}) == len(node.ports)
            assert [port.name for port in node.ports] == [f"eth{n}" for n in range(len(node.ports))]
        found = Counter(address for node in wiring.nodes for address in node.addresses)
        assert set(found.values()) <= {1}

    @given(graphs())
    def test_cables_of_any_graph(self, cables: list[tuple[str, str]]) -> None:
        """Each cable is there as it is written, and no interface has two."""
        wiring = wire(written(cables))
        assert [(cable.a.place, cable.b.place) for cable in wiring.cables] == cables
        ends = [end for cable in wiring.cables for end in (cable.a, cable.b)]
        assert len(set(ends)) == len(ends)
        ports = {(node.name, port.name) for node in wiring.nodes for port in node.ports}
        assert ports == {(end.place, end.port) for end in ends if end.place not in wiring.bridges}
        on_bridges = [end.port for end in ends if end.place in wiring.bridges]
        assert len(set(on_bridges)) == len(on_bridges)


class TestRoutes:
    def test_example(self) -> None:
        """A host has a route over the router, and the router needs none."""
        wiring = wire(EXAMPLE)
        expected = WiredRoute(IPv4Network("10.77.1.0/24"), ip_address("10.77.0.3"), "eth0")
        assert wiring["web"].routes == wiring["db"].routes == (expected,)
        assert wiring["r1"].routes == ()
        assert wiring["r1"].router
        assert not wiring["web"].router

    def test_shortest(self) -> None:
        """The way with the fewest routers is taken, and of equal ones the one over places that were mentioned first."""
        ring = wire("a - b - c - d - e - a")
        assert travel(ring, "a", ring["c"].addresses[0]) == ["a", "b", "c"]
        assert travel(ring, "a", ring["d"].addresses[1]) == ["a", "e", "d"]
        square = wire("x - br0, br0 - r1 - br1, br0 - r2 - br1, br1 - y")
        assert travel(square, "x", square["y"].addresses[0]) == ["x", "r1", "y"]
        assert travel(square, "y", square["x"].addresses[0]) == ["y", "r1", "x"]

    def test_apart(self) -> None:
        """Where no cable leads there is no route."""
        wiring = wire("a - br0 - b, c - br1 - d, lonely")
        assert not any(node.routes for node in wiring.nodes)
        assert wiring["lonely"].ports == ()

    @given(graphs(), st.booleans())
    def test_everything_is_reached(self, cables: list[tuple[str, str]], ipv6: bool) -> None:  # noqa: FBT001 - as above
        """A packet arrives from everywhere at every address that cables lead to, in the fewest steps, and nowhere else."""
        wiring = wire(written(cables), ipv6=ipv6)
        of = parts(cables)
        for source in wiring.nodes:
            steps = distances(wiring, source.name)
            for target in wiring.nodes:
                for port in target.ports:
                    for interface in port.addresses:
                        passed = travel(wiring, source.name, interface.ip)
                        assert (passed is not None) == (of.get(source.name) == of.get(target.name))
                        if passed is not None and not target.router and source != target:
                            assert len(passed) - 2 == steps[port.segment]

    @given(graphs())
    def test_same_way_back(self, cables: list[tuple[str, str]]) -> None:
        """Between two hosts with one interface each, packets of both directions pass the same routers."""
        wiring = wire(written(cables))
        hosts = [node for node in wiring.nodes if len(node.ports) == 1]
        for a in hosts:
            for b in hosts:
                there, back = travel(wiring, a.name, b.addresses[0]), travel(wiring, b.name, a.addresses[0])
                assert there == (back[::-1] if back else None)


def distances(wiring: Wiring, source: str) -> dict[int, int]:
    """Return how many routers there are at least between a namespace and each segment that it reaches."""
    found = {port.segment: 0 for port in wiring[source].ports}
    edge = list(found)
    while edge:
        following: list[int] = []
        for number in edge:
            for name in wiring.segments[number].nodes:
                for port in wiring[name].ports:
                    if port.segment not in found:
                        found[port.segment] = found[number] + 1
                        following.append(port.segment)
        edge = following
    return found


def test_values() -> None:
    """A wiring is the same for the same text, survives pickling, and knows its namespaces by name."""
    wiring = wire(EXAMPLE)
    assert wiring == wire(EXAMPLE)
    assert hash(wiring) == hash(wire(EXAMPLE))
    assert wiring["db"].name == "db"
    assert pickle.loads(pickle.dumps(wiring)) == wiring  # noqa: S301 - its own
    with pytest.raises(KeyError, match="br0"):
        wiring["br0"]
    assert wiring["web"].ports[0].addresses == (ip_interface("10.77.0.1/24"),)
