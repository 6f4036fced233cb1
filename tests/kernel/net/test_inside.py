"""What programs in a namespace see of what this process serves there; nothing of it lives in there."""

from __future__ import annotations

import socket
import sys
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib.mounts import File
from isolib.net.forward import new_forwarder
from isolib.net.hosts import hosts, resolv_conf
from isolib.net.names import Names, Zone
from isolib.net.responder import new_responder
from tests.programs import output
from tests.threads import in_a_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.namespaces import NetNS

pytestmark = pytest.mark.root


@pytest.fixture
def inside() -> Iterator[NetNS]:
    """Return a network namespace."""
    one = isolib.new_netns()
    yield one
    one.close()


def born_inside(inside: NetNS, kind: socket.SocketKind, address: tuple[str, int] | None = None) -> socket.socket:
    """Return a socket that was born in the namespace, on a thread that has left it again."""

    def make() -> socket.socket:
        with inside.entered():
            sock = socket.socket(socket.AF_INET, kind)
            if address is not None:
                sock.bind(address)
                if kind == socket.SOCK_STREAM:
                    sock.listen(16)
            return sock

    return in_a_thread(make)


LOOK_UP = """
import socket, sys
name, family = sys.argv[1:]
try:
    if name[0].isdigit():
        print(socket.gethostbyaddr(name)[0])
    else:
        print(socket.getaddrinfo(name, 80, socket.AddressFamily[family], socket.SOCK_STREAM)[0][4][0])
except socket.gaierror as error:
    print({socket.EAI_NONAME: "no such name", socket.EAI_NODATA: "no address"}.get(error.errno, error))
"""


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        ("web", "AF_INET", "10.77.0.2"),
        ("WEB.lab", "AF_INET", "10.77.0.2"),
        ("web", "AF_INET6", "fd00:77::2"),
        ("db", "AF_INET6", "no address"),
        ("10.77.0.2", "AF_INET", "web.lab"),
        ("gate", "AF_INET", "10.77.0.1"),
        ("localhost", "AF_INET", "127.0.0.1"),
        ("nobody", "AF_INET", "no such name"),
        ("nobody.lab", "AF_INET", "no such name"),
        ("example.com", "AF_INET", "no such name"),
    ],
)
def test_names(inside: NetNS, name: str, family: str, expected: str) -> None:
    """The C library's resolver of a program inside, with our resolv.conf and hosts, finds names and addresses."""
    names = Names()
    names.add("web", ["10.77.0.2", "fd00:77::2"])
    names.add("db", ["10.77.0.3"])
    sock = born_inside(inside, socket.SOCK_DGRAM, ("127.0.0.1", 53))
    files = [
        File("/etc/resolv.conf", resolv_conf(["127.0.0.1"], search=["lab"])),
        File("/etc/hosts", hosts([("10.77.0.1", ["gate"])], domain="lab")),
        File("/etc/nsswitch.conf", "hosts: files dns\n"),
    ]
    with new_responder([sock], zone=Zone(names, "lab", (ip_network("10.77.0.0/24"),))) as responder:
        argv = [sys.executable, "-I", "-c", LOOK_UP, name, family]
        assert output(argv, join=[inside], new={"mnt"}, mounts=files) == f"{expected}\n"
        assert responder.error is None


def test_published(inside: NetNS) -> None:
    """A server inside is reached at an address of this namespace, and a server here at one inside."""
    server = born_inside(inside, socket.SOCK_STREAM, ("127.0.0.1", 8080))
    front = socket.create_server(("127.0.0.1", 0))
    address = front.getsockname()
    connect = partial(born_inside, inside, socket.SOCK_STREAM)
    with server, new_forwarder(front, connect, server.getsockname()), socket.create_connection(address, timeout=30) as client:
        connection, _ = server.accept()
        with connection:
            client.sendall(b"from outside")
            assert connection.recv(100) == b"from outside"
            connection.sendall(b"from inside")
            assert client.recv(100) == b"from inside"
    with socket.create_server(("127.0.0.1", 0)) as here:
        back = born_inside(inside, socket.SOCK_STREAM, ("127.0.0.1", 80))
        with new_forwarder(back, socket.socket, here.getsockname()), born_inside(inside, socket.SOCK_STREAM) as client:
            client.connect(("127.0.0.1", 80))
            connection, _ = here.accept()
            with connection:
                client.sendall(b"out")
                assert connection.recv(100) == b"out"
