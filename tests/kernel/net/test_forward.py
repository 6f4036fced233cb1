from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import resource
import select
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import psutil
import pytest

from isolib._kernel.handle import Fd, live
from isolib.errors import ClosedError, PlanError, SyscallError
from isolib.net.forward import Forwarder, Traffic, new_forwarder
from tests.programs import as_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Address: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | str"

SECONDS = 30
"""After which a test that waits for the other side has failed."""

FAMILIES = [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX]


class Lab:
    """A server, a forwarder to it, and its clients; all is closed at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack = contextlib.ExitStack()
        self.number = 0

    def listen(self, family: socket.AddressFamily, kind: int = socket.SOCK_STREAM, backlog: int = 512) -> socket.socket:
        """Return a bound socket; it listens if it can."""
        sock = self.stack.enter_context(socket.socket(family, kind))
        sock.settimeout(SECONDS)
        self.number += 1
        hosts = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
        sock.bind(hosts.get(family, f"{self.path}/{self.number}"))
        if kind == socket.SOCK_STREAM:
            sock.listen(backlog)
        return sock

    def forward(
        self,
        server: socket.socket | None = None,
        family: socket.AddressFamily = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        **options: object,
    ) -> Forwarder:
        """Forward to a server, which is made first, if it is not given."""
        self.server = server or self.listen(family, kind)
        front = self.listen(family, kind)
        self.address: Address = front.getsockname()
        arguments: dict[str, object] = {
            "connect": partial(socket.socket, self.server.family, kind),
            "target": self.server.getsockname(),
        }
        forwarder = new_forwarder(front, **(arguments | options))  # type: ignore[arg-type]
        return self.stack.enter_context(forwarder)

    def client(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Return a socket that is connected to the forwarder."""
        family = (
            socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        )
        sock = self.stack.enter_context(socket.socket(family, kind))
        sock.settimeout(SECONDS)
        sock.connect(self.address)
        return sock

    def accept(self) -> socket.socket:
        """Return a connection that came to the server."""
        sock, _ = self.server.accept()
        sock.settimeout(SECONDS)
        return self.stack.enter_context(sock)

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection through the forwarder."""
        client = self.client()
        return client, self.accept()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Return a lab in a directory of its own."""
    one = Lab(tmp_path)
    with one.stack:
        yield one


def read_all(sock: socket.socket) -> bytes:
    """Return what comes until the end."""
    return b"".join(iter(partial(sock.recv, 1 << 16), b""))


def spin_until(poll: Callable[[], bool], what: str) -> None:
    """Wait until something is so of which nobody tells; fail when it takes too long."""
    never = select.poll()
    for _ in range(SECONDS * 100):
        if poll():
            return
        never.poll(10)
    pytest.fail(f"not in time: {what}")


# ---- streams ----


@pytest.mark.parametrize("back", FAMILIES)
@pytest.mark.parametrize("front", FAMILIES)
def test_every_family(lab: Lab, front: socket.AddressFamily, back: socket.AddressFamily) -> None:
    """A connection of TCP over IPv4 or IPv6, or of a unix socket, is forwarded to one of each."""
    lab.forward(lab.listen(back), front)
    client, server = lab.connection()
    client.sendall(b"question")
    assert server.recv(100) == b"question"
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"


def test_half_close(lab: Lab) -> None:
    """Each direction ends by itself: a server that has heard the end of the question can still answer."""
    forwarder = lab.forward()
    client, server = lab.connection()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_all(server) == b"question"
    server.sendall(b"long answer")
    server.close()
    assert read_all(client) == b"long answer"
    spin_until(lambda: forwarder.stats().active == 0, "the connection has ended")
    assert forwarder.stats() == Traffic(connections=1, active=0, failed=0, sent=8, received=11)


def test_half_close_by_the_server(lab: Lab) -> None:
    """So can a client go on talking to a server that has said all."""
    lab.forward()
    client, server = lab.connection()
    server.sendall(b"banner")
    server.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"banner"
    client.sendall(b"and so on")
    client.close()
    assert read_all(server) == b"and so on"


@pytest.mark.parametrize("family", FAMILIES)
def test_big_transfers(lab: Lab, family: socket.AddressFamily) -> None:
    """32 MB in each direction at the same time, in pieces of every size, arrive as they were sent."""
    forwarder = lab.forward(family=family)
    size = 32 << 20
    ends = lab.connection()
    block = os.urandom(1 << 20)

    def send(sock: socket.socket, seed: int) -> str:
        pieces, digest, left = itertools.cycle((1, 400_000, 100, 4096, 70_000)), hashlib.sha256(), size
        while left:
            start = (left * 7 + seed) % (1 << 19)
            piece = block[start : start + min(left, next(pieces))]
            digest.update(piece)
            sock.sendall(piece)
            left -= len(piece)
        sock.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    def receive(sock: socket.socket) -> str:
        digest = hashlib.sha256()
        for piece in iter(partial(sock.recv, 1 << 16), b""):
            digest.update(piece)
        return digest.hexdigest()

    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, sock, seed) for seed, sock in enumerate(ends)]
        received = [pool.submit(receive, sock) for sock in ends]
        assert [one.result() for one in received] == [one.result() for one in reversed(sent)]
    assert (forwarder.stats().sent, forwarder.stats().received) == (size, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_who_does_not_read(lab: Lab, family: socket.AddressFamily) -> None:
    """For a server that does not read the client waits, others do not, and no memory is used; then all arrives."""
    forwarder = lab.forward(family=family)
    client, server = lab.connection()
    client.settimeout(0)
    before = psutil.Process().memory_info().rss
    sent, block = 0, bytes(1 << 20)
    writable = select.poll()
    writable.register(client, select.POLLOUT)
    while writable.poll(300):
        with contextlib.suppress(BlockingIOError):
            sent += client.send(block)
    assert psutil.Process().memory_info().rss - before < 4 << 20
    other, its = lab.connection()
    other.sendall(b"x")
    assert its.recv(1) == b"x"
    assert sent > forwarder.stats().sent - 1  # what was not taken is in the sockets
    client.shutdown(socket.SHUT_WR)
    assert sum(map(len, iter(partial(server.recv, 1 << 16), b""))) == sent


def computed() -> float:
    """Return the seconds that the serving thread has computed."""
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "isolib serving")
    return next(one.user_time + one.system_time for one in psutil.Process().threads() if one.id == thread.native_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_waits_without_computing(lab: Lab, family: socket.AddressFamily) -> None:
    """While a server does not read what a client has sent before it closed, nobody computes."""
    lab.forward(family=family)
    client, server = lab.connection()
    client.settimeout(0)
    server.shutdown(socket.SHUT_WR)  # with the client's end, both directions of one of the sockets have ended
    writable = select.poll()
    writable.register(client, select.POLLOUT)
    while writable.poll(200):
        with contextlib.suppress(BlockingIOError):
            client.send(bytes(1 << 20))
    client.close()
    before = computed()
    select.poll().poll(500)
    assert computed() - before < 0.2  # of half a second
    assert len(read_all(server)) > 1 << 16


def test_a_thousand_connections(lab: Lab) -> None:
    """A thousand connections at the same time are forwarded by one thread, each to its own server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 1000
    room = count * 4 * 3 // 2  # both ends of both connections, and more than the quarter that the forwarder leaves to others
    if hard != resource.RLIM_INFINITY and hard < room:
        pytest.skip("the hard limit of descriptors is too low for a thousand connections in one process")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, room), hard))
    try:
        forwarder = lab.forward()
        clients = [lab.client() for _ in range(count)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        servers = [lab.accept() for _ in range(count)]
        for server in servers:
            server.sendall(b"to " + server.recv(100))
        assert [client.recv(100) for client in clients] == [b"to %d" % number for number in range(count)]
        assert (forwarder.stats().connections, forwarder.stats().active) == (count, count)
        forwarder.close()
        assert all(is_reset(client) for client in clients)
        lab.stack.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_reset(sock: socket.socket) -> bool:
    """Return whether a connection has broken, and not just ended."""
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def is_turned_away(lab: Lab) -> bool:
    """Return whether a client is reset, perhaps before it knows that it is connected."""
    try:
        return is_reset(lab.client())
    except ConnectionResetError:
        return True


def test_clients_at_the_same_time(lab: Lab) -> None:
    """64 clients that come at once, one after the other in each of 8 threads, are each answered."""
    lab.forward()

    def serve() -> None:
        for _ in range(64):
            with lab.server.accept()[0] as sock:
                sock.sendall(read_all(sock)[::-1])

    def ask(number: int) -> bytes:
        with socket.create_connection(lab.address, timeout=SECONDS) as sock:  # type: ignore[arg-type]
            sock.sendall(b"%d" % number)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    with ThreadPoolExecutor(9) as pool:
        serving = pool.submit(serve)
        assert list(pool.map(ask, range(64))) == [(b"%d" % number)[::-1] for number in range(64)]
        serving.result()


# ---- what breaks ----


def test_refused(lab: Lab) -> None:
    """A client of a server that is not there is reset; what it was is told, and later clients are served."""
    server = lab.listen(socket.AF_INET)
    forwarder = lab.forward(server)
    address = server.getsockname()
    server.close()
    assert is_turned_away(lab)
    assert forwarder.stats().failed == 1
    assert isinstance(forwarder.error, ConnectionRefusedError)
    with socket.create_server(address) as lab.server:
        client = lab.client()
        client.sendall(b"x")
        assert lab.accept().recv(1) == b"x"


def test_reset_by_the_client(lab: Lab) -> None:
    """A connection that the client breaks is broken for the server."""
    forwarder = lab.forward()
    client, server = lab.connection()
    client.sendall(b"half")
    assert server.recv(100) == b"half"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert is_reset(server)
    assert (forwarder.stats().active, forwarder.stats().failed) == (0, 1)


def test_reset_by_the_server(lab: Lab) -> None:
    """A connection that the server breaks is broken for the client, which has what was said before."""
    lab.forward()
    client, server = lab.connection()
    server.sendall(b"half")
    assert client.recv(100) == b"half"
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    assert is_reset(client)


@pytest.mark.parametrize(
    "connect",
    [
        pytest.param(partial(set[str]().remove, "missing"), id="raises"),
        pytest.param(lambda: os.sysconf("no such"), id="raises ValueError"),
        pytest.param(lambda: None, id="nothing"),
        pytest.param(partial(socket.socket, socket.AF_UNIX), id="another family"),
        pytest.param(partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM), id="no stream"),
        pytest.param(partial(open, "/dev/null", "rb"), id="no socket"),
        pytest.param(sys.exit, id="wants to exit"),
    ],
)
def test_connect_fails(lab: Lab, connect: Callable[[], object]) -> None:
    """Whatever the function does that is to open a socket, its client is reset and the next one is served."""
    functions = iter([connect])

    def first_fails() -> object:
        function = next(functions, None)
        return function() if function else socket.socket()

    forwarder = lab.forward(connect=first_fails)
    assert is_turned_away(lab)
    assert forwarder.error is not None
    client, server = lab.connection()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    assert forwarder.stats().failed == 1


def test_full_unix_server(lab: Lab) -> None:
    """Clients of a unix server whose queue is full wait until it accepts."""
    lab.forward(lab.listen(socket.AF_UNIX, backlog=1), socket.AF_INET)
    clients = [lab.client() for _ in range(12)]
    for number, client in enumerate(clients):
        client.sendall(b"%02d" % number)
        client.shutdown(socket.SHUT_WR)
    assert sorted(read_all(lab.accept()) for _ in clients) == [b"%02d" % number for number in range(12)]


def test_client_that_has_gone_before(lab: Lab) -> None:
    """A client of a unix socket that has said all and gone before the server was there is heard."""
    lab.forward(lab.listen(socket.AF_UNIX, backlog=0), socket.AF_UNIX)
    for number in range(4):
        with lab.client() as client:
            client.sendall(b"%d" % number)
    assert sorted(read_all(lab.accept()) for _ in range(4)) == [b"0", b"1", b"2", b"3"]


def test_limit(lab: Lab) -> None:
    """More clients than the limit wait, and are served when others have ended."""
    forwarder = lab.forward(limit=2)
    first, its = lab.connection()
    lab.connection()
    third = lab.client()
    third.sendall(b"third")
    lab.server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        lab.server.accept()
    lab.server.settimeout(SECONDS)
    assert forwarder.stats().active == 2
    first.close()
    its.close()
    assert lab.accept().recv(100) == b"third"


def test_no_descriptors_left(lab: Lab) -> None:
    """Where there are no descriptors left, clients wait, and are served when there are some again."""
    forwarder = lab.forward()
    client, server = lab.connection()
    second = lab.stack.enter_context(socket.socket())
    second.settimeout(SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (second.fileno() + 20, hard))
    fill: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.dup(0))
        second.connect(lab.address)
        second.sendall(b"second")
        spin_until(lambda: forwarder.error is not None, "there was no descriptor")
    finally:
        for number in fill:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(forwarder.error, OSError)
    assert forwarder.error.errno == errno.EMFILE
    client.sendall(b"first")
    assert server.recv(100) == b"first"
    assert lab.accept().recv(100) == b"second"


def test_close_in_the_midst(lab: Lab) -> None:
    """Closing resets connections in the midst of a transfer, on both sides, and the port is free at once."""
    forwarder = lab.forward()
    client, server = lab.connection()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.sendall, bytes(64 << 20))
        assert server.recv(1 << 16)
        forwarder.close()
        with pytest.raises(ConnectionError):
            sending.result()
    with pytest.raises(ConnectionResetError):
        read_all(server)
    socket.create_server(lab.address, reuse_port=False).close()
    forwarder.close()
    assert forwarder.closed
    assert forwarder.stats().active == 0


def test_reset_while_it_waits(lab: Lab) -> None:
    """A client that breaks the connection while its server does not read is noticed, and the server is told."""
    forwarder = lab.forward()
    client, server = lab.connection()
    client.settimeout(0)
    writable = select.poll()
    writable.register(client, select.POLLOUT)
    while writable.poll(200):
        with contextlib.suppress(BlockingIOError):
            client.send(bytes(1 << 20))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    spin_until(lambda: forwarder.stats().active == 0, "the reset was noticed")
    with pytest.raises(ConnectionResetError):
        read_all(server)


# ---- datagrams ----


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_datagrams(lab: Lab, family: socket.AddressFamily) -> None:
    """Each client of datagrams has a server's socket of its own, and hears what is said to it."""
    forwarder = lab.forward(family=family, kind=socket.SOCK_DGRAM)
    clients = [lab.client(socket.SOCK_DGRAM) for _ in range(10)]
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    addresses = set()
    for _ in clients:
        data, address = lab.server.recvfrom(100)
        addresses.add(address)
        lab.server.sendto(b"to " + data, address)
        lab.server.sendto(b"again " + data, address)
    assert [(client.recv(100), client.recv(100)) for client in clients] == [
        (b"to %d" % number, b"again %d" % number) for number in range(10)
    ]
    assert len(addresses) == 10
    assert (forwarder.stats().connections, forwarder.stats().active) == (10, 10)


def test_datagram_sizes(lab: Lab) -> None:
    """A datagram stays one, empty or as long as can be."""
    lab.forward(kind=socket.SOCK_DGRAM)
    client = lab.client(socket.SOCK_DGRAM)
    for size in (0, 1, 65507):
        client.send(bytes(size))
        data, address = lab.server.recvfrom(1 << 16)
        assert len(data) == size
        lab.server.sendto(data, address)
        assert len(client.recv(1 << 16)) == size


def test_datagram_clients_are_forgotten(lab: Lab) -> None:
    """A client that is silent is forgotten, and served anew when it speaks again."""
    forwarder = lab.forward(kind=socket.SOCK_DGRAM, idle=0.05)
    client = lab.client(socket.SOCK_DGRAM)
    client.send(b"one")
    first = lab.server.recvfrom(100)[1]
    spin_until(lambda: forwarder.stats().active == 0, "the client was forgotten")
    client.send(b"two")
    data, second = lab.server.recvfrom(100)
    lab.server.sendto(data, second)
    assert (data, client.recv(100)) == (b"two", b"two")
    assert first != second
    assert forwarder.stats().connections == 2


def test_datagram_clients_are_bounded(lab: Lab) -> None:
    """With more clients than the limit, the one that was silent longest is forgotten."""
    forwarder = lab.forward(kind=socket.SOCK_DGRAM, limit=2)
    a, b, c = (lab.client(socket.SOCK_DGRAM) for _ in range(3))
    sources: dict[bytes, list[tuple[str, int]]] = {}
    for name, client in ((b"a", a), (b"b", b), (b"a", a), (b"c", c), (b"a", a)):
        client.send(name)
        data, address = lab.server.recvfrom(100)
        sources.setdefault(data, []).append(address)
    assert len(set(sources[b"a"])) == 1
    assert forwarder.stats().active == 2
    assert forwarder.stats().connections == 3
    lab.server.sendto(b"late", sources[b"b"][0])
    lab.server.sendto(b"fine", sources[b"a"][0])
    assert a.recv(100) == b"fine"
    b.settimeout(0)
    with pytest.raises(BlockingIOError):
        b.recv(100)


def test_datagrams_to_nobody(lab: Lab) -> None:
    """Datagrams for a server that is not there are lost, and those for one that comes later are not."""
    server = lab.listen(socket.AF_INET, socket.SOCK_DGRAM)
    address = server.getsockname()
    forwarder = lab.forward(server, kind=socket.SOCK_DGRAM)
    server.close()
    client = lab.client(socket.SOCK_DGRAM)
    client.send(b"lost")
    spin_until(lambda: forwarder.stats().failed == 1, "the datagram was refused")
    assert isinstance(forwarder.error, ConnectionRefusedError)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as later:
        later.bind(address)
        later.settimeout(SECONDS)
        client.send(b"found")
        assert later.recv(100) == b"found"


def test_datagrams_without_a_socket(lab: Lab) -> None:
    """Where no socket can be opened for a client of datagrams, it is lost, and the reason is kept."""
    forwarder = lab.forward(kind=socket.SOCK_DGRAM, connect=partial(set[str]().remove, "missing"))
    lab.client(socket.SOCK_DGRAM).send(b"lost")
    spin_until(lambda: forwarder.stats().failed == 1, "the datagram was lost")
    assert isinstance(forwarder.error, KeyError)
    assert forwarder.stats().active == 0


@pytest.mark.parametrize(
    ("family", "all_of_them", "ours"), [(socket.AF_INET, "0.0.0.0", "127.0.0.7"), (socket.AF_INET6, "::", "::1")]
)
def test_datagrams_from_the_right_address(lab: Lab, family: socket.AddressFamily, all_of_them: str, ours: str) -> None:
    """On a socket that is bound to all addresses, a client is answered from the one that it wrote to."""
    server = lab.listen(family, socket.SOCK_DGRAM)
    front = socket.socket(family, socket.SOCK_DGRAM)
    front.bind((all_of_them, 0))
    port = front.getsockname()[1]
    with new_forwarder(front, partial(socket.socket, family, socket.SOCK_DGRAM), server.getsockname()):
        lab.address = (ours, port)
        client = lab.client(socket.SOCK_DGRAM)  # connected, so it hears nobody else
        client.send(b"x")
        data, address = server.recvfrom(10)
        server.sendto(data, address)
        assert client.recv(10) == b"x"


# ---- the handle ----


def test_handle(lab: Lab) -> None:
    """A forwarder says what it does, belongs to those that are open, and is closed with its block."""
    with lab.forward() as forwarder:
        assert repr(forwarder).startswith("<Forwarder 127.0.0.1:")
        assert forwarder in live()
        with pytest.raises(TypeError):
            forwarder.fileno()
    assert forwarder not in live()
    assert repr(forwarder).endswith(" closed>")
    with pytest.raises(ClosedError), forwarder:
        pass
    with pytest.raises(TypeError, match="new_forwarder"):
        Forwarder()  # type: ignore[call-arg]


def test_takes_a_descriptor(lab: Lab) -> None:
    """The listening socket and those for each client may be bare descriptors; they are the forwarder's."""
    server, front = lab.listen(socket.AF_INET), lab.listen(socket.AF_INET)
    lab.server, lab.address = server, front.getsockname()
    owner = Fd(front.detach())
    with new_forwarder(owner, lambda: Fd(socket.socket().detach()), server.getsockname()):
        assert owner.closed
        client, its = lab.connection()
        client.sendall(b"x")
        assert its.recv(1) == b"x"


def test_forgotten(lab: Lab) -> None:
    """A forwarder that nobody has any more complains, and its port is free."""
    front = lab.listen(socket.AF_INET)
    address = front.getsockname()
    forwarder = new_forwarder(front, socket.socket, address)
    with pytest.warns(ResourceWarning, match="never closed: <Forwarder"):
        del forwarder  # which is in no cycle
    socket.create_server(address).close()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (partial(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM), {}, "only TCP"),
        (partial(socket.socketpair, socket.AF_UNIX, socket.SOCK_SEQPACKET), {}, "only TCP"),
        (socket.socketpair, {"limit": 0}, "limit"),
        (socket.socketpair, {"idle": 0}, "idle"),
        (socket.socketpair, {"idle": float("nan")}, "idle"),
    ],
)
def test_refuses(make: Callable[[], tuple[socket.socket, socket.socket]], options: dict[str, float], message: str) -> None:
    """What cannot be forwarded from is refused before anything is served."""
    a, b = make()
    with a, b:
        with pytest.raises(PlanError, match=message):
            new_forwarder(a, socket.socket, ("127.0.0.1", 1), **options)  # type: ignore[arg-type]
        assert a.fileno() >= 0


def test_refuses_what_is_no_socket() -> None:
    """A descriptor of something else is refused by the name of the call, and a closed one by isolib's own exception."""
    with open("/dev/null", "rb") as null, pytest.raises(SyscallError) as caught:
        new_forwarder(null, socket.socket, ("127.0.0.1", 1))
    assert caught.value.errno == errno.ENOTSOCK
    closed = Fd(os.dup(0))
    closed.close()
    with pytest.raises(ClosedError):
        new_forwarder(closed, socket.socket, ("127.0.0.1", 1))


def test_too_few_descriptors(lab: Lab) -> None:
    """Where there are too few descriptors to begin, that is said, and the socket stays its owner's; with enough, it works."""
    outcomes = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(6):
        front = lab.listen(socket.AF_INET)
        for thread in threading.enumerate():
            if thread.name == "isolib serving":
                thread.join(SECONDS)  # it has descriptors until then
        resource.setrlimit(resource.RLIMIT_NOFILE, (front.fileno() + 30, hard))
        fill: list[int] = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    fill.append(os.dup(0))
            for _ in range(spare):
                os.close(fill.pop())
            try:
                new_forwarder(front, socket.socket, ("127.0.0.1", 1)).close()
            except SyscallError as error:
                outcomes.append(error.errno)
                assert front.fileno() >= 0
            else:
                outcomes.append(0)
                assert front.fileno() == -1
        finally:
            for number in fill:
                os.close(number)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcomes == [errno.EMFILE] * 3 + [0] * 3


# ---- forks and ends of the host ----


def test_fork_in_the_midst(lab: Lab) -> None:
    """A fork of the host in the midst of a transfer changes nothing for it, and holds no connection open."""
    forwarder = lab.forward()
    client, server = lab.connection()
    client.sendall(b"before ")
    assert server.recv(100) == b"before "
    ours, its = socket.socketpair()
    child = os.fork()
    if not child:
        # As a worker does that lives on; the test's own sockets are none of the forwarder's.
        for sock in (ours, client, server, lab.server):
            sock.close()
        forwarder.close()
        its.send(b"x")
        its.recv(1)
        os._exit(0)
    its.close()
    client.sendall(b"after")
    assert server.recv(100) == b"after"
    client.shutdown(socket.SHUT_WR)
    assert read_all(server) == b""
    second, _ = lab.connection()
    assert ours.recv(1) == b"x"
    forwarder.close()
    assert is_reset(client)
    assert is_reset(second)
    socket.create_server(lab.address).close()
    ours.close()
    os.waitpid(child, 0)


def test_host_ends_without_closing() -> None:
    """A program ends at once, and well, though it has not closed a forwarder with open connections."""
    assert (
        as_host("""
            import socket
            from isolib.net.forward import new_forwarder
            server, front = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
            address = front.getsockname()
            forwarder = new_forwarder(front, socket.socket, server.getsockname())
            client = socket.create_connection(address)
            inner, _ = server.accept()
            client.sendall(b"x")
            print(inner.recv(1), flush=True)
            """)
        == "b'x'\n"
    )


def test_closed_by_many_threads(lab: Lab) -> None:
    """Threads that close one forwarder at the same time, while clients come, all return."""
    for _ in range(20):
        forwarder = lab.forward()
        clients = [lab.client() for _ in range(5)]
        threads = [threading.Thread(target=forwarder.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert forwarder.closed
        assert all(is_reset(client) for client in clients)
        lab.server.close()
