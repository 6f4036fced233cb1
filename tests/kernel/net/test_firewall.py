"""The firewall of a network, on a small internet: packets really pass, are translated, or do not pass.

    far --- wan[ host ]down0 --- up0[ router ]br0 --- a, b

The host stands for the machine, in a namespace that is none of ours; the router is where a network's bridge is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib._kernel.netlink import nft_match
from isolib._kernel.netlink.nft import INET, SUBSYSTEM, Element, Hook, Scope, parse_rule
from isolib._kernel.netlink.nft_expressions import DROP, Counter
from isolib._kernel.netlink.socket import NETFILTER, open_netlink
from isolib.errors import PlanError, SyscallError
from isolib.net.firewall import BRIDGE_SETTINGS, Group, open_firewall
from tests import by_nft
from tests.examined import nft_can
from tests.nets import PATIENCE, dial, family_of, listen, reach, socket_in, talk, until
from tests.oracles import agree
from tests.packets import checksum
from tests.wires import Lab, add, address, connect, look, plug, route, sysctl, up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.namespaces import NetNS
    from isolib.net.firewall import Firewall

NET4, NET6 = ip_network("10.0.0.0/24"), ip_network("fd00:1::/64")
LINK4, LINK6 = ip_network("10.200.0.0/24"), ip_network("fd00:2::/64")
#: Where each is, by protocol.
FAR = {4: "203.0.113.9", 6: "2001:db8::9"}
HOST = {4: "203.0.113.1", 6: "2001:db8::1"}
ROUTER = {4: "10.200.0.2", 6: "fd00:2::2"}
GATEWAY = {4: "10.0.0.1", 6: "fd00:1::1"}
A = {4: "10.0.0.2", 6: "fd00:1::2"}
B = {4: "10.0.0.3", 6: "fd00:1::3"}
BOTH = pytest.mark.parametrize("version", [4, 6])
CLOSED = (ConnectionRefusedError, PermissionError)  # a reset; "administratively prohibited"


@dataclass
class Internet:
    """The namespaces, and the two firewalls."""

    far: NetNS
    host: NetNS
    router: NetNS
    a: NetNS
    b: NetNS
    outer: Firewall
    inner: Firewall


@pytest.fixture
def lab(user_namespaces: None) -> Iterator[Lab]:
    """Return a place for namespaces."""
    if not nft_can("add table inet tried { flags owner; }"):
        pytest.skip("the program nft makes no table of its own here")
    with Lab() as made:
        yield made


@pytest.fixture
def net(lab: Lab) -> Internet:
    """Return the small internet, with both firewalls as a network has them that has internet."""
    far, host, router, a, b = (lab.namespace() for _ in range(5))
    for forwards in (host, router):
        sysctl(forwards, "net.ipv4.ip_forward", "1")
        sysctl(forwards, "net.ipv6.conf.all.forwarding", "1")
    add(router, "br0", "bridge")
    up(router, "br0")
    connect(far, "eth0", host, "wan")
    connect(host, "down0", router, "up0")
    for name, end in (("a", a), ("b", b)):
        connect(router, name, end, "eth0")
        plug(router, name, "br0")
    sysctl(router, "net.ipv4.conf.br0.send_redirects", "0")
    unhook(router, on=False)
    address(far, "eth0", f"{FAR[4]}/24", f"{FAR[6]}/64")
    address(host, "wan", f"{HOST[4]}/24", f"{HOST[6]}/64")
    address(host, "down0", "10.200.0.1/24", "fd00:2::1/64")
    address(router, "up0", f"{ROUTER[4]}/24", f"{ROUTER[6]}/64")
    address(router, "br0", f"{GATEWAY[4]}/24", f"{GATEWAY[6]}/64")
    address(a, "eth0", f"{A[4]}/24", f"{A[6]}/64")
    address(b, "eth0", f"{B[4]}/24", f"{B[6]}/64")
    for where, gateway4, gateway6 in (
        *((end, GATEWAY[4], GATEWAY[6]) for end in (a, b)),
        (router, "10.200.0.1", "fd00:2::1"),
        (far, HOST[4], HOST[6]),
    ):
        route(where, "0.0.0.0/0", gateway4)
        route(where, "::/0", gateway6)
    route(host, "10.0.0.0/24", ROUTER[4])
    route(host, "fd00:1::/64", ROUTER[6])
    outer = lab.enter_context(open_firewall(host, "lab", subnets=(LINK4, LINK6)))
    inner = lab.enter_context(open_firewall(router, "lab", private=True, subnets=(NET4, NET6)))
    with outer.together():
        outer.guard_loopback("down0")
        outer.route("down0")
        outer.masquerade(LINK4, "wan")
        outer.masquerade(LINK6, "wan")
    with inner.together():
        inner.guard_loopback()
        inner.serve("br0", [("udp", 53)])
        inner.route("br0", "up0")
        inner.masquerade(NET4, "up0")
        inner.masquerade(NET6)
    return Internet(far, host, router, a, b, outer, inner)


def unhook(net: NetNS, *, on: bool) -> None:
    """Say whether the kernel shows frames from port to port to the tables of family inet too, where it can (br_netfilter)."""
    for name in BRIDGE_SETTINGS:
        try:
            sysctl(net, name, str(int(on)))
        except SyscallError as error:
            if error.errno != errno.ENOENT:
                raise


def nft(net: NetNS, *argv: str, text: str = "") -> str:
    """Return what the program nft prints in a namespace."""
    with net.spawn(["nft", *argv], stdin=isolib.PIPE, stdout=isolib.PIPE, stderr=isolib.STDOUT) as process:
        out, _ = process.communicate(text.encode(), timeout=PATIENCE)
        assert process.wait().returncode == 0, out
        return (out or b"").decode()


def counted(firewall: Firewall, comment: str, least: int = 1) -> int:
    """Return how many packets rules have counted, once there are so many: the last steps of a packet are nobody's call."""
    assert until(lambda: firewall.counters()[comment].packets >= least), firewall.counters()[comment]
    return firewall.counters()[comment].packets


def knock(client: NetNS, host: str, port: int) -> socket.socket:
    """Begin to connect, and do not wait."""
    made = socket_in(client, family=family_of(host))
    made.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        made.connect((host, port))
    return made


# ---- translation ----


@BOTH
def test_masquerade(net: Internet, version: int) -> None:
    """Who is reached from inside sees the host's own address."""
    with listen(net.far, FAR[version], 80) as server:
        assert reach(net.a, FAR[version], 80, server) == HOST[version]


@BOTH
def test_publish(net: Internet, version: int) -> None:
    """A published port leads from the host's address to the endpoint: from outside, and from the host itself."""
    net.outer.publish("tcp", None, 8080, ROUTER[version], 8081)
    net.inner.publish("tcp", None, 8081, A[version], 80)
    with listen(net.a, A[version], 80) as server:
        assert reach(net.far, HOST[version], 8080, server) == FAR[version]
        assert reach(net.host, HOST[version], 8080, server) == HOST[version]


@BOTH
def test_publish_datagrams(net: Internet, version: int) -> None:
    """UDP is published too, and the answer comes from where the question went."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    net.outer.publish("udp", HOST[version], 5353, ROUTER[version], 5353)
    net.inner.publish("udp", ROUTER[version], 5353, A[version], 53)
    with socket_in(net.a, socket.SOCK_DGRAM, family) as server, socket_in(net.far, socket.SOCK_DGRAM, family) as client:
        server.bind((A[version], 53))
        client.sendto(b"who?", (HOST[version], 5353))
        question, peer = server.recvfrom(100)
        assert (question, peer[0]) == (b"who?", FAR[version])
        server.sendto(b"me", peer)
        answer, peer = client.recvfrom(100)
        assert (answer, peer[0]) == (b"me", HOST[version])


@BOTH
def test_unpublished_ports_are_closed(net: Internet, version: int) -> None:
    """What is not published is refused at once, from outside and from the host's other side, route or no route."""
    net.inner.publish("tcp", None, 8081, A[version], 80)
    with listen(net.a, A[version], 80), listen(net.a, A[version], 81):
        for port in (80, 81):
            with pytest.raises(CLOSED):
                dial(net.far, A[version], port)
        with pytest.raises(CLOSED):
            dial(net.host, A[version], 80)
        with pytest.raises(CLOSED):
            dial(net.host, ROUTER[version], 81)


def test_unpublish(net: Internet) -> None:
    """After it, nobody gets there any more; the one beside it is still there, and it can be published anew."""
    for port in (8081, 8082):
        net.inner.publish("tcp", None, port, A[4], 80)
    with listen(net.a, A[4], 80) as server:
        reach(net.host, ROUTER[4], 8081, server)
        net.inner.unpublish("tcp", None, 8081)
        with pytest.raises(CLOSED):
            dial(net.host, ROUTER[4], 8081)
        reach(net.host, ROUTER[4], 8082, server)
        net.inner.publish("tcp", "0.0.0.0", 8081, B[4], 80)
        assert net.inner.published[next(iter(net.inner.published))].port == 80
    with listen(net.b, B[4], 80) as server:
        reach(net.host, ROUTER[4], 8081, server)


def test_publish_on_one_address(net: Internet) -> None:
    """A port of one address is not open at others."""
    net.inner.publish("tcp", GATEWAY[4], 8081, A[4], 80)
    with listen(net.a, A[4], 80) as server:
        reach(net.b, GATEWAY[4], 8081, server)
        with pytest.raises(CLOSED):
            dial(net.host, ROUTER[4], 8081)


@BOTH
def test_hairpin(net: Internet, version: int) -> None:
    """An endpoint reaches itself and its neighbour by a published port, at the gateway's and at the host's address."""
    net.outer.publish("tcp", None, 8080, ROUTER[version], 8081)
    net.inner.publish("tcp", None, 8081, A[version], 80)
    with listen(net.a, A[version], 80) as server:
        for who in (net.a, net.b):
            assert reach(who, GATEWAY[version], 8081, server) == GATEWAY[version]
            reach(who, HOST[version], 8080, server)


# ---- what may be reached ----


@BOTH
def test_deny_and_allow(net: Internet, version: int) -> None:
    """A destination that is denied is refused from then on, by a connection that stands too; allowed again, it is reached."""
    far = f"{FAR[version]}/{24 if version == 4 else 64}"
    with listen(net.far, FAR[version], 80) as server, dial(net.a, FAR[version], 80) as standing:
        talk(server, standing)
        net.inner.deny(str(ip_network(far, strict=False)))
        with pytest.raises(CLOSED):
            dial(net.a, FAR[version], 80)
        net.inner.allow(FAR[version])
        reach(net.a, FAR[version], 80, server)
    assert net.inner.counters()["egress"].packets >= 1


def test_denied_connections_break(net: Internet) -> None:
    """What a standing connection sends to a denied destination resets it."""
    with listen(net.far, FAR[4], 80) as server, dial(net.a, FAR[4], 80) as client:
        accepted, _ = server.accept()
        with accepted:
            net.inner.deny(FAR[4])
            client.sendall(b"too late")
            with pytest.raises(ConnectionResetError):
                client.recv(100)


def test_denied_destinations_still_get_answers(net: Internet) -> None:
    """Who is denied as a destination, and comes to a published port himself, is answered."""
    net.outer.publish("tcp", None, 8080, ROUTER[4], 8081)
    net.inner.publish("tcp", None, 8081, A[4], 80)
    net.inner.deny("0.0.0.0/0", "::/0")
    with listen(net.a, A[4], 80) as server:
        assert reach(net.far, HOST[4], 8080, server) == FAR[4]


def test_allow_list(net: Internet) -> None:
    """Closed, only what is allowed is reached; neighbours always are."""
    net.inner.set_open(False)
    with listen(net.far, FAR[4], 80) as server, listen(net.b, B[4], 80) as beside:
        with pytest.raises(CLOSED):
            dial(net.a, FAR[4], 80)
        reach(net.a, B[4], 80, beside)
        net.inner.allow("203.0.113.8/31")
        reach(net.a, FAR[4], 80, server)
        net.inner.set_open(True)
        net.inner.deny("203.0.113.8/31")
        with pytest.raises(CLOSED):
            dial(net.a, FAR[4], 80)


def test_many_decisions_at_once(net: Internet) -> None:
    """Thousands of networks are one change, and the kernel has what was computed."""
    networks = [ip_network((0x20000000 + (number << 12), 24)) for number in range(3000)]
    net.inner.deny(*networks)
    found = net.inner.elements("refused4")
    assert [one.key for one in found] == [one.network_address.packed for one in networks]
    assert all(int.from_bytes(one.end or b"", "big") - int.from_bytes(one.key, "big") == 256 for one in found)
    net.inner.allow(*networks)
    assert net.inner.elements("refused4") == []


def test_decisions_of_one_block(net: Internet) -> None:
    """Decisions that take each other back are one change, and the kernel has the last of them."""
    net.inner.deny("192.0.2.0/24")
    with net.inner.together():
        net.inner.set_open(False)
        net.inner.allow("203.0.113.8/31", "2001:db8::/32", "192.0.2.0/25")
        net.inner.deny("203.0.113.8/31", "192.0.2.0/25")
        net.inner.set_open(True)
        net.inner.allow("192.0.2.0/24", "192.0.2.0/25")
    assert net.inner.elements("refused4") == [Element(ip_address("203.0.113.8").packed, ip_address("203.0.113.10").packed)]
    assert net.inner.elements("refused6") == []


def test_a_port_of_one_block(net: Internet) -> None:
    """What is published and no more in one block, and again, is as it was said last."""
    with net.inner.together():
        for target in (A[4], B[4]):
            net.inner.publish("tcp", None, 8081, target, 80)
            net.inner.unpublish("tcp", None, 8081)
        net.inner.publish("tcp", None, 8081, A[4], 81)
    (element,) = net.inner.elements("open4")
    assert element.value == ip_address(A[4]).packed + b"\0\x51\0\0"
    with net.inner.together():
        net.inner.unpublish("tcp", None, 8081)
        net.inner.publish("tcp", None, 8081, A[4], 80)
        net.inner.unpublish("tcp", None, 8081)
    assert net.inner.elements("open4") == []


def test_only_outward(net: Internet, lab: Lab) -> None:
    """A network that has no internet reaches nothing outside, and answers by its published ports all the same."""
    net.inner.close()
    nft(net.router, "flush", "ruleset")
    with open_firewall(net.router, "closed", private=True, subnets=(NET4, NET6)) as inner:
        inner.route("br0", "up0", outward=False)
        inner.publish("tcp", None, 8081, A[4], 80)
        with listen(net.far, FAR[4], 80), pytest.raises(CLOSED):
            dial(net.a, FAR[4], 80)
        with listen(net.a, A[4], 80) as server:
            reach(net.host, ROUTER[4], 8081, server)


def test_networks_do_not_reach_each_other(net: Internet, lab: Lab) -> None:
    """What is behind one network's interface of the host is not reached from behind another's, but by its published ports."""
    other = lab.namespace()
    connect(net.host, "down1", other, "eth0")
    address(net.host, "down1", "10.201.0.1/24")
    address(other, "eth0", "10.201.0.2/24")
    route(other, "0.0.0.0/0", "10.201.0.1")
    route(net.router, "10.201.0.0/24", "10.200.0.1")
    with open_firewall(net.host, "other") as firewall:
        firewall.route("down1")
        net.outer.publish("tcp", None, 8080, ROUTER[4], 8081)
        net.inner.publish("tcp", None, 8081, A[4], 80)
        with listen(net.a, A[4], 80) as server, listen(net.router, ROUTER[4], 99), listen(other, "10.201.0.2", 80):
            for host, port in ((A[4], 80), (ROUTER[4], 99)):
                with pytest.raises(CLOSED):
                    dial(other, host, port)
            with pytest.raises(CLOSED):
                dial(net.a, "10.201.0.2", 80)
            assert reach(other, HOST[4], 8080, server) == "10.201.0.2"


# ---- the namespace itself ----


@BOTH
def test_services(net: Internet, version: int) -> None:
    """Of the router, endpoints reach the ports that were named, and no others, at whatever address."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    every = "0.0.0.0" if version == 4 else "::"
    with listen(net.router, every, 22), socket_in(net.router, socket.SOCK_DGRAM, family) as names:
        for host in (GATEWAY[version], ROUTER[version]):
            with pytest.raises(CLOSED):
                dial(net.a, host, 22)
        names.bind((every, 53))
        with socket_in(net.a, socket.SOCK_DGRAM, family) as client:
            client.sendto(b"who?", (GATEWAY[version], 53))
            question, peer = names.recvfrom(100)
            names.sendto(question, peer)
            assert client.recv(100) == b"who?"
    assert counted(net.inner, "closed ports") >= 2


def datagram(source: str, destination: str, port: int, text: bytes) -> bytes:
    """Return a packet of UDP over IPv4."""
    udp = struct.pack(">HHHH", 4000, port, 8 + len(text), 0) + text
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, *map(socket.inet_aton, (source, destination)))
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + udp


def send_frame(net: Internet, destination: str, source: str = A[4]) -> None:
    """Have endpoint a send a frame to the router that its own kernel would not."""
    with socket_in(net.a, socket.SOCK_RAW, socket.AF_PACKET) as wire:
        wire.bind(("eth0", 0))
        frame = look(net.router, "br0")[1] + look(net.a, "eth0")[1] + b"\x08\x00"
        wire.send(frame + datagram(source, destination, 53, b"for loopback"))


def test_loopback_is_not_routed(net: Internet) -> None:
    """A frame for 127.0.0.1 that an endpoint puts on the wire is dropped, even where the kernel was told to take such."""
    sysctl(net.router, "net.ipv4.conf.all.route_localnet", "1")
    with socket_in(net.router, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 53))
        send_frame(net, "127.0.0.1")
        assert counted(net.inner, "loopback") == 1
        service.settimeout(0)
        with pytest.raises(BlockingIOError):
            service.recv(100)
        # That it would have come without the rule: else this proves nothing.
        net.inner.close()
        nft(net.router, "flush", "ruleset")
        send_frame(net, "127.0.0.1")
        service.settimeout(PATIENCE)
        assert service.recv(100) == b"for loopback"


# ---- between endpoints ----


def advertisement() -> bytes:
    """Return the part of an ICMPv6 router advertisement behind its checksum."""
    return struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)


def kinds_heard(heard: socket.socket) -> set[int]:
    """Return which ICMPv6 messages come, up to the first ping."""
    kinds: set[int] = set()
    while 128 not in kinds:
        kinds.add(heard.recv(1000)[0])
    return kinds


def test_no_port_is_a_router(net: Internet) -> None:
    """An advertisement that an endpoint sends to all comes neither to its neighbour nor to the router; a ping does."""
    net.inner.guard_ports()
    raw = socket.SOCK_RAW, socket.AF_INET6, socket.IPPROTO_ICMPV6
    with socket_in(net.b, *raw) as beside, socket_in(net.router, *raw) as above, socket_in(net.a, *raw) as liar:
        everybody = ("ff02::1", 0, 0, look(net.a, "eth0")[0])
        liar.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        liar.sendto(advertisement(), everybody)
        liar.sendto(struct.pack(">BBHHH", 128, 0, 0, 1, 1), everybody)
        assert 134 not in kinds_heard(beside) | kinds_heard(above)
    assert counted(net.inner, "router") >= 1


def test_isolation(net: Internet) -> None:
    """Isolated endpoints reach each other by published ports only, and everything else as before; and then again all."""
    net.inner.publish("tcp", None, 8081, A[4], 80)
    net.inner.isolate()
    with listen(net.a, A[4], 80) as server, listen(net.far, FAR[4], 80) as far:
        with knock(net.b, A[4], 80):
            counted(net.inner, "isolation")
        route(net.b, f"{A[4]}/32", GATEWAY[4])
        with pytest.raises(CLOSED):
            dial(net.b, A[4], 80)
        reach(net.b, GATEWAY[4], 8081, server)
        reach(net.b, FAR[4], 80, far)
        net.inner.isolate(isolated=False)
        reach(net.b, A[4], 80, server)


@BOTH
def test_isolation_by_the_gateway(net: Internet, version: int) -> None:
    """Endpoints that send their packets to each other by the gateway are refused where there is nothing between them."""
    net.inner.close()
    nft(net.router, "flush", "ruleset")
    length = 32 if version == 4 else 128
    with (
        open_firewall(net.router, "apart", private=True, subnets=(NET4, NET6)) as inner,
        listen(net.a, A[version], 80) as server,
    ):
        inner.route("br0", "up0", between=False)
        inner.publish("tcp", None, 8081, A[version], 80)
        for end, other in ((net.a, B), (net.b, A)):
            route(end, f"{other[version]}/{length}", GATEWAY[version])
        with pytest.raises(CLOSED):
            dial(net.b, A[version], 80)
        reach(net.b, GATEWAY[version], 8081, server)


@BOTH
def test_partition_and_heal(net: Internet, version: int) -> None:
    """Parted endpoints lose each other, directly and by published ports, and keep everybody else; healed, all is as before."""
    net.inner.publish("tcp", None, 8081, A[version], 80)
    groups = [Group((name,), (ip_address(one[4]), ip_address(one[6]))) for name, one in (("a", A), ("b", B))]
    with listen(net.a, A[version], 80) as server, listen(net.far, FAR[version], 80) as far:
        with dial(net.b, A[version], 80) as standing:
            talk(server, standing)
        net.inner.partition(*groups)
        for host, port in ((A[version], 80), (GATEWAY[version], 8081)):
            before = net.inner.counters()["partition"].packets
            with knock(net.b, host, port):
                counted(net.inner, "partition", before + 1)
        for who in (net.a, net.b):
            reach(who, FAR[version], 80, far)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
        net.inner.partition(*reversed(groups))  # anew
        net.inner.heal()
        assert [one for one in net.inner.rules() if one.chain == "partition"] == []
        reach(net.b, A[version], 80, server)


def test_frames_that_are_shown_to_all_tables(net: Internet) -> None:
    """Where br_netfilter shows the frames between ports to the inet table, they pass, and a partition still holds them."""
    unhook(net.router, on=True)
    with listen(net.a, A[4], 80) as server:
        reach(net.b, A[4], 80, server)
        net.inner.partition(Group(("a",)), Group(("b",)))
        with knock(net.b, A[4], 80):
            counted(net.inner, "partition")


def test_who_is_in_no_group_reaches_all(net: Internet) -> None:
    """A partition of others does not touch an endpoint."""
    net.inner.partition(Group(("a",)), Group(("c", "d"), (ip_address("10.0.0.9"),)))
    with listen(net.a, A[4], 80) as server:
        reach(net.b, A[4], 80, server)


def test_bad_weather(net: Internet) -> None:
    """A rule with `lose` takes about its share of the packets."""
    with open_netlink(net.a, NETFILTER) as netfilter:
        scope = Scope(INET, "weather")
        lost = nft_match.rule(nft_match.port("udp", 9), nft_match.lose(0.25), nft_match.count(), DROP)
        requests = (scope.new(owned=False), scope.new_chain("out", Hook(3, 0)), scope.add("out", lost))
        netfilter.batch(SUBSYSTEM, *requests)
        with socket_in(net.a, socket.SOCK_DGRAM) as client:
            for _ in range(2000):
                with contextlib.suppress(PermissionError):
                    client.sendto(b"", (B[4], 9))
        (rule,) = (parse_rule(one) for one in netfilter.dump(scope.rules()))
    (counter,) = (one for one in rule.expressions if isinstance(one, Counter))
    assert 380 < counter.packets < 620  # six standard deviations


# ---- all or nothing, and to the end ----


def test_a_bad_change_changes_nothing(net: Internet) -> None:
    """When the kernel refuses one request of several, none is carried out, and what is known of the tables is as before."""
    before = net.inner.rules()

    def go() -> None:
        with net.inner._gathering() as changes:
            net.inner.publish("tcp", None, 8081, A[4], 80)
            net.inner.deny("0.0.0.0/0")
            changes.requests.append(changes.inet.add("forward", nft_match.jump("nowhere")))
            net.inner.masquerade(LINK4)

    with pytest.raises(SyscallError) as caught:
        go()
    assert caught.value.errno == errno.ENOENT
    assert caught.value.op == "NFT_MSG_NEWRULE"
    assert "rule of forward" in str(caught.value)
    assert net.inner.rules() == before
    assert net.inner.elements("refused4") == []
    assert not net.inner.published
    net.inner.publish("tcp", None, 8081, A[4], 80)
    assert len(net.inner.elements("open4")) == 1


def test_a_bad_argument_changes_nothing(net: Internet) -> None:
    """What raises before anything is sent leaves the others of its block undone; caught within the block, only itself."""

    def go() -> None:
        with net.inner.together():
            for _ in range(2):
                net.inner.publish("tcp", None, 8081, A[4], 80)

    with pytest.raises(PlanError, match="published already"):
        go()
    assert not net.inner.published
    with net.inner.together():
        net.inner.publish("tcp", None, 8081, A[4], 80)
        with pytest.raises(PlanError, match="not published"):
            net.inner.unpublish("tcp", None, 8082)
    assert len(net.inner.elements("open4")) == 1


def test_a_block_within_a_block(net: Internet) -> None:
    """What an inner block did before it raised is not done, and what it would have made is made by who comes next."""
    with net.inner.together():
        with contextlib.suppress(KeyError), net.inner.together():
            net.inner.publish("tcp", None, 8082, A[4], 80)
            raise KeyError
        net.inner.publish("tcp", None, 8081, A[4], 80)
    assert [port.port for port in net.inner.published] == [8081]
    assert len(net.inner.elements("open4")) == 1


def test_two_of_one_name(net: Internet) -> None:
    """A second firewall of one name in one namespace is refused, and leaves the first as it is."""
    before = net.outer.rules()
    with pytest.raises(SyscallError) as caught:
        open_firewall(net.host, "lab")
    assert caught.value.errno == errno.EPERM
    assert "a table of this name" in str(caught.value)
    assert net.outer.rules() == before


def test_it_goes_with_its_socket(net: Internet) -> None:
    """Closed, the host's tables are gone."""
    net.outer.guard_ports()
    assert nft(net.host, "list", "tables").splitlines() == ["table inet isolib-lab", "table bridge isolib-lab"]
    net.outer.close()
    net.outer.close()
    assert nft(net.host, "list", "tables") == ""


def test_it_survives_a_flush(net: Internet) -> None:
    """Others who flush all tables do not get at the host's one, nor can they remove it."""
    before = net.outer.rules()
    nft(net.host, "flush", "ruleset")
    assert net.outer.rules() == before
    with net.host.spawn(["nft", "delete", "table", "inet", "isolib-lab"], stderr=isolib.DEVNULL) as process:
        assert process.wait(PATIENCE).returncode != 0
    assert net.outer.rules() == before


HOLDER = """
import isolib, sys
from isolib.net.firewall import open_firewall
firewall = open_firewall(None, "killed")
firewall.guard_loopback()
print("ready", flush=True)
sys.stdin.read()
"""


def test_it_goes_with_a_killed_process(net: Internet) -> None:
    """After kill -9 of who made it, nothing of it is in the namespace."""
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    with net.host.spawn([sys.executable, "-c", HOLDER], stdin=isolib.PIPE, stdout=isolib.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert "isolib-killed" in nft(net.host, "list", "tables")
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    assert "isolib-killed" not in nft(net.host, "list", "tables")


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, "\0"])
def test_names_that_are_none(name: str) -> None:
    """A name that no table can have is refused before anything is asked of the kernel."""
    with pytest.raises(PlanError, match="name"):
        open_firewall(None, name)


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ((), "two groups at least"),
        ((Group(("a",)),), "two groups at least"),
        ((Group(("a", "b")), Group(("c", "a"))), "in two groups: a"),
        ((Group(("a",), (ip_address(A[4]),)), Group(("b",), (ip_address(A[4]),))), f"in two groups: {A[4]}"),
    ],
)
def test_partitions_that_are_none(net: Internet, groups: tuple[Group, ...], why: str) -> None:
    """What parts nobody, or one from himself, is refused, and changes nothing."""
    before = net.inner.rules()
    with pytest.raises(PlanError, match=why):
        net.inner.partition(*groups)
    assert net.inner.rules() == before


@pytest.mark.parametrize("destination", ["example.org", "10.0.0.1/24", "", "10.0.0.0/33", None, 7, b"\x0a\0\0\0"])
def test_destinations_that_are_none(net: Internet, destination: str) -> None:
    """What is no address and no network is refused: a name is looked up by who asks, not here."""
    with pytest.raises(PlanError, match="destination"):
        net.inner.deny(destination)


# ---- nft says the same ----


def test_nft_lists_the_same(net: Internet) -> None:
    """The program nft shows the same rules, word for word, with the same numbers, comments and counters, and the same sets."""
    net.inner.partition(Group(("a",), (ip_address(A[4]),)), Group(("b",), (ip_address(B[4]),)))
    net.inner.publish("tcp", None, 8081, A[4], 80)
    net.inner.publish("udp", GATEWAY[6], 8082, A[6], 53)
    net.inner.deny("192.0.2.0/24", "64.0.0.0/2", "2001:db8:1::/48")
    net.inner.isolate()
    for firewall, ns in ((net.inner, net.router), (net.outer, net.host)):

        def theirs(ns: NetNS = ns) -> list[object]:
            return [by_nft.told(one) for one in by_nft.of_kind(by_nft.ruleset(ns), "rule")]

        assert agree(lambda firewall=firewall: [by_nft.said(one) for one in firewall.rules()], theirs)  # type: ignore[misc]
        listed = by_nft.ruleset(ns)
        for one in by_nft.of_kind(listed, "set") + by_nft.of_kind(listed, "map"):
            if one["family"] == "inet":
                assert by_nft.elements(one) == firewall.elements(one["name"]), one


def test_nft_lists_sets(net: Internet) -> None:
    """The program nft shows what is published, denied and parted as what it is."""
    net.inner.publish("tcp", GATEWAY[4], 8081, A[4], 80)
    net.inner.publish("udp", None, 8082, A[6], 53)
    net.inner.deny("192.0.2.0/24", "198.51.100.7", "64.0.0.0/2", "2001:db8:1::/48")
    net.inner.allow("192.0.2.128/25")
    net.inner.partition(Group(("a",)), Group(("b",)))
    listed = nft(net.router, "list", "ruleset")
    for line in (
        f"{GATEWAY[4]} . tcp . 8081 : {A[4]} . 80",
        f"udp . 8082 : {A[6]} . 53",
        "64.0.0.0/2",
        "192.0.2.0/25",
        "2001:db8:1::/48",
        'elements = { "a" }',
    ):
        assert line in listed, line
