"""Sandboxes in networks: whom they reach, by which name, and what leads into them."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import sys
import weakref
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import DEVNULL, PIPE, PlanError, Sandbox, SandboxSpec
from isolib.mounts import Bind, Root
from isolib.net import new_network
from tests.nets import PATIENCE, SOON, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolib.net import Network

pytestmark = pytest.mark.usefixtures("user_namespaces")

SERVE = """
import socket
with socket.create_server(("", 80)) as server:
    print(flush=True)
    while True:
        with server.accept()[0] as client:
            client.sendall(client.recv(100)[::-1])
"""
ASK = f"""
import socket, sys
with socket.create_connection((sys.argv[1], 80), {PATIENCE}) as server:
    server.sendall(b"hello")
    print(server.recv(100).decode())
"""


@pytest.fixture
def network() -> Iterator[Network]:
    """Return a network."""
    with new_network("10.77.0.0/24") as made:
        yield made


def serve(box: Sandbox) -> isolib.Process:
    """Start a server in a sandbox, and return when it listens."""
    process = box.popen([sys.executable, "-c", SERVE], stdout=PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


def test_two_sandboxes(network: Network) -> None:
    """A sandbox reaches another one by its name, on a port for which it needs no privilege."""
    with Sandbox(network=network, hostname="web") as web, Sandbox(network=network, hostname="client") as client, serve(web):
        assert client.run([sys.executable, "-c", ASK, "web"], check=True).stdout == b"olleh\n"
        assert web.endpoint is not None
        assert client.run([sys.executable, "-c", ASK, str(web.endpoint.address)], check=True).stdout == b"olleh\n"
        assert [endpoint.hostname for endpoint in network.endpoints()] == ["web", "client"]
    assert network.endpoints() == []


def test_published(network: Network) -> None:
    """A published port of the host's leads into the sandbox, for as long as that lives."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with (
        Sandbox(network=network, publish={port: 80}) as box,
        serve(box),
        socket.create_connection(("127.0.0.1", port), PATIENCE) as client,
    ):
        client.sendall(b"hello")
        assert client.recv(100) == b"olleh"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)


def test_published_in_other_ways(network: Network, tmp_path: Path) -> None:
    """Texts, tuples and values publish free ports, of UDP and IPv6, and unix sockets; which they are is told in their order."""
    own = isolib.Publish(tmp_path / "web", 80, mode=0o666)
    with Sandbox(network=network, publish=["[::1]:0:80", (0, 53, "udp"), own, (0, 81)]) as box, serve(box):
        six, datagrams, file, other = box.published
        with socket.create_connection(("::1", six.port), PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"olleh"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "web"))
            client.sendall(b"world")
            assert client.recv(100) == b"dlrow"
        assert (six.outside, file.path) == (f"::1:{six.port}/tcp", str(tmp_path / "web"))
        assert (datagrams.proto, str(datagrams.address), datagrams.inner_port) == ("udp", "127.0.0.1", 53)
        assert (other.via, other.inner_port, other.endpoint) == ("forwarder", 81, box.endpoint)
        assert box.spec == SandboxSpec(network=network, publish=["[::1]:0:80", "0:53/udp", own, "0:81"])
    assert not (tmp_path / "web").exists()
    assert all(one.closed for one in (six, datagrams, file, other))


def test_free_port_of_one_command(network: Network) -> None:
    """A free port is refused where nobody could be told which it is, before anything is made."""
    with pytest.raises(PlanError, match=r"^publish: port 0 "):
        isolib.run(["true"], network=network, publish=[(0, 80)])
    assert network.endpoints() == []


def test_one_of_many_cannot_be_published(network: Network, tmp_path: Path) -> None:
    """When one of several ports is in use, none is published, and the sandbox leaves the network again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        ports = [one.getsockname()[1] for one in (free, taken)]
        free.close()
        wanted = [(str(tmp_path / "web"), 80), (ports[0], 80), (ports[1], 80)]
        with pytest.raises(isolib.SyscallError, match=str(ports[1])), Sandbox(network=network, publish=wanted):
            pass
        assert (network.endpoints(), list(tmp_path.iterdir())) == ([], [])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports[0]), PATIENCE)


def test_one_command(network: Network) -> None:
    """A command in a sandbox of its own is in the network, and nothing of it is there afterwards."""
    with Sandbox(network=network, hostname="web") as web, serve(web):
        assert isolib.run([sys.executable, "-c", ASK, "web"], network=network, check=True).stdout == b"olleh\n"
        assert len(network.endpoints()) == 1


def test_one_after_another(network: Network) -> None:
    """Commands in sandboxes of their own come and go, each with an address, and none leaves a port, a name or an address."""
    own = []
    for _ in range(20):
        done = isolib.run(["cat", "/etc/hosts"], network=network, hostname="web", check=True)
        own.append(done.stdout.splitlines()[-1])
        assert network.endpoints() == []
        assert "web" not in network.hosts()
    assert own == [f"10.77.0.{number}\tweb".encode() for number in range(2, 22)]
    assert until(lambda: not network.bridge.ports())
    with Sandbox(network=network, hostname="web") as web, serve(web):
        assert isolib.run([sys.executable, "-c", ASK, "web"], network=network, check=True).stdout == b"olleh\n"


def test_one_in_each_network(network: Network) -> None:
    """The same command asks each time the network that it is in, and no network is kept by what is kept of a command."""
    with new_network("10.78.0.0/24") as other, new_network("10.79.0.0/24", dns=False) as silent:
        argv = ["cat", "/etc/resolv.conf"]
        for _ in range(2):
            asked = [isolib.run(argv, network=one, check=True).stdout for one in (network, other, silent)]
            assert b"nameserver 10.77.0.1\n" in asked[0]
            assert b"nameserver 10.78.0.1\n" in asked[1]
            assert b"nameserver 10.7" not in asked[2]
        kept = weakref.ref(other)
    del other
    gc.collect()
    assert kept() is None


def test_command_that_fails(network: Network) -> None:
    """Whatever a command in a sandbox of its own ends by, what is told is told as elsewhere, and it has left the network."""
    with pytest.raises(isolib.CommandFailed):
        isolib.run(["false"], network=network, check=True)
    with pytest.raises(isolib.SandboxTimeout):
        isolib.run(["sleep", "60"], network=network, timeout=0.1)
    with pytest.raises(isolib.SetupFailed):
        isolib.run(["/no/such/program"], network=network)
    assert isolib.run(["cat"], input=b"hello", network=network).stdout == b"hello"
    assert network.endpoints() == []
    assert until(lambda: not network.bridge.ports())


def test_host_is_out_of_reach(network: Network) -> None:
    """A server of the host's, on loopback, is not reached from a network: not by any address of it."""
    with socket.create_server(("127.0.0.1", 0)) as server, Sandbox(network=network) as box:
        port = server.getsockname()[1]
        code = f"""
import socket, sys
for address in ("127.0.0.1", "{network.gateway}"):
    try:
        socket.create_connection((address, {port}), {SOON})
    except OSError as error:
        print(type(error).__name__)
"""
        words = box.run([sys.executable, "-c", code], check=True).stdout.split()
        assert words[0] == b"ConnectionRefusedError"
        assert len(words) == 2


def test_no_power_over_the_network(network: Network) -> None:
    """Root of a sandbox can change nothing of its network, and take part only as who it is: no interface, no raw packets."""
    code = """
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any:
    try:
        fcntl.ioctl(any, 0x8914, struct.pack("16sH14x", b"eth0", 0))  # SIOCSIFFLAGS: down
    except PermissionError:
        print("refused")
for family, protocol in ((socket.AF_PACKET, 0), (socket.AF_INET, socket.IPPROTO_ICMP)):
    try:
        socket.socket(family, socket.SOCK_RAW, protocol)
    except PermissionError:
        print("refused")
"""
    with Sandbox(network=network) as box:
        assert box.run([sys.executable, "-c", code], check=True).stdout == b"refused\n" * 3


def test_resolver(network: Network) -> None:
    """A sandbox asks the gateway for names, and nobody else, in a root of its own too."""
    wanted = network.resolv_conf().encode()
    with Sandbox(network=network) as box:
        assert box.run(["cat", "/etc/resolv.conf"], check=True).stdout == wanted
    busybox = Bind("/bin/busybox", "/bin/busybox")
    if os.path.exists("/bin/busybox"):
        argv = ["/bin/busybox", "cat", "/etc/resolv.conf"]
        done = isolib.run(argv, network=network, root=Root.empty(), mounts=[busybox], check=True)
        assert done.stdout == wanted


def test_network_without_names() -> None:
    """In a network that answers no names, a sandbox asks whom its root names, and is reached by others all the same."""
    with open("/etc/resolv.conf", "rb") as file:
        hosts_own = file.read()
    with new_network("10.77.0.0/24", dns=False) as network:
        with Sandbox(network=network, hostname="web") as web, Sandbox(network=network) as client, serve(web):
            assert client.run(["cat", "/etc/resolv.conf"], check=True).stdout == hosts_own
            assert web.endpoint is not None
            done = client.run([sys.executable, "-c", ASK, str(web.endpoint.address)], check=True)
            assert done.stdout == b"olleh\n"
        with Sandbox(network=network, root=Root.empty()) as box:
            assert not [line for line in box.explain().splitlines() if "resolv.conf" in line]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"network": "bridge"}, "network='bridge'"),
        ({"network": 5}, "network=5"),
        ({"publish": {8080: 80}}, "publish"),
        ({"publish": {8080: 80}, "network": "host"}, "publish"),
        ({"network": ["host"]}, "network="),
    ],
)
def test_bad_networks(fields: dict[str, object], words: str) -> None:
    """What is no network is refused with the spec."""
    with pytest.raises(PlanError, match=words):
        SandboxSpec(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"publish": {8080: 0}},
        {"publish": {65536: 80}},
        {"publish": {"8080": 80}},
        {"publish": {8080: True}},
        {"publish": [8080]},
        {"publish": "8080:80"},
        {"publish": ["8080:80", (8080, 81)]},
        {"hostname": "no name"},
    ],
)
def test_bad_places(network: Network, fields: dict[str, object]) -> None:
    """What cannot be a port or a name in a network is refused with the spec."""
    with pytest.raises(PlanError, match=next(iter(fields))):
        SandboxSpec(network=network, **fields)  # type: ignore[arg-type]


def test_own_names(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox knows its own name, and nobody by the host's file of names, wherever it works."""
    with Sandbox(network=network, hostname="web") as box:
        assert box.endpoint is not None
        names = box.run(["cat", "/etc/hosts"], check=True).stdout.decode()
        assert names.splitlines()[2:] == [f"{box.endpoint.address}\tweb"]
        code = "import socket; print(socket.gethostbyname(socket.gethostname()))"
        assert box.run([sys.executable, "-c", code], check=True).stdout.decode() == f"{box.endpoint.address}\n"
    monkeypatch.chdir("/etc")
    done = isolib.run(["cat", "hosts", "resolv.conf"], network=network, hostname="web", check=True)
    assert done.stdout.decode().splitlines()[2:4] == ["10.77.0.3\tweb", "nameserver 10.77.0.1"]


def test_closed_network(network: Network) -> None:
    """In a closed network no sandbox can be, and nothing is left of the try."""
    network.close()
    with pytest.raises(isolib.ClosedError), Sandbox(network=network):
        pass


def test_port_in_use(network: Network) -> None:
    """A port that somebody has is an error, and the sandbox leaves the network again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(isolib.SyscallError, match=str(port)), Sandbox(network=network, publish={port: 80}):
            pass
    assert network.endpoints() == []


def test_not_pickled(network: Network) -> None:
    """A spec with a network stays in the program that made the network, and can be compared and hashed there."""
    spec = SandboxSpec(network=network)
    assert spec == SandboxSpec(network=network)
    assert hash(spec) == hash(SandboxSpec(network=network))
    with pytest.raises(TypeError, match="Network"):
        pickle.dumps(spec)


def test_popen_silent(network: Network) -> None:
    """Programs that run beside each other in a sandbox share its network."""
    with (
        Sandbox(network=network) as box,
        serve(box),
        box.popen([sys.executable, "-c", ASK, "127.0.0.1"], stdout=PIPE, stderr=DEVNULL) as client,
    ):
        assert client.communicate()[0] == b"olleh\n"
