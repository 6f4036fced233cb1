"""The way out of a network: to where the host's packets go, allowed and denied; and partitions within one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

import isolib
from isolib import PermissionDenied, PlanError
from isolib.net import addresses, links, new_network, new_veth
from isolib.net.sysctl import Sysctls
from tests.nets import SOON, listen, reaches, socket_in, until
from tests.rights import having
from tests.wires import route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.namespaces import NetNS
    from isolib.net import Endpoint, Network

pytestmark = pytest.mark.usefixtures("user_namespaces")


class World(NamedTuple):
    """A host, in which the calling thread is, and the rest of the world behind it."""

    host: NetNS
    outside: NetNS


@pytest.fixture
def world(needs_root: None) -> Iterator[World]:
    """Return a host with a way to somewhere else; the calling thread is in the host's namespace."""
    with ExitStack() as stack:
        host, outside = isolib.new_netns(), isolib.new_netns()
        stack.callback(host.close)
        stack.callback(outside.close)
        stack.enter_context(new_veth(host, outside, names=("wan", "eth0"), addresses=("198.51.100.1/24", "198.51.100.2/24")))
        with host.entered():
            yield World(host, outside)


def test_internet(world: World, new_ns: Callable[[], NetNS]) -> None:
    """An endpoint reaches what the host reaches, with the host's address, and nothing of it is left afterwards."""
    before = {link.name for link in links()}
    ns = new_ns()
    with new_network("10.77.0.0/24", internet=True) as network:
        network.attach(ns)
        with listen(world.outside, "198.51.100.2") as server, socket_in(ns) as client:
            client.connect(server.getsockname()[:2])
            inner, peer = server.accept()
            inner.close()
            assert peer[0] == "198.51.100.1"
        assert Sysctls()["net.ipv4.ip_forward"] == "1"
        assert {link.name[:7] for link in links() if link.name not in before} == {"isolib-"}
    assert Sysctls()["net.ipv4.ip_forward"] == "0"
    assert until(lambda: {link.name for link in links()} == before)


def test_no_internet(world: World, new_ns: Callable[[], NetNS]) -> None:
    """Without being asked for, there is no way out, and the host's settings are not touched."""
    ns = new_ns()
    with new_network("10.77.0.0/24") as network:
        network.attach(ns)
        assert not reaches(ns, world.outside, "198.51.100.2", patience=SOON)
        assert Sysctls()["net.ipv4.ip_forward"] == "0"
        with pytest.raises(PlanError, match="internet=True"):
            network.allow("192.0.2.1")


def test_two_networks_of_one_subnet_go_out(world: World, new_ns: Callable[[], NetNS]) -> None:
    """Networks with the same subnet have each a way out, and the last one puts the host's setting back."""
    a, b = new_ns(), new_ns()
    with new_network("10.77.0.0/24", internet=True) as one:
        with new_network("10.77.0.0/24", internet=True) as other:
            one.attach(a)
            other.attach(b)
            assert reaches(a, world.outside, "198.51.100.2")
            assert reaches(b, world.outside, "198.51.100.2")
        assert reaches(a, world.outside, "198.51.100.2")
    assert Sysctls()["net.ipv4.ip_forward"] == "0"


def test_many_at_once_go_out(world: World, new_ns: Callable[[], NetNS]) -> None:
    """Networks that are made at the same time have each a way out of their own."""
    spaces = [new_ns() for _ in range(6)]
    with ExitStack() as stack, ThreadPoolExecutor(6) as threads:
        networks = list(threads.map(lambda _: stack.enter_context(new_network(internet=True)), spaces))
        ends = [address.interface.network for address in addresses() if address.interface.network.prefixlen == 30]
        assert len(set(ends)) == len(ends) == 6
        for ns, network in zip(spaces, networks, strict=True):
            network.attach(ns)
            assert reaches(ns, world.outside, "198.51.100.2")


def test_no_right_to_a_way_out() -> None:
    """Who has no rights over the host's network is told what a cable there takes."""
    with having("rootless"), pytest.raises(PermissionDenied, match="CAP_NET_ADMIN"):
        new_network(internet="veth")


def test_nobody_comes_in(world: World, new_ns: Callable[[], NetNS]) -> None:
    """From outside nobody reaches an endpoint, not even who sends its packets to the host."""
    ns = new_ns()
    with new_network("10.77.0.0/24", internet=True) as network:
        endpoint = network.attach(ns)
        assert endpoint.address is not None
        assert not reaches(world.host, ns, endpoint.address, patience=SOON)
        assert not reaches(world.outside, ns, endpoint.address, patience=SOON)


def test_egress(world: World, new_ns: Callable[[], NetNS]) -> None:
    """What may be reached is changed live, and the smallest network decides."""
    ns = new_ns()
    with new_network("10.77.0.0/24", internet=True) as network:
        network.attach(ns)
        assert reaches(ns, world.host, "198.51.100.1")
        network.deny("198.51.100.0/24")
        assert not reaches(ns, world.host, "198.51.100.1", patience=SOON)
        assert not reaches(ns, world.outside, "198.51.100.2", patience=SOON)
        network.allow("198.51.100.2")
        assert reaches(ns, world.outside, "198.51.100.2")
        network.deny("all", "198.51.100.2")
        assert not reaches(ns, world.outside, "198.51.100.2", patience=SOON)
        network.allow("198.51.100.2")
        assert reaches(ns, world.outside, "198.51.100.2")
        for word in ("a b", "10.1", "198.51.100.2/24", "1"):
            with pytest.raises(PlanError, match="destination"):
                network.allow(word)


def test_loopback_of_the_host(world: World, new_ns: Callable[[], NetNS]) -> None:
    """A server on the host's loopback is not reached from a network with a way out, whatever the host routes."""
    ns = new_ns()
    for setting in ("all", "default"):
        Sysctls()[f"net.ipv4.conf.{setting}.route_localnet"] = 1
    with new_network("10.77.0.0/24", internet=True) as network:
        network.attach(ns)
        assert not reaches(ns, world.host, "127.0.0.1", patience=SOON)


# ---- partitions ----


@pytest.fixture
def five(new_ns: Callable[[], NetNS]) -> Iterator[tuple[Network, list[NetNS], list[Endpoint]]]:
    """Return a network with five endpoints."""
    with new_network("10.77.0.0/24") as network:
        spaces = [new_ns() for _ in range(5)]
        yield network, spaces, [network.attach(ns) for ns in spaces]


def who_reaches_whom(spaces: list[NetNS], ends: list[Endpoint]) -> set[tuple[int, int]]:
    """Return the pairs of which the first reaches the second."""
    found = set()
    for one, ns in enumerate(spaces):
        for two, endpoint in enumerate(ends):
            assert endpoint.address is not None
            if one != two and reaches(ns, spaces[two], endpoint.address, patience=0.15):
                found.add((one, two))
    return found


def test_partition(five: tuple[Network, list[NetNS], list[Endpoint]]) -> None:
    """Endpoints of different groups do not reach each other until the partition is healed; the gateway is reached by all."""
    network, spaces, ends = five
    every = {(one, two) for one in range(5) for two in range(5) if one != two}
    assert who_reaches_whom(spaces, ends) == every
    network.partition(ends[:2], ends[2:])
    assert who_reaches_whom(spaces, ends) == {(one, two) for one, two in every if (one < 2) == (two < 2)}
    assert network.gateway is not None
    assert reaches(spaces[0], network.ns, network.gateway)
    network.partition(ends[:1], ends[1:2])
    assert who_reaches_whom(spaces, ends) == every - {(0, 1), (1, 0)}
    network.heal()
    assert who_reaches_whom(spaces, ends) == every


def test_bad_partitions(five: tuple[Network, list[NetNS], list[Endpoint]]) -> None:
    """One group is no partition, nobody is in two, and strangers are in none."""
    network, spaces, ends = five
    with pytest.raises(PlanError, match="two groups"):
        network.partition(ends)
    with pytest.raises(PlanError, match="in two groups"):
        network.partition(ends[:3], ends[2:])
    with new_network("10.78.0.0/24") as other:
        stranger = other.attach(spaces[0], name="eth1", default_route=False)
        with pytest.raises(PlanError, match="is none of"):
            network.partition(ends[:2], [stranger])


@pytest.mark.parametrize("isolate", [True, False])
def test_no_way_by_the_gateway(world: World, new_ns: Callable[[], NetNS], *, isolate: bool) -> None:
    """Isolated or parted endpoints that have their packets take the way by the gateway do not reach each other either."""
    a, b = new_ns(), new_ns()
    with new_network("10.77.0.0/24", internet=True, isolate=isolate) as network:
        ends = network.attach(a), network.attach(b)
        if not isolate:
            network.partition(*([one] for one in ends))
        for ns, other in ((a, ends[1]), (b, ends[0])):
            route(ns, f"{other.address}/32", str(network.gateway))
        assert not reaches(a, b, str(ends[1].address), patience=SOON)
        assert reaches(a, world.outside, "198.51.100.2")
        if not isolate:
            network.heal()
            assert reaches(a, b, str(ends[1].address))
