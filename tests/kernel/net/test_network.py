"""Networks: a bridge in a namespace of its own, and the namespaces that are attached to it."""

from __future__ import annotations

import errno
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest

from isolib import ClosedError, PlanError, SyscallError
from isolib._kernel.sockets import open_file_in
from isolib.net import addresses, links, new_network, routes
from tests import oracles
from tests.nets import PATIENCE, SOON, datagram_reaches, dial, reaches, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib.namespaces import NetNS
    from isolib.net import Network

pytestmark = pytest.mark.usefixtures("user_namespaces")


def setting(ns: NetNS, path: str) -> str:
    """Return a setting of a namespace."""
    with open_file_in(ns, f"/proc/sys/net/{path}", os.O_RDONLY) as fd:
        return os.read(fd.fileno(), 100).decode().strip()


def test_two_reach_each_other(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """What is attached is reached by the others and reaches the gateway, by IPv4 and IPv6, at once."""
    a, b = new_ns(), new_ns()
    one, other = network.attach(a), network.attach(b)
    assert other.ipv6 is not None
    assert other.address is not None
    assert reaches(a, b, other.ipv6)
    assert reaches(a, b, other.address)
    assert one.address is not None
    assert reaches(b, a, one.address)
    assert network.gateway is not None
    assert reaches(a, network.ns, network.gateway)
    assert network.gateway6 is not None
    assert reaches(b, network.ns, network.gateway6)


def test_what_is_inside(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """The kernel has for the namespace what the endpoint says: interface, addresses, the default routes."""
    ns = new_ns()
    endpoint = network.attach(ns, name="net0", hostname="web")
    found = {link.name: link for link in links(ns)}
    assert set(found) == {"lo", "net0"}
    assert (found["net0"].kind, found["net0"].mac) == ("veth", endpoint.mac)
    assert until(lambda: endpoint.interface.link().state == "up")
    own = {str(address.interface) for address in addresses(ns) if address.index == found["net0"].index}
    assert {f"{endpoint.address}/24", f"{endpoint.ipv6}/64"} <= own
    ways = {str(route.destination): route.gateway for route in routes(ns) if route.gateway}
    assert ways == {"0.0.0.0/0": network.gateway, "::/0": network.gateway6}
    assert endpoint.stats() == found["net0"].stats or endpoint.stats() is not None
    assert [port.name for port in network.bridge.ports()] == [endpoint.port.name]
    assert endpoint.port.name.startswith("isolib")
    assert repr(endpoint) == f"<Endpoint web {endpoint.address}>"


@pytest.mark.parametrize("answers", [True, False])
def test_names_are_answered_or_not(new_ns: Callable[[], NetNS], answers: bool) -> None:  # noqa: FBT001
    """The gateway listens where names are asked for, unless it is not to; it says so, and names are in a file all the same."""
    a, b = new_ns(), new_ns()
    with new_network("10.77.0.0/24", dns=answers) as network:
        network.attach(a, hostname="web")
        network.attach(b)
        listening = oracles.run_in(network.ns, "ss", "-Hlntu").splitlines()
        assert len(listening) == (2 if answers else 0)
        assert all("10.77.0.1:53" in line for line in listening)
        assert network.dns is answers
        assert "10.77.0.2\tweb" in network.hosts()
        assert reaches(b, a, "10.77.0.2")
        if answers:
            assert "nameserver 10.77.0.1" in network.resolv_conf()
            return
        with pytest.raises(ConnectionRefusedError):
            dial(b, "10.77.0.1", 53)
        with pytest.raises(PlanError, match="answers no questions about names"):
            network.resolv_conf()


def test_no_advertisements(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """Nobody who claims to be a router gives an endpoint addresses or routes."""
    ns = new_ns()
    network.attach(ns)
    assert setting(ns, "ipv6/conf/eth0/accept_ra") == "0"


def test_static_addresses(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """Who asks for an address gets that one, and others are given around it."""
    endpoint = network.attach(new_ns(), address="10.77.0.3", ipv6="fd77::abc")
    assert (str(endpoint.address), str(endpoint.ipv6)) == ("10.77.0.3", "fd77::abc")
    assert [str(network.attach(new_ns()).address) for _ in range(2)] == ["10.77.0.2", "10.77.0.4"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": "10.78.0.3"}, "10.78.0.3 is not in 10.77.0.0/24"),
        ({"address": "10.77.0.1"}, "is the gateway"),
        ({"address": "10.77.0.255"}, "is no host's"),
        ({"address": "10.77.0.2"}, "10.77.0.2 is taken"),
        ({"address": "fd77::5"}, "fd77::5"),
        ({"ipv6": "fd77::2"}, "fd77::2 is taken"),
        ({"address": "nonsense"}, "nonsense"),
        ({"name": "much-too-long-a-name"}, "much-too-long-a-name"),
        ({"name": "a/b"}, "a/b"),
        ({"hostname": ""}, "hostname"),
    ],
)
def test_bad_attachments(network: Network, new_ns: Callable[[], NetNS], options: dict[str, str], words: str) -> None:
    """What cannot be is refused before anything is done, and named."""
    network.attach(new_ns())
    ns = new_ns()
    before = network.bridge.ports()
    with pytest.raises(PlanError, match=words.replace(".", r"\.")):
        network.attach(ns, **options)  # type: ignore[arg-type]
    assert [link.name for link in links(ns)] == ["lo"]
    assert [port.index for port in network.bridge.ports()] == [port.index for port in before]
    assert network.attach(ns).address is not None


def test_full(new_ns: Callable[[], NetNS]) -> None:
    """A network without a free address says so, and has one again when somebody leaves."""
    with new_network("10.77.0.0/30") as network:
        endpoint = network.attach(new_ns())
        ns = new_ns()
        with pytest.raises(PlanError, match="is full"):
            network.attach(ns)
        assert [link.name for link in links(ns)] == ["lo"]
        endpoint.detach()
        assert network.attach(ns).address == IPv4Address("10.77.0.2")


def test_taken_name(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """An interface of this name in the namespace is refused by name, and nothing is left of the try."""
    ns = new_ns()
    network.attach(ns)
    with pytest.raises(SyscallError, match="eth0") as caught:
        network.attach(ns)
    assert caught.value.errno == errno.EEXIST
    assert len(network.bridge.ports()) == len(network.endpoints()) == 1
    assert str(network.attach(ns, name="eth1", default_route=False).address) == "10.77.0.4"


def test_second_default_route(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """A namespace that has a default route gets no second one, nor anything else of that try."""
    ns = new_ns()
    network.attach(ns)
    with pytest.raises(SyscallError, match="route") as caught:
        network.attach(ns, name="eth1")
    assert caught.value.errno == errno.EEXIST
    assert [link.name for link in links(ns)] == ["lo", "eth0"]


def test_closed(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """A closed namespace cannot be attached, and a closed network takes nobody."""
    ns = new_ns()
    ns.close()
    with pytest.raises(ClosedError):
        network.attach(ns)
    assert network.endpoints() == []
    network.close()
    with pytest.raises(ClosedError):
        network.attach(new_ns())


def test_isolated(new_ns: Callable[[], NetNS]) -> None:
    """In an isolating network everybody reaches the gateway, and nobody another."""
    a, b = new_ns(), new_ns()
    with new_network("10.77.0.0/24", isolate=True) as network:
        network.attach(a)
        other = network.attach(b)
        assert other.address is not None
        assert network.gateway is not None
        assert not reaches(a, b, other.address, patience=SOON)
        assert reaches(a, network.ns, network.gateway)
        assert reaches(b, network.ns, network.gateway)


def test_cable(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """A cable that is pulled out carries nothing, and all is as before when it is plugged in again."""
    a, b = new_ns(), new_ns()
    network.attach(a)
    endpoint = network.attach(b)
    assert endpoint.address is not None
    endpoint.down()
    assert until(lambda: "lower_up" not in endpoint.interface.link().flags)
    assert not reaches(a, b, endpoint.address, patience=SOON)
    endpoint.up()
    assert reaches(a, b, endpoint.address)


def test_detached(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """Who is detached has no interface any more, and may come again, under the same name, at once."""
    ns = new_ns()
    endpoint = network.attach(ns)
    endpoint.detach()
    endpoint.detach()
    assert [link.name for link in links(ns)] == ["lo"]
    assert network.endpoints() == []
    assert network.attach(ns).name == "eth0"
    with pytest.raises(ClosedError):
        endpoint.stats()


def test_closing(new_ns: Callable[[], NetNS]) -> None:
    """With the network all its interfaces go, and its endpoints are closed."""
    ns = new_ns()
    with new_network("10.77.0.0/24") as network:
        endpoint = network.attach(ns)
    assert endpoint.closed
    assert network.bridge.closed
    assert until(lambda: [link.name for link in links(ns)] == ["lo"])


def test_hundred(new_ns: Callable[[], NetNS]) -> None:
    """A hundred namespaces on one bridge all hear each their neighbour."""
    with new_network("10.77.0.0/24") as network:
        spaces = [new_ns() for _ in range(100)]
        ends = [network.attach(ns) for ns in spaces]
        assert len({endpoint.address for endpoint in ends}) == 100
        for ns, other, endpoint in zip(spaces, spaces[1:] + spaces[:1], ends[1:] + ends[:1], strict=True):
            assert endpoint.address is not None
            assert datagram_reaches(ns, other, endpoint.address)


def test_from_many_threads(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """Sixteen threads attach sixty-four namespaces at once, each with an address of its own."""
    spaces = [new_ns() for _ in range(64)]
    with ThreadPoolExecutor(16) as threads:
        ends = list(threads.map(network.attach, spaces))
    assert len({endpoint.address for endpoint in ends}) == 64
    assert {endpoint.port.index for endpoint in ends} == {port.index for port in network.bridge.ports()}
    assert set(network.endpoints()) == set(ends)


def test_same_subnet_twice(new_ns: Callable[[], NetNS]) -> None:
    """Two networks with one subnet lie side by side, and nothing crosses."""
    spaces = [new_ns() for _ in range(4)]
    with new_network("10.77.0.0/24") as one, new_network("10.77.0.0/24") as other:
        for network, pair in ((one, spaces[:2]), (other, spaces[2:])):
            for ns in pair:
                network.attach(ns)
        for a, b in ((spaces[0], spaces[1]), (spaces[2], spaces[3])):
            assert reaches(a, b, "10.77.0.3")
        one.endpoints()[1].detach()
        assert not reaches(spaces[0], spaces[3], "10.77.0.3", patience=SOON)


def test_closed_from_many_threads(new_ns: Callable[[], NetNS]) -> None:
    """Endpoints that are closed while their network is being closed do not wait for it, nor it for them."""
    with new_network("10.77.0.0/24") as network:
        ends = [network.attach(new_ns()) for _ in range(8)]
        began, may_go_on = threading.Event(), threading.Event()

        def linger() -> None:
            began.set()
            assert may_go_on.wait(PATIENCE)

        ends[0]._undo.push(linger)
        with ThreadPoolExecutor(9) as threads:
            closing = [threads.submit(ends[0].close)]
            assert began.wait(PATIENCE)
            closing.append(threads.submit(network.close))
            assert until(lambda: network.closed)
            closing += [threads.submit(end.close) for end in ends[1:]]
            with pytest.raises(ClosedError):
                network.attach(new_ns())
            may_go_on.set()
            assert [one.result(PATIENCE) for one in closing] == [None] * len(closing)
        assert all(end.closed for end in ends)
        assert network.endpoints() == []


def test_one_that_cannot_be_undone(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """What cannot be undone of one endpoint is raised, and the rest of it and of the network goes all the same."""
    spaces = [new_ns(), new_ns()]
    ends = [network.attach(ns) for ns in spaces]

    def refuse() -> None:
        raise SyscallError("undo", "this", errno.EIO)

    ends[0]._undo.push(refuse)
    with pytest.raises(SyscallError, match="undo"):
        network.close()
    assert all(end.closed for end in ends)
    assert network.ns.closed
    for ns in spaces:
        assert until(lambda ns=ns: [link.name for link in links(ns)] == ["lo"])  # type: ignore[misc]


def test_passes_nothing_on(network: Network) -> None:
    """Without a way out the namespace of a network passes no packets on, whatever the host's does."""
    assert setting(network.ns, "ipv4/ip_forward") == "0"
    assert setting(network.ns, "ipv6/conf/all/forwarding") == "0"


@pytest.mark.root
def test_endpoint_of_no_handle(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """What is done to the caller's own namespace is not done to another one that the thread has gone to since."""
    here, elsewhere = new_ns(), new_ns()
    with here.entered():
        endpoint = network.attach(None, name="eth0")
        endpoint.impair(delay="1ms")
        endpoint.capture(io.BytesIO()).close()
    with elsewhere.entered():
        with pytest.raises(PlanError, match="eth0"):
            endpoint.impair(delay="1ms")
        with pytest.raises(PlanError, match="eth0"):
            endpoint.capture(io.BytesIO())
        assert endpoint.impair(direction="in", delay="1ms")
    endpoint.close()


def test_chosen_subnets() -> None:
    """Subnets that are chosen overlap neither each other nor a route of the host's."""
    with new_network(ipv6=True) as one, new_network(ipv6=True) as other:
        subnets = [one.subnet, other.subnet]
        assert None not in subnets
        assert one.subnet != other.subnet
        assert one.subnet6 != other.subnet6
        taken = [route.destination for route in routes() if route.destination.prefixlen]
        for subnet in subnets:
            assert isinstance(subnet, IPv4Network)
            assert not any(subnet.overlaps(found) for found in taken if isinstance(found, IPv4Network))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"subnet": "10.77.0.1/24"}, "10.77.0.1/24"),
        ({"subnet": "10.77.0.0/32"}, "10.77.0.0/32"),
        ({"subnet": "nonsense"}, "nonsense"),
        ({"subnet": "fd77::/64"}, "subnet is of IPv4"),
        ({"ipv6": "10.0.0.0/24"}, "subnet is of IPv4"),
        ({"subnet": None}, "needs addresses"),
        ({"subnet": "127.0.0.0/24"}, "127.0.0.0/24"),
        ({"name": "a/b"}, "a/b"),
        ({"ipv6": ""}, "ipv6: ''"),
    ],
)
def test_bad_networks(arguments: dict[str, str], words: str) -> None:
    """A network that cannot be is refused, and the argument named."""
    with pytest.raises(PlanError, match=words):
        new_network(**arguments)  # type: ignore[arg-type]


def test_ipv6_alone(new_ns: Callable[[], NetNS]) -> None:
    """A network without IPv4 works."""
    a, b = new_ns(), new_ns()
    with new_network(None, ipv6="fd77::/64") as network:
        network.attach(a)
        endpoint = network.attach(b)
        assert endpoint.address is None
        assert endpoint.ipv6 is not None
        assert reaches(a, b, endpoint.ipv6)


def test_forked(network: Network) -> None:
    """In a fork of the program the network is the parent's: closing it there takes nothing away."""
    pid = os.fork()
    if not pid:
        try:
            network.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert [link.name for link in links(network.ns)] == ["lo", "br0"]


def test_bad_weather(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """What an endpoint sends, and what it gets, comes late or not at all as asked, until the weather is good again."""
    a, b = new_ns(), new_ns()
    endpoint, other = network.attach(a), network.attach(b)
    assert other.address is not None
    assert endpoint.impair(loss=1.0)["loss"].value == 1
    assert endpoint.impair(direction="in", delay="5ms").impairment.delay == pytest.approx(0.005)
    assert set(endpoint.weather()) == {"out", "in"}
    assert "out: loss 1" in str(network.picture())
    assert not reaches(a, b, other.address, patience=SOON)
    assert not endpoint.impair()
    assert reaches(a, b, other.address)
    with pytest.raises(PlanError, match="direction"):
        endpoint.impair(direction="up")
    with pytest.raises(PlanError, match="loss"):
        endpoint.impair(loss=2)
