"""Ports that lead into a network, and names by which those in it find each other."""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import pytest

import isolib
from isolib import ClosedError, PlanError, SyscallError
from isolib.net import new_network
from tests.nets import PATIENCE, listen, socket_in

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from isolib.namespaces import NetNS
    from isolib.net import Endpoint, Network

pytestmark = pytest.mark.usefixtures("user_namespaces")


def address_of(endpoint: Endpoint) -> IPv4Address:
    """Return its IPv4 address."""
    assert endpoint.address is not None
    return endpoint.address


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_published_tcp(network: Network, ns: NetNS, host: str) -> None:
    """Who comes to a published port speaks with the server in the endpoint, both ways and to the end."""
    endpoint = network.attach(ns)
    with listen(ns, address_of(endpoint), 80) as server, network.publish(0, endpoint, 80, host=host) as published:
        with socket.create_connection((host, published.port), PATIENCE) as client:
            inner, peer = server.accept()
            assert peer[0] == str(network.gateway)
            with inner:
                client.sendall(b"question")
                client.shutdown(socket.SHUT_WR)
                assert inner.makefile("rb").read() == b"question"
                inner.sendall(b"answer")
            assert client.makefile("rb").read() == b"answer"
        assert published.stats().connections == 1


def test_published_udp(network: Network, ns: NetNS) -> None:
    """Datagrams to a published port come to the endpoint, and their answers back."""
    endpoint = network.attach(ns)
    with (
        socket_in(ns, socket.SOCK_DGRAM) as server,
        network.publish(0, endpoint, 5353, proto="udp") as published,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((str(endpoint.address), 5353))
        client.settimeout(PATIENCE)
        client.sendto(b"ping", ("127.0.0.1", published.port))
        data, back = server.recvfrom(16)
        server.sendto(data[::-1], back)
        assert client.recv(16) == b"gnip"


def test_unpublished(network: Network, ns: NetNS) -> None:
    """A port is free again, and nobody is let in, once it is not published any more."""
    endpoint = network.attach(ns)
    with listen(ns, address_of(endpoint), 80):
        published = network.publish(0, endpoint, 80)
        published.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", published.port), PATIENCE)
        with network.publish(published.port, endpoint, 80) as again:
            assert again.port == published.port


def test_port_in_use(network: Network, ns: NetNS) -> None:
    """A port that somebody has is refused, and named."""
    endpoint = network.attach(ns)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SyscallError, match=f"127.0.0.1 port {port}") as caught:
            network.publish(port, endpoint, 80)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"host_port": 65536}, "host_port"),
        ({"host_port": -1}, "host_port"),
        ({"port": 0}, "port"),
        ({"proto": "sctp"}, "sctp"),
        ({"host": "localhost"}, "localhost"),
    ],
)
def test_bad_publications(network: Network, ns: NetNS, arguments: dict[str, object], words: str) -> None:
    """What cannot be published is refused, and the argument named."""
    endpoint = network.attach(ns)
    options = {"host_port": 0, "port": 80} | arguments
    with pytest.raises(PlanError, match=words):
        network.publish(options.pop("host_port"), endpoint, options.pop("port"), **options)  # type: ignore[arg-type]


def test_strangers_endpoint(network: Network, ns: NetNS) -> None:
    """Only endpoints of the network can be published, as long as they are attached."""
    endpoint = network.attach(ns)
    endpoint.detach()
    with pytest.raises(PlanError, match="is none of"):
        network.publish(0, endpoint, 80)


def test_published_port_goes_with_its_endpoint(network: Network, ns: NetNS) -> None:
    """A port leads to nobody else, who has got the endpoint's address since."""
    endpoint = network.attach(ns)
    published = network.publish(0, endpoint, 80)
    endpoint.detach()
    assert published.closed
    again = network.attach(ns, address=str(endpoint.address))
    with listen(ns, address_of(again), 80), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", published.port), PATIENCE)


def test_nothing_is_published_after_the_end(ns: NetNS) -> None:
    """With the network its published ports are closed."""
    with new_network() as network:
        published = network.publish(0, network.attach(ns), 80)
    assert published.closed
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", published.port), PATIENCE)
    with pytest.raises(ClosedError):
        network.publish(0, published.endpoint, 80)


# ---- names ----


def ask(ns: NetNS, server: object, name: str, kind: str = "A") -> tuple[str, list[str]]:
    """Ask a name server from within a namespace."""
    query = dns.message.make_query(name, kind)
    with socket_in(ns, socket.SOCK_DGRAM) as client:
        client.sendto(query.to_wire(), (str(server), 53))
        reply = dns.message.from_wire(client.recv(4096))
    assert reply.id == query.id
    return dns.rcode.to_text(reply.rcode()), [item.to_text() for answer in reply.answer for item in answer]


def test_names(network: Network, ns: NetNS) -> None:
    """Each endpoint finds the others by name at the gateway, as long as they are there."""
    with ExitStack() as stack:
        other = isolib.new_netns()
        stack.callback(other.close)
        network.attach(ns, hostname="web")
        database = network.attach(other, hostname="db")
        assert ask(ns, network.gateway, "db") == ("NOERROR", [str(database.address)])
        assert ask(ns, network.gateway, "DB.", "AAAA") == ("NOERROR", [str(database.ipv6)])
        assert ask(other, network.gateway, "web")[1] == ["10.77.0.2"]
        assert ask(ns, network.gateway, "3.0.77.10.in-addr.arpa", "PTR") == ("NOERROR", ["db."])
        assert f"{database.address}\tdb" in network.hosts()
        database.detach()
        assert ask(ns, network.gateway, "db") == ("NXDOMAIN", [])
        assert "db" not in network.hosts()
    assert network.resolv_conf().splitlines()[:2] == ["nameserver 10.77.0.1", "nameserver fd77::1"]


def test_no_names_no_thread(ns: NetNS) -> None:
    """A network in which nobody has a name costs no thread."""
    before = threading.active_count()
    with new_network() as network:
        network.attach(ns)
        assert threading.active_count() == before


@pytest.mark.parametrize("hostname", ["a b", "-", "a" * 64, "ä"])
def test_bad_names(network: Network, ns: NetNS, hostname: str) -> None:
    """What cannot be asked for is no host name."""
    with pytest.raises(PlanError, match="hostname"):
        network.attach(ns, hostname=hostname)
    assert network.endpoints() == []
