"""Links, addresses, routes, neighbours and rules: what isolib reads is what other programs read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from isolib import ClosedError, PlanError, new_ipcns, new_netns
from isolib.net import queries
from isolib.net.parsing import TYPES
from isolib.net.values import BridgeOptions
from isolib.net.veth import new_veth
from tests import by_pyroute2, oracles
from tests.nets import until
from tests.oracles import agree, run_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from isolib.namespaces import NetNS
    from isolib.net.values import Address

LAB = """
set -e
ip link set lo up
ip link add d0 type veth peer name d1
ip link add d2 type veth peer name d3
ip link set d0 up
ip link set d1 up
ip link set d2 up
ip link set d0 alias 'hi there'
ip link add br0 type bridge stp_state 1 forward_delay 700 hello_time 150 max_age 1000 ageing_time 12300 priority 4096
ip link set br0 type bridge vlan_filtering 1 vlan_default_pvid 7 2>/dev/null || true
ip link set br0 type bridge mcast_snooping 0 2>/dev/null || true
ip link set d1 master br0
ip link set br0 up
ip link set d1 type bridge_slave hairpin on isolated on cost 55 priority 9 guard on fastleave on learning off flood off
ip addr add 10.1.0.1/24 broadcast + dev d0
ip addr add 10.2.0.1 peer 10.2.0.2/32 dev d0
ip addr add 10.1.0.9/24 dev d0 valid_lft 1000 preferred_lft 500
ip addr add fd00::1/64 dev d0 nodad
ip route add 10.9.0.0/16 via 10.1.0.5 metric 7 src 10.1.0.9
ip route add 10.9.0.0/16 via 10.1.0.6 metric 8
ip route add table 777 unreachable 10.8.0.0/16
ip route add table 7 prohibit default
ip route add 10.10.0.0/16 nexthop via 10.1.0.5 weight 3 nexthop via 10.1.0.6
ip -4 route add default via inet6 fe80::1 dev d0
ip -6 route add fd01::/64 via fd00::5 metric 33
ip -6 route add fd03::/64 nexthop via fd00::5 weight 2 nexthop via fd00::6
ip -6 route add blackhole fd02::/64
ip rule add prio 100 from 10.7.0.0/16 to 10.6.0.0/15 fwmark 3/0xff iif lo oif d0 table 777
ip rule add prio 101 fwmark 5 table 7
ip rule add prio 60 goto 100
ip -6 rule add prio 50 from fd00::/8 prohibit
ip neigh add 10.1.0.5 lladdr 02:00:00:00:00:05 dev d0 nud permanent
ip -6 neigh add fd00::5 lladdr 02:00:00:00:00:06 dev d0 nud stale router
"""
"""What ip makes that isolib does not, for who reads it."""


@pytest.fixture
def lab(a: NetNS) -> NetNS:
    """Return a namespace with something of everything."""
    run_in(a, "sh", "-c", LAB)
    return a


def test_links_are_those_of_ip(lab: NetNS) -> None:
    """Every field of every link is what ip says, of bridges, their ports and veth pairs, with what has passed through."""
    found = agree(lambda: queries.links(lab), lambda: oracles.links(lab))
    assert {one.kind for one in found} == {"loopback", "veth", "bridge"}
    by_name = {one.name: one for one in found}
    assert by_name["d0"].alias == "hi there"
    assert by_name["d1"].master == by_name["br0"].index
    assert by_name["d2"].state == "lowerlayerdown"
    assert by_name["d1"].port is not None
    assert (by_name["d1"].port.hairpin, by_name["d1"].port.isolated, by_name["d1"].port.flood) == (True, True, False)
    bridge = by_name["br0"].bridge
    assert isinstance(bridge, BridgeOptions)
    assert (bridge.stp, bridge.forward_delay, bridge.ageing_time, bridge.priority) == (True, 7.0, 123.0, 4096)
    # Something has passed, for the kernel itself asks for its neighbours.
    assert until(lambda: any(one.stats is not None and one.stats.tx_packets for one in queries.links(lab)))


def test_addresses_are_those_of_ip(lab: NetNS) -> None:
    """Every field of every address is what ip says: scopes, flags, other ends, broadcast addresses, how long they last."""
    found = agree(lambda: set(queries.addresses(lab)), lambda: oracles.addresses(lab))
    texts = {str(one.interface): one for one in found}
    assert {"127.0.0.1/8", "::1/128", "10.1.0.1/24", "10.2.0.1/32", "10.1.0.9/24", "fd00::1/64"} <= set(texts)
    assert str(texts["10.2.0.1/32"].peer) == "10.2.0.2"
    assert str(texts["10.1.0.1/24"].broadcast) == "10.1.0.255"
    assert texts["10.1.0.9/24"].valid is not None


def test_routes_are_those_of_ip(lab: NetNS) -> None:
    """Every field of every route of every table is what ip says: several hops, gateways of the other family, no link at all."""
    found = agree(lambda: set(queries.routes(lab, table=None)), lambda: oracles.routes(lab))
    assert {one.type for one in found} >= {"unicast", "local", "broadcast", "unreachable", "prohibit", "blackhole", "multicast"}
    assert {one.type for one in found} <= set(TYPES)
    assert sorted(hop[2] for one in found for hop in one.hops) == [1, 1, 2, 3]


def test_routes_of_one_table(lab: NetNS) -> None:
    """A table is asked for by its name or number; without, it is the main one."""
    everything = queries.routes(lab, table=None)
    for table in ("main", "local", 7, 777, 778):
        assert queries.routes(lab, table=table) == [one for one in everything if one.table == table]
    assert queries.routes(lab) == queries.routes(lab, table="main") != []


def test_neighbours_are_those_of_ip(lab: NetNS) -> None:
    """Every field of every neighbour is what ip says."""
    found = agree(lambda: set(queries.neighbours(lab)), lambda: oracles.neighbours(lab))
    assert {(str(one.address), one.mac, one.state, one.router) for one in found} >= {
        ("10.1.0.5", "02:00:00:00:00:05", "permanent", False),
        ("fd00::5", "02:00:00:00:00:06", "stale", True),
    }


def test_rules_are_those_of_ip(lab: NetNS) -> None:
    """Every field of every rule is what ip says, in the order in which they are asked, of both families."""
    found = agree(lambda: queries.rules(lab), lambda: oracles.rules(lab))
    assert [one.priority for one in found] == [0, 60, 100, 101, 32766, 32767, 0, 50, 32766]


def in_hundreds(found: Iterable[Address]) -> set[Address]:
    """Return addresses that last for hundreds of seconds: those count down, and a program in Python takes longer than one."""

    def hundreds(seconds: int | None) -> int | None:
        return None if seconds is None else seconds // 100

    return {replace(one, valid=hundreds(one.valid), preferred=hundreds(one.preferred)) for one in found}


def test_everything_is_as_pyroute2_sees_it(lab: NetNS) -> None:
    """A second program, which decodes by code and names of its own, sees the same objects, field by field."""

    def ours() -> list[object]:
        sets = in_hundreds(queries.addresses(lab)), set(queries.routes(lab, table=None)), set(queries.neighbours(lab))
        return [queries.links(lab), *sets, queries.rules(lab)]

    def theirs() -> list[object]:
        seen = by_pyroute2.look(lab)
        return [seen.links, in_hundreds(seen.addresses), seen.routes, seen.neighbours, seen.rules]

    agree(ours, theirs)


def test_the_host_itself_is_as_ip_sees_it() -> None:
    """Without a namespace, it is that of the calling thread that is asked."""
    agree(lambda: [(one.index, one.name, one.mtu) for one in queries.links()], lambda: oracles.numbers(None))


def test_a_new_namespace_has_loopback_alone(a: NetNS) -> None:
    """Of a new namespace everything is told, and nothing of it is another one's."""
    assert [(one.name, one.kind, one.up) for one in queries.links(a)] == [("lo", "loopback", True)]
    assert sorted(str(one.interface) for one in queries.addresses(a)) == ["127.0.0.1/8", "::1/128"]
    assert queries.routes(a) == []
    assert queries.neighbours(a) == []
    with closing(new_netns(lo=False)) as other:
        assert [one.up for one in queries.links(other)] == [False]


@pytest.mark.parametrize("query", [queries.links, queries.addresses, queries.routes, queries.neighbours, queries.rules])
def test_namespace_that_is_none(query: Callable[..., object]) -> None:
    """What is no network namespace is told before anything is asked, and a closed one by its own exception."""
    for wrong in (5, "eth0", object()):
        with pytest.raises(PlanError, match="a network namespace is wanted"):
            query(wrong)
    other = new_ipcns()
    with pytest.raises(PlanError, match="a network namespace is wanted"):
        query(other)
    other.close()
    gone = new_netns()
    gone.close()
    with pytest.raises(ClosedError):
        query(gone)


def test_thread_that_is_in_a_namespace(needs_root: None) -> None:
    """Without a namespace, it is that of the calling thread, whatever other threads do."""

    def seen() -> list[str]:
        return sorted(one.name for one in queries.links())

    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(seen).result()
        with new_netns(), new_veth(names=("zz-one", "zz-other")):
            assert seen() == ["lo", "zz-one", "zz-other"]
            assert pool.submit(seen).result() == before
            assert seen() == ["lo", "zz-one", "zz-other"]
        assert seen() == before


def test_many_objects(a: NetNS) -> None:
    """More than one answer of the kernel can hold is read whole."""
    commands = "".join(f"link add x{number} type veth peer name y{number}\n" for number in range(100))
    addresses = "".join(f"addr add 10.{number}.0.1/16 dev x{number}\n" for number in range(100))
    run_in(a, "sh", "-c", f"printf '{commands}{addresses}' | ip -batch -")
    assert len(queries.links(a)) == 201
    assert len({one.index for one in queries.links(a)}) == 201
    assert len(queries.addresses(a)) >= 102
