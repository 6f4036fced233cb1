"""Many at once: a hundred namespaces on one bridge, networks with the same subnet, five hundred networks in one program."""

from __future__ import annotations

import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from isolib import DEVNULL, new_netns
from isolib.net import neighbours, new_network
from tests.nets import PATIENCE, SOON, dial, listen, reaches, socket_in
from tests.oracles import run_in
from tests.programs import as_host, iperf3, need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.namespaces import NetNS
    from isolib.net import Endpoint, Network

pytestmark = pytest.mark.usefixtures("user_namespaces")

MANY = 100
ECHO_REQUEST, ECHO_REPLY = 8, 0
SOL_RAW, ICMP_FILTER = 255, 1


class Ping:
    """Asks from a namespace for echoes, which the kernels of others send (RFC 792), as the program `ping` does."""

    def __init__(self, ns: NetNS) -> None:
        self.socket = socket_in(ns, socket.SOCK_RAW, protocol=socket.IPPROTO_ICMP)
        self.socket.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", ~(1 << ECHO_REPLY) & 0xFFFFFFFF))

    def ask(self, address: str, number: int) -> None:
        """Send a request."""
        checksum = ~((ECHO_REQUEST << 8) + number) & 0xFFFF
        self.socket.sendto(struct.pack(">BBHHH", ECHO_REQUEST, 0, checksum, 0, number), (address, 0))

    def hear(self) -> tuple[str, int]:
        """Return who answers, and to which request."""
        packet, sender = self.socket.recvfrom(100)
        return sender[0], struct.unpack_from(">H", packet, (packet[0] & 15) * 4 + 6)[0]


class Crowd:
    """A network with many who are attached."""

    def __init__(self, network: Network, spaces: list[NetNS]) -> None:
        self.network = network
        self.spaces = spaces
        self.ends = [network.attach(ns) for ns in spaces]

    def forget(self) -> None:
        """Make everybody forget whom he has learned of: all namespaces of the machine share room for some 1,000 (arp(7))."""
        for ns, endpoint in zip(self.spaces, self.ends, strict=True):
            for one in neighbours(ns):
                if one.address.version == 4:  # of IPv6 nobody has been asked
                    endpoint.interface.remove_neighbour(one.address)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """Return a network with a hundred namespaces."""
    with ExitStack() as stack:
        network = stack.enter_context(new_network("10.77.0.0/24", ipv6="fd77::/64"))
        yield Crowd(network, [stack.enter_context(closing(new_netns())) for _ in range(MANY)])


def test_hundred_ping_each_other(crowd: Crowd) -> None:
    """Of a hundred namespaces on one bridge each has an echo of each other one: 9,900 requests, 9,900 answers."""
    names = [str(endpoint.address) for endpoint in crowd.ends]
    with ExitStack() as stack:
        pings = [Ping(ns) for ns in crowd.spaces]
        for ping in pings:
            stack.enter_context(ping.socket)
        heard = set()
        for step in range(1, MANY):
            for one, ping in enumerate(pings):
                ping.ask(names[(one + step) % MANY], step)
            for one, ping in enumerate(pings):
                who, number = ping.hear()
                assert number == step
                heard.add((names[one], who))
            crowd.forget()
    assert heard == {(one, other) for one in names for other in names if one != other}
    for endpoint in crowd.ends:
        found = endpoint.stats()
        assert found is not None
        assert (found.rx_dropped, found.rx_errors, found.tx_dropped, found.tx_errors) == (0, 0, 0, 0)


def test_hundred_ping_at_once(crowd: Crowd) -> None:
    """Who knows his neighbours for good needs no room in the kernel for what it learns: all 9,900 are asked at once."""
    for endpoint in crowd.ends:
        for other in crowd.ends:
            if other is not endpoint:
                assert other.address is not None
                endpoint.interface.add_neighbour(other.address, other.mac)
    names = [str(endpoint.address) for endpoint in crowd.ends]
    with ExitStack() as stack:
        pings = [Ping(ns) for ns in crowd.spaces]
        for ping in pings:
            stack.enter_context(ping.socket)
        for one, ping in enumerate(pings):
            for number, name in enumerate(names):
                if number != one:
                    ping.ask(name, number)
        for one, ping in enumerate(pings):
            heard = {ping.hear() for _ in range(MANY - 1)}
            assert heard == {(name, number) for number, name in enumerate(names) if number != one}


def test_program_pings(crowd: Crowd) -> None:
    """The program ping loses no packet to others of a hundred, over IPv4 and IPv6, and has no answer of who is not there."""
    for other in crowd.ends[1:MANY:20]:
        for address in other.addresses:
            said = run_in(crowd.spaces[0], "ping", "-n", "-c", "3", "-i", "0.01", "-W", "10", str(address))
            assert "3 received, 0% packet loss" in said
    with crowd.spaces[0].spawn(["ping", "-n", "-c", "1", "-W", "1", "10.77.0.200"], stdout=DEVNULL) as process:
        assert process.wait(PATIENCE).code == 1


# ---- the same subnet twice ----


def answer(server: socket.socket, word: bytes) -> None:
    """Say a word to who comes next."""
    with server.accept()[0] as client:
        client.sendall(word)


def test_two_networks_of_one_subnet() -> None:
    """Networks with one subnet, and the same addresses in both, carry each its own traffic, at the same time and no other's."""
    with ExitStack() as stack:
        pairs = [[stack.enter_context(closing(new_netns())) for _ in range(2)] for _ in range(2)]
        networks = [stack.enter_context(new_network("10.77.0.0/24", ipv6="fd77::/64")) for _ in pairs]
        ends = [[network.attach(ns) for ns in pair] for network, pair in zip(networks, pairs, strict=True)]
        assert [str(end.address) for end in ends[0]] == [str(end.address) for end in ends[1]] == ["10.77.0.2", "10.77.0.3"]
        sizes = 64, 8  # MiB
        threads = stack.enter_context(ThreadPoolExecutor(2))
        for address in ("10.77.0.2", "fd77::2"):
            before = [received(pair[0]) for pair in ends]
            measured = list(
                threads.map(lambda pair, size, to=address: iperf3(pair[1], pair[0], to, "-n", f"{size}M"), pairs, sizes)
            )
            assert all(one["sum_sent"]["bytes"] >= size << 20 for one, size in zip(measured, sizes, strict=True))
            grown = [received(pair[0]) - then for pair, then in zip(ends, before, strict=True)]
            assert grown[1] < 10 << 20 < 32 << 20 < grown[0]
        for number, pair in enumerate(pairs):
            with listen(pair[0], "10.77.0.2", 80) as server:
                saying = threads.submit(answer, server, b"%d" % number)
                with dial(pair[1], "10.77.0.2", 80) as client:
                    assert client.recv(10) == b"%d" % number
                saying.result(PATIENCE)
        ends[0][0].detach()
        assert reaches(pairs[1][1], pairs[1][0], "10.77.0.2")
        assert not reaches(pairs[0][1], pairs[1][0], "10.77.0.2", patience=SOON)


def received(endpoint: Endpoint) -> int:
    """Return how many bytes have come to an endpoint."""
    found = endpoint.stats()
    assert found is not None
    return found.rx_bytes


# ---- five hundred ----

# More than 1,000 namespaces are made in all, and a limit holds for what there is beneath, whoever makes it (namespaces(7)).
MACHINE = """
    echo 1000 | tee /proc/sys/user/max_net_namespaces > /proc/sys/user/max_user_namespaces
    ip link set lo up
    exec "$@"
"""
UNSHARED = ("unshare", "--map-user=1000", "--map-group=1000", "--keep-caps", "--net", "sh", "-ec", MACHINE, "sh")
"""Has a network namespace of its own for the host's, and may do everything there."""
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")

PROGRAM = """
    import gc, json, os, subprocess
    from concurrent.futures import ThreadPoolExecutor
    import isolib

    INTERNET = {internet}
    ASK = [
        ["ip", "-o", "link"], ["ip", "-o", "addr"], ["ip", "neigh"], ["ip", "rule"], ["ip", "-6", "rule"],
        ["ip", "route", "show", "table", "all"], ["ip", "-6", "route", "show", "table", "all"],
        *([["nft", "list", "ruleset"]] if INTERNET else []),
    ]

    def once(number):
        a, b = isolib.new_netns(), isolib.new_netns()
        with isolib.new_network("10.77.0.0/24", ipv6=True, internet=INTERNET) as network:
            web = network.attach(a, hostname="web")
            network.publish(0, web, 80)
            other = network.attach(b)
            if number % 10 == 0:
                other.impair(loss=0.5)
                network.partition([web], [other])
        a.close(), b.close()

    def read(path):
        try:
            with open(path) as file:
                return file.read()
        except OSError as error:
            return error.errno

    def target(number):
        try:
            return os.readlink(f"/proc/self/fd/{{number}}")
        except OSError:  # that of the directory itself
            return ""

    def census():
        gc.collect()
        found = {{" ".join(argv): subprocess.run(argv, capture_output=True, text=True, check=True).stdout for argv in ASK}}
        found |= {{os.path.join(top, name): read(os.path.join(top, name))
                   for top, _, names in os.walk("/proc/sys/net") for name in names}}
        descriptors = sorted(link for link in map(target, os.listdir("/proc/self/fd")) if link)
        return found | {{"descriptors": descriptors, "threads": os.listdir("/proc/self/task")}}

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(once, range(8)))  # what is opened once and for all is there
        before = census()
        list(threads.map(once, range(500)))
        after = census()
    changed = {{name: [before.get(name), after.get(name)] for name in before | after}}
    print(json.dumps({{name: values for name, values in changed.items() if values[0] != values[1]}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("internet", [False, True])
def test_five_hundred(internet: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Five hundred networks, with a way out or made without rights, change nothing that the host, or this program, has."""
    need("unshare", "setpriv", "ip", "nft")
    prefix = UNSHARED if internet else (*UNSHARED, *WITHOUT_RIGHTS)
    assert json.loads(as_host(PROGRAM.format(internet=internet), *prefix, timeout=400)) == {}
