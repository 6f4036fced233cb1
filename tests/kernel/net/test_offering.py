"""Unix sockets that lead into a network, and services of the host that are let into one."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, ClosedError, PlanError, SyscallError
from isolib.net import new_network
from tests.nets import PATIENCE, dial, listen, socket_in, until

if TYPE_CHECKING:
    from pathlib import Path

    from isolib.namespaces import NetNS
    from isolib.net import Network

pytestmark = pytest.mark.usefixtures("user_namespaces")


def reach(path: str) -> socket.socket:
    """Return a connection to a unix socket, or raise."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(PATIENCE)
    try:
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made


def converse(client: socket.socket, server: socket.socket) -> bool:
    """Say something both ways, and return whether it was heard; both are closed."""
    with client, server:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        heard = server.makefile("rb").read()
        server.sendall(b"answer")
        server.shutdown(socket.SHUT_WR)
        return heard == b"question" and client.makefile("rb").read() == b"answer"


# ---- unix sockets outside ----


def test_published_at_a_path(network: Network, ns: NetNS, tmp_path: Path) -> None:
    """Who connects to a published unix socket speaks with the server in the endpoint, as long as it is published."""
    endpoint = network.attach(ns)
    path = tmp_path / "web.sock"
    with listen(ns, str(endpoint.address), 80) as server:
        with network.publish(path, endpoint, 80) as published:
            assert (published.path, published.address, published.port) == (str(path), None, 0)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            client = reach(str(path))
            assert converse(client, server.accept()[0])
            assert published.stats().connections == 1
            assert str(path) in str(network.picture())
        assert not path.exists()
        with pytest.raises(FileNotFoundError):
            reach(str(path))


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0])
def test_mode_of_a_path(network: Network, ns: NetNS, tmp_path: Path, mode: int) -> None:
    """The file has the permissions that were asked for, less those of the umask."""
    before = os.umask(0o022)
    try:
        with network.publish(tmp_path / "s", network.attach(ns), 80, mode=mode):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode & ~0o022
    finally:
        os.umask(before)


def test_relative_path(network: Network, ns: NetNS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is that of the moment: it is removed there, wherever the program is later."""
    monkeypatch.chdir(tmp_path)
    with network.publish("./s", network.attach(ns), 80) as published:
        assert published.path == str(tmp_path / "s")
        monkeypatch.chdir("/")
        assert (tmp_path / "s").is_socket()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["file", "directory", "dangling", "stale"])
def test_path_that_is_taken(network: Network, ns: NetNS, tmp_path: Path, what: str) -> None:
    """Whatever is at the path, if but a socket that nobody listens at, it is refused, and stays."""
    path = tmp_path / "s"
    if what == "file":
        path.write_text("mine", encoding="ascii")
    elif what == "directory":
        path.mkdir()
    elif what == "dangling":
        path.symlink_to("nowhere")
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    before = path.lstat()
    with pytest.raises(SyscallError, match="removed by hand") as caught:
        network.publish(path, network.attach(ns), 80)
    assert (caught.value.errno, caught.value.target) == (errno.EADDRINUSE, str(path))
    assert os.path.samestat(path.lstat(), before)


def test_path_that_is_anothers_by_now(network: Network, ns: NetNS, tmp_path: Path) -> None:
    """What somebody else has put in the place of the socket stays, and so does nothing that has gone already."""
    endpoint = network.attach(ns)
    path = tmp_path / "s"
    with network.publish(path, endpoint, 80):
        os.rename(path, tmp_path / "aside")
        path.write_text("theirs", encoding="ascii")
    assert path.read_text(encoding="ascii") == "theirs"
    path.unlink()
    with network.publish(path, endpoint, 80):
        path.unlink()
    assert not path.exists()


def test_path_in_no_directory(network: Network, ns: NetNS, tmp_path: Path) -> None:
    """A path in a directory that there is not is told with that directory."""
    with pytest.raises(SyscallError, match=str(tmp_path / "absent")) as caught:
        network.publish(tmp_path / "absent" / "s", network.attach(ns), 80)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"host_port": "8080"}, "with a '/'"),
        ({"host_port": b"/tmp/s"}, "with a '/'"),
        ({"host_port": None}, "with a '/'"),
        ({"host_port": "/tmp/a\0b"}, "NUL"),
        ({"host_port": "/" + "x" * 107}, "107 bytes"),
        ({"host_port": "/tmp/\ud800"}, "bytes"),
        ({"proto": "udp"}, "TCP"),
        ({"host": "::1"}, "in place of an address"),
        ({"mode": 0o1777}, "mode"),
        ({"mode": -1}, "mode"),
    ],
)
def test_bad_paths(network: Network, ns: NetNS, tmp_path: Path, arguments: dict[str, object], words: str) -> None:
    """What cannot be published at a path is refused, and nothing is made."""
    options = {"host_port": tmp_path / "s"} | arguments
    with pytest.raises(PlanError, match=words):
        network.publish(options.pop("host_port"), network.attach(ns), 80, **options)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_path_goes_with_its_endpoint_and_network(ns: NetNS, tmp_path: Path) -> None:
    """With its endpoint, or the network, the file is gone."""
    with new_network() as network:
        endpoint = network.attach(ns)
        network.publish(tmp_path / "a", endpoint, 80)
        endpoint.detach()
        assert os.listdir(tmp_path) == []
        network.publish(tmp_path / "b", network.attach(ns), 80)
        assert os.listdir(tmp_path) == ["b"]
    assert os.listdir(tmp_path) == []


def test_a_fork_leaves_the_path(network: Network, ns: NetNS, tmp_path: Path) -> None:
    """A fork's copy removes nothing."""
    with network.publish(tmp_path / "s", network.attach(ns), 80) as published:
        child = os.fork()
        if not child:
            try:
                published.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / "s").is_socket()


def test_path_of_a_killed_program(network: Network, ns: NetNS, tmp_path: Path) -> None:
    """A killed program leaves the file, at which nobody is, and the next one is refused until it is removed."""
    path = tmp_path / "s"
    program = f"""
import isolib, sys
with isolib.new_network() as network:
    network.publish({str(path)!r}, network.attach(isolib.new_netns()), 80)
    print(flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(ConnectionRefusedError):
        reach(str(path))
    endpoint = network.attach(ns)
    with pytest.raises(SyscallError, match="removed by hand"):
        network.publish(path, endpoint, 80)
    path.unlink()
    network.publish(path, endpoint, 80).close()


# ---- services of the host inside ----


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_offered_tcp(network: Network, ns: NetNS, host: str) -> None:
    """A service of the host is reached at the gateway's addresses, of both kinds, as long as it is offered."""
    network.attach(ns)
    with listen(None, host) as server:
        with network.offer(5432, server.getsockname()[:2]) as offered:
            assert (offered.addresses, offered.port) == ((network.gateway, network.gateway6), 5432)
            for gateway in offered.addresses:
                client = dial(ns, str(gateway), 5432)
                assert converse(client, server.accept()[0])
            assert offered.stats().connections == 2
        for gateway in offered.addresses:
            with pytest.raises(ConnectionRefusedError):
                dial(ns, str(gateway), 5432)


def test_offered_udp(network: Network, ns: NetNS) -> None:
    """Datagrams come to a service of the host, and its answers back."""
    network.attach(ns)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket_in(ns, socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)
        with network.offer(0, server.getsockname(), proto="udp") as offered:
            client.sendto(b"ping", (str(network.gateway), offered.port))
            data, back = server.recvfrom(16)
            server.sendto(data[::-1], back)
            assert client.recv(16) == b"gnip"


MANY = """
import socket, sys
clients = [socket.create_connection((sys.argv[1], 80)) for _ in range(200)]
print(flush=True)
sys.stdin.readline()
"""


def test_guest_that_connects_too_often(network: Network, ns: NetNS) -> None:
    """Who connects more often than this program has descriptors leaves it some; when he has gone, others are served again."""
    network.attach(ns)
    with listen(None, "127.0.0.1") as server, network.offer(80, server.getsockname()) as offered:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        (forwarder, *_) = offered._forwarders
        with ns.spawn([sys.executable, "-c", MANY, str(network.gateway)], stdin=PIPE, stdout=PIPE) as guest:
            assert guest.stdin is not None
            assert guest.stdout is not None
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
            try:
                assert guest.stdout.readline() == b"\n"
                assert until(lambda: forwarder.error is not None)
                with open("/dev/null", "rb"):
                    assert offered.stats().failed == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            guest.stdin.write(b"\n")
            guest.stdin.flush()
        with dial(ns, str(network.gateway), 80) as later:
            later.sendall(b"later")
            heard = b""
            while not heard:
                with server.accept()[0] as inner:
                    heard = inner.recv(5)
            assert heard == b"later"


def test_offered_unix(network: Network, ns: NetNS, tmp_path: Path) -> None:
    """A unix socket of the host is a service too."""
    network.attach(ns)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        server.settimeout(PATIENCE)
        with network.offer(0, path) as offered:
            assert repr(offered) == f"<Offered 10.77.0.1:{offered.port}/tcp -> {path!r}>"
            client = dial(ns, str(network.gateway), offered.port)
            assert converse(client, server.accept()[0])


def test_nothing_else_is_reached(ns: NetNS) -> None:
    """Of two services of the host only the one that is offered is reached, also where endpoints are kept apart."""
    with (
        new_network("10.77.0.0/24", isolate=True) as network,
        listen(None, "127.0.0.1") as offered,
        listen(None, "127.0.0.1") as other,
    ):
        network.attach(ns)
        network.offer(80, offered.getsockname())
        client = dial(ns, str(network.gateway), 80)
        assert converse(client, offered.accept()[0])
        for address in (str(network.gateway), "127.0.0.1"):
            with pytest.raises(OSError, match=r"refused|unreachable"):
                dial(ns, address, other.getsockname()[1])


def test_service_of_the_callers_namespace(needs_root: None, network: Network, ns: NetNS) -> None:
    """A service is looked for where the caller was when it was offered, whichever thread forwards."""
    network.attach(ns)
    with closing(isolib.new_netns()) as elsewhere, listen(elsewhere, "127.0.0.1") as server:
        with elsewhere:
            offered = network.offer(80, server.getsockname())
        client = dial(ns, str(network.gateway), 80)
        assert converse(client, server.accept()[0])
        offered.close()


def test_nobody_at_the_service(network: Network, ns: NetNS) -> None:
    """Where the service does not listen, who came is reset, and it is counted."""
    network.attach(ns)
    with listen(None, "127.0.0.1") as server:
        address = server.getsockname()
    with network.offer(80, address) as offered:
        with pytest.raises(ConnectionResetError), dial(ns, str(network.gateway), 80) as client:  # perhaps before it is through
            client.recv(1)
        assert offered.stats().failed == 1


def test_offered_port_in_use(network: Network, ns: NetNS) -> None:
    """A port of the gateway that is in use is refused, as the one is at which names are answered."""
    network.attach(ns, hostname="web")
    network.offer(80, ("127.0.0.1", 1))
    for port in (80, 53):
        with pytest.raises(SyscallError, match=f"port {port}") as caught:
            network.offer(port, ("127.0.0.1", 1))
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("to", "options", "words"),
    [
        ("localhost", {}, "with a '/'"),
        (5432, {}, "with a '/'"),
        (("localhost", 80), {}, "localhost"),
        (("127.0.0.1", 0), {}, "to"),
        (("127.0.0.1", 80, 1), {}, "an address and a port"),
        (("127.0.0.1", 80), {"proto": "sctp"}, "proto"),
        (("127.0.0.1", 80), {"port": 65536}, "port"),
        ("/tmp/s", {"proto": "udp"}, "streams"),
    ],
)
def test_bad_offers(network: Network, to: object, options: dict[str, object], words: str) -> None:
    """What cannot be offered is refused, and the argument named."""
    with pytest.raises(PlanError, match=words):
        network.offer(**({"port": 80, "to": to} | options))  # type: ignore[arg-type]


def test_nothing_is_offered_after_the_end(ns: NetNS) -> None:
    """With the network its offers are closed."""
    with new_network() as network:
        offered = network.offer(80, ("127.0.0.1", 1))
    assert offered.closed
    with pytest.raises(ClosedError):
        network.offer(80, ("127.0.0.1", 1))
