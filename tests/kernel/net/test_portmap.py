"""Published ports that the kernel translates."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PlanError, SyscallError
from isolib._kernel.netlink import conntrack
from isolib._kernel.netlink.socket import NETFILTER
from isolib.net import addresses, links, new_network, new_veth
from tests.nets import dial, listen, reach, socket_in
from tests.oracles import run_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.namespaces import NetNS
    from isolib.net import Network

pytestmark = pytest.mark.usefixtures("user_namespaces")

HOST = "198.51.100.1"
SECOND = "198.51.100.7"
OUTSIDE = "198.51.100.2"
HOST6 = "2001:db8::1"
OUTSIDE6 = "2001:db8::2"


@pytest.fixture
def outside(needs_root: None) -> Iterator[NetNS]:
    """Return a namespace from where the one in which the calling thread is, a host, is reached."""
    with ExitStack() as stack:
        host, made = isolib.new_netns(), isolib.new_netns()
        stack.callback(host.close)
        stack.callback(made.close)
        cable = stack.enter_context(new_veth(host, made, names=("wan", "eth0"), addresses=(f"{HOST}/24", f"{OUTSIDE}/24")))
        cable.a.add_address(f"{SECOND}/24")
        cable.a.add_address(f"{HOST6}/64")
        cable.b.add_address(f"{OUTSIDE6}/64")
        with host.entered():
            yield made


@pytest.fixture
def network(outside: NetNS) -> Iterator[Network]:
    """Return a network with a way out."""
    with new_network("10.77.0.0/24", internet=True) as made:
        yield made


@pytest.mark.parametrize("host", ["0.0.0.0", HOST])
def test_client_keeps_its_address(network: Network, outside: NetNS, new_ns: Callable[[], NetNS], host: str) -> None:
    """Who comes from outside is seen by the server as himself; and nobody else comes in by another port."""
    ns = new_ns()
    endpoint = network.attach(ns)
    with network.publish(8080, endpoint, 80, host=host) as published, listen(ns, str(endpoint.address), 80) as server:
        assert published.via == "kernel"
        assert reach(outside, HOST, 8080, server) == OUTSIDE
        assert published.stats().connections == 0
        with pytest.raises(ConnectionRefusedError):
            dial(outside, HOST, 80)
    with pytest.raises(ConnectionRefusedError):
        dial(outside, HOST, 8080)


def test_from_everywhere(network: Network, outside: NetNS, new_ns: Callable[[], NetNS]) -> None:
    """The port leads to the server from wherever the host is reached, the endpoint itself included."""
    ns, beside, other = new_ns(), new_ns(), new_ns()
    endpoint = network.attach(ns)
    network.attach(beside)
    with new_network("10.77.0.0/24", internet=True) as second, listen(ns, str(endpoint.address), 80) as server:
        second.attach(other)
        network.publish(8080, endpoint, 80, host="0.0.0.0")
        for client, address in (
            (outside, HOST),
            (outside, SECOND),
            (None, HOST),
            (None, "127.0.0.1"),
            (ns, HOST),
            (beside, HOST),
            (other, HOST),
        ):
            assert reach(client, address, 8080, server), address


def test_datagrams(network: Network, outside: NetNS, new_ns: Callable[[], NetNS]) -> None:
    """Datagrams are translated too, and their answers come from where they were sent."""
    ns = new_ns()
    endpoint = network.attach(ns)
    network.publish(53, endpoint, 5353, host=HOST, proto="udp")
    with socket_in(ns, socket.SOCK_DGRAM) as server, socket_in(outside, socket.SOCK_DGRAM) as client:
        server.bind((str(endpoint.address), 5353))
        client.connect((HOST, 53))
        client.send(b"ping")
        data, peer = server.recvfrom(16)
        assert (data, peer[0]) == (b"ping", OUTSIDE)
        server.sendto(b"pong", peer)
        assert client.recv(16) == b"pong"


def test_ipv6(outside: NetNS, new_ns: Callable[[], NetNS]) -> None:
    """The same over IPv6, and with a port its own connections end and no others."""
    ns = new_ns()
    with new_network(None, ipv6="fd77::/64", internet=True) as network:
        endpoint = network.attach(ns)
        with listen(ns, str(endpoint.ipv6), 80) as server:
            published = network.publish(8080, endpoint, 80, host="::")
            other = network.publish(8081, endpoint, 80, host=HOST6)
            assert (published.via, other.via) == ("kernel", "kernel")
            assert reach(outside, HOST6, 8080, server) == OUTSIDE6
            assert reach(None, "::1", 8080, server)
            with dial(outside, HOST6, 8080) as stands, server.accept()[0] as inner:
                with dial(outside, HOST6, 8081) as client, server.accept()[0]:
                    other.close()
                    client.sendall(b"ping")
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
                inner.sendall(b"pong")
                assert stands.recv(4) == b"pong"


def test_two_addresses_one_port(network: Network, outside: NetNS, new_ns: Callable[[], NetNS]) -> None:
    """A port of two addresses leads to two endpoints."""
    a, b = new_ns(), new_ns()
    one, other = network.attach(a), network.attach(b)
    with listen(a, str(one.address), 80) as first, listen(b, str(other.address), 80) as second:
        network.publish(80, one, 80, host=HOST)
        network.publish(80, other, 80, host=SECOND)
        assert reach(outside, HOST, 80, first) == OUTSIDE
        assert reach(outside, SECOND, 80, second) == OUTSIDE


def test_by_the_forwarder(network: Network, outside: NetNS, new_ns: Callable[[], NetNS]) -> None:
    """Who asks for the forwarder has nothing translated: the server sees the gateway."""
    ns = new_ns()
    endpoint = network.attach(ns)
    with listen(ns, str(endpoint.address), 80) as server:
        published = network.publish(8080, endpoint, 80, host=HOST, via="forwarder")
        assert published.via == "forwarder"
        assert reach(outside, HOST, 8080, server) == str(network.gateway)
        assert published.stats().connections == 1


@pytest.mark.parametrize("how", ["the port is closed", "the endpoint leaves"])
def test_connections_end_with_the_port(network: Network, outside: NetNS, new_ns: Callable[[], NetNS], how: str) -> None:
    """A connection that stands is reset when its port is closed or its endpoint leaves, and leads to nobody else."""
    ns, after = new_ns(), new_ns()
    endpoint = network.attach(ns)
    published = network.publish(8080, endpoint, 80, host=HOST)
    with listen(ns, str(endpoint.address), 80) as server, dial(outside, HOST, 8080) as client:
        inner, _ = server.accept()
        with inner:
            if how == "the port is closed":
                published.close()
            else:
                endpoint.detach()
                network.attach(after, address=endpoint.address)
            assert published.closed
            client.sendall(b"ping")
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_what_nft_sees(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """The program nft lists what is published, in the table that goes with this program, and no longer when it is closed."""
    endpoint = network.attach(new_ns())

    def published() -> list[tuple[str, ...]]:
        # As text: in JSON, nft 1.0.6 breaks off at a table that has an owner.
        found = run_in(None, "nft", "list", "ruleset")
        assert found.count("table ") == len(re.findall(r"^\tflags owner$", found, re.MULTILINE)) == 1
        return [tuple(row) for row in re.findall(r"(\S+) \. tcp \. (\d+) : \S+ \. (\d+)", found)]

    assert published() == []
    with network.publish(8080, endpoint, 80, host=HOST):
        assert published() == [(HOST, "8080", "8080")]
    assert published() == []


@pytest.mark.parametrize(
    "arguments", [{"host": "127.0.0.1"}, {"host": "::1"}, {"host": HOST, "elsewhere": True}, {"host": HOST, "without": True}]
)
def test_what_the_kernel_cannot(
    network: Network, outside: NetNS, new_ns: Callable[[], NetNS], arguments: dict[str, object]
) -> None:
    """Where the kernel cannot translate, who asks for that is told so; who does not gets a forwarder."""
    ns = new_ns()
    host = str(arguments["host"])
    with ExitStack() as stack:
        used = stack.enter_context(new_network("10.78.0.0/24")) if "without" in arguments else network
        endpoint = used.attach(ns)
        if "elsewhere" in arguments:
            stack.enter_context(outside.entered())
            host = OUTSIDE
        with pytest.raises(PlanError, match="via='kernel'"):
            used.publish(8080, endpoint, 80, host=host, via="kernel")
        assert used.publish(8080, endpoint, 80, host=host).via == "forwarder"


def test_bad_way(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """There are two ways, and no other."""
    with pytest.raises(PlanError, match="via='nat'"):
        network.publish(8080, network.attach(new_ns()), 80, via="nat")  # type: ignore[arg-type]


def test_port_in_use(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """A port that a program has is not taken from it, and one that is published cannot be published again."""
    endpoint = network.attach(new_ns())
    with listen(None, HOST, 8080), pytest.raises(SyscallError, match="in use"):
        network.publish(8080, endpoint, 80, host=HOST)
    with network.publish(8080, endpoint, 80, host=HOST), pytest.raises(SyscallError, match="in use"):
        network.publish(8080, endpoint, 81, host=HOST)
    with network.publish(8080, endpoint, 80, host=HOST) as published:
        assert published.via == "kernel"


def test_flows(new_ns: Callable[[], NetNS], network: Network, outside: NetNS) -> None:
    """The kernel tells of the connections of one server, that was meant or that answers; forgotten, one is there no longer."""
    ns = new_ns()
    endpoint = network.attach(ns)
    for port in (8080, 8081):
        network.publish(port, endpoint, 80, host=HOST)
    own = network.ns.netlink(NETFILTER)
    uplink = next(one.index for one in links(network.ns) if one.name == "uplink")
    end = next(one.interface.ip for one in addresses(network.ns) if one.index == uplink)
    meant = [conntrack.Server(socket.IPPROTO_TCP, end, port) for port in (8080, 8081)]
    answering = conntrack.Server(socket.IPPROTO_TCP, ip_address(str(endpoint.address)), 80)

    def flows(server: conntrack.Server, *, answers: bool = False) -> list[conntrack.Flow | None]:
        return list(map(conntrack.parse_flow, own.dump(conntrack.list_flows(server, answers=answers))))

    with listen(ns, str(endpoint.address), 80) as server, ExitStack() as stack:
        for port in (8080, 8081):
            stack.enter_context(dial(outside, HOST, port))
            stack.enter_context(server.accept()[0])
        found = [flows(one) for one in meant]
        assert [[(one.meant, one.answers) for one in each if one] for each in found] == [[(one, answering)] for one in meant]
        assert sorted(map(str, flows(answering, answers=True))) == sorted(str(one) for each in found for one in each)
        assert flows(answering) == flows(meant[0], answers=True) == []
        (flow,) = found[0]
        assert flow is not None
        own.ask(conntrack.forget_flow(flow))
        assert (flows(meant[0]), flows(meant[1])) == ([], found[1])
        with pytest.raises(SyscallError, match="IPCTNL_MSG_CT_DELETE"):
            own.ask(conntrack.forget_flow(flow))


@pytest.mark.parametrize("what", ["closed", "published"])
def test_other_ports_of_a_server(network: Network, outside: NetNS, new_ns: Callable[[], NetNS], what: str) -> None:
    """A connection goes on when another port that leads to the same server is closed, or one more is published."""
    ns = new_ns()
    endpoint = network.attach(ns)
    with listen(ns, str(endpoint.address), 80) as server:
        other = network.publish(8081, endpoint, 80, host=HOST)
        network.publish(8080, endpoint, 80, host=HOST)
        with dial(outside, HOST, 8080) as client, server.accept()[0] as inner:
            if what == "closed":
                other.close()
            else:
                network.publish(8082, endpoint, 80, host=HOST)
            inner.sendall(b"pong")  # first: what comes from outside would be translated anew
            assert client.recv(4) == b"pong"


def test_who_comes_after(network: Network, outside: NetNS, new_ns: Callable[[], NetNS]) -> None:
    """Who has sent to a port that is closed by now does not come to another server, at the same port of another address."""
    spaces = new_ns(), new_ns()
    first, second = (network.attach(ns) for ns in spaces)
    with (
        socket_in(spaces[0], socket.SOCK_DGRAM) as one,
        socket_in(spaces[1], socket.SOCK_DGRAM) as other,
        socket_in(outside, socket.SOCK_DGRAM) as client,
        socket_in(outside, socket.SOCK_DGRAM) as later,
    ):
        one.bind((str(first.address), 53))
        other.bind((str(second.address), 53))
        client.connect((HOST, 53))
        with network.publish(53, first, 53, host=HOST, proto="udp"):
            client.send(b"to the first")
            assert one.recv(20) == b"to the first"
        network.publish(53, second, 53, host=SECOND, proto="udp")
        client.send(b"to nobody")
        later.sendto(b"to the second", (SECOND, 53))
        assert other.recv(20) == b"to the second"
