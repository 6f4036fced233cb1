from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from isolib._kernel.handle import Fd
from isolib.errors import PlanError, SyscallError
from isolib.net.names import Names, Zone
from isolib.net.responder import Questions, new_responder
from tests.programs import as_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from dns.message import Message

    from isolib.net.responder import Responder

SECONDS = 30
LOCAL = "127.0.0.1"


def bound(kind: socket.SocketKind, port: int = 0, family: int = socket.AF_INET, host: str = LOCAL) -> socket.socket:
    """Return a socket with an address; it listens if it can."""
    sock = socket.socket(family, kind)
    try:
        sock.bind((host, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(128)
    except OSError:
        sock.close()
        raise
    return sock


def bound_to_both(family: int = socket.AF_INET, host: str = LOCAL) -> tuple[socket.socket, socket.socket]:
    """Return sockets of UDP and TCP with one port."""
    while True:
        datagrams = bound(socket.SOCK_DGRAM, 0, family, host)
        try:
            return datagrams, bound(socket.SOCK_STREAM, datagrams.getsockname()[1], family, host)
        except OSError:  # somebody has it
            datagrams.close()


class Asked:
    """A responder with the names of a small network, that is asked over UDP and TCP on one port."""

    def __init__(self, *, family: int = socket.AF_INET, host: str = LOCAL, **options: object) -> None:
        self.names = Names()
        self.names.add("web", ["10.77.0.2", "fd00:77::2"])
        self.names.add("db", ["10.77.0.3"])
        self.names.add("many", [f"10.77.0.{number}" for number in range(10, 200)])
        zone = Zone(self.names, "lab", (ip_network("10.77.0.0/24"), ip_network("fd00:77::/64")))
        datagrams, streams = bound_to_both(family, host)
        self.host = host
        self.port: int = datagrams.getsockname()[1]
        self.responder: Responder = new_responder([datagrams], [streams], zone=zone, **options)  # type: ignore[arg-type]

    def udp(self, name: str, kind: str = "A", **options: object) -> Message:
        """Return the answer to a question over UDP."""
        query = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
        return dns.query.udp(query, self.host, SECONDS, self.port)

    def tcp(self, name: str, kind: str = "A") -> Message:
        """Return the answer to a question over TCP."""
        return dns.query.tcp(dns.message.make_query(name, kind), self.host, SECONDS, self.port)

    def stream(self) -> socket.socket:
        """Return a connection."""
        return socket.create_connection((self.host, self.port), timeout=SECONDS)


@contextlib.contextmanager
def asked(**options: object) -> Iterator[Asked]:
    """Return a responder, which is closed at the end."""
    one = Asked(**options)  # type: ignore[arg-type]
    with one.responder:
        yield one


@pytest.fixture
def lab() -> Iterator[Asked]:
    """Return a responder that asks nobody else."""
    with asked() as one:
        yield one


def values(message: Message) -> list[str]:
    """Return what the records of an answer hold."""
    return [each.to_text() for rrset in message.answer for each in rrset]


def dig(lab: Asked, *words: str) -> str:
    """Return what dig prints."""
    if shutil.which("dig") is None:
        pytest.skip("needs dig, of the package bind9-dnsutils")
    argv = ["dig", f"@{lab.host}", "-p", str(lab.port), "+tries=1", "+time=10", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- dig ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["web", "A"], ["10.77.0.2"]),
        (["WEB.lab", "AAAA"], ["fd00:77::2"]),
        (["web", "A", "+tcp"], ["10.77.0.2"]),
        (["web", "A", "+noedns"], ["10.77.0.2"]),
        (["web", "A", "+cookie"], ["10.77.0.2"]),
        (["web", "A", "+dnssec"], ["10.77.0.2"]),
        (["-x", "10.77.0.2"], ["web.lab."]),
        (["-x", "fd00:77::2"], ["web.lab."]),
        (["web", "MX"], []),
        (["nobody", "A"], []),
    ],
)
def test_dig(lab: Asked, words: list[str], expected: list[str]) -> None:
    """Dig hears what is known, over UDP and TCP, with EDNS and without."""
    assert dig(lab, "+short", *words).split() == expected


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["web"], "NOERROR"),
        (["web", "TXT"], "NOERROR"),
        (["nobody"], "NXDOMAIN"),
        (["nobody.lab"], "NXDOMAIN"),
        (["example.com"], "REFUSED"),
        (["lab", "AXFR", "+tcp", "+all"], ""),
        (["version.bind", "CH", "TXT"], "REFUSED"),
        (["+opcode=NOTIFY", "lab", "SOA"], "NOTIMP"),
        (["+edns=1", "+noednsnegotiation", "web"], "BADVERS"),
    ],
)
def test_dig_status(lab: Asked, words: list[str], status: str) -> None:
    """Dig sees the code that says why there is no answer, and complains of nothing in the message."""
    out = dig(lab, *words)
    assert f"status: {status}" in out if status else "Transfer failed" in out
    for complaint in ("WARNING: Message", "malformed", "mismatch", "extra bytes"):
        assert complaint not in out


def test_dig_long_answer(lab: Asked) -> None:
    """An answer that is too long for a datagram is truncated, and dig has it whole over TCP."""
    assert "Truncated" in dig(lab, "many", "A")
    assert " tc " in f"{dig(lab, '+ignore', 'many', 'A')} ".replace(";", " ")
    assert len(dig(lab, "+short", "many", "A").split()) == 190


# ---- over UDP and TCP ----


@pytest.mark.parametrize(
    ("family", "host", "asked_at"),
    [
        (socket.AF_INET, LOCAL, LOCAL),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.9"),
        (socket.AF_INET6, "::", "::1"),
        (socket.AF_INET6, "::", "127.0.0.9"),
    ],
)
def test_every_family(family: int, host: str, asked_at: str) -> None:
    """It is asked over IPv4 and IPv6, and answers from the address that was asked also where it is bound to all."""
    with asked(family=family, host=host) as lab:
        lab.host = asked_at
        assert values(lab.udp("web")) == ["10.77.0.2"]
        assert values(lab.tcp("web", "AAAA")) == ["fd00:77::2"]
        assert lab.responder.stats() == Questions(answered=2, forwarded=0, failed=0, dropped=0)


def test_names_are_live(lab: Asked) -> None:
    """Names that come and go are known, and not, from the next question on."""
    assert lab.udp("new").rcode() == dns.rcode.NXDOMAIN
    lab.names.add("new", ["10.77.0.9"])
    assert values(lab.udp("new")) == ["10.77.0.9"]
    lab.names.discard("new", ["10.77.0.9"])
    assert lab.tcp("new").rcode() == dns.rcode.NXDOMAIN


def test_many_clients(lab: Asked) -> None:
    """64 clients at the same time are each answered, over UDP and TCP, while names come and go."""
    stop = threading.Event()

    def change() -> None:
        while not stop.wait(0.0005):
            lab.names.add("shared", ["10.77.0.5"])
            lab.names.discard("shared", ["10.77.0.5"])

    def ask(number: int) -> list[list[str]]:
        way = lab.tcp if number % 4 == 0 else lab.udp
        return [values(way(name)) for name in ("web", "db.lab", "web.lab")]

    changing = threading.Thread(target=change)
    changing.start()
    try:
        with ThreadPoolExecutor(64) as pool:
            found = list(pool.map(ask, range(128)))
    finally:
        stop.set()
        changing.join()
    assert found == [[["10.77.0.2"], ["10.77.0.3"], ["10.77.0.2"]]] * 128


def test_pipelined_questions(lab: Asked) -> None:
    """Over one connection any number of questions may come, in pieces of any size, and its end need not wait for answers."""
    queries = [dns.message.make_query(name, "A", id=number) for number, name in enumerate(["web", "db", "nobody", "many"] * 20)]
    data = b"".join(query.to_wire(prepend_length=True) for query in queries)
    with lab.stream() as sock:
        for start in range(0, len(data), 7):
            sock.sendall(data[start : start + 7])
        sock.shutdown(socket.SHUT_WR)
        answers = [dns.message.from_wire(each) for each in split(sock)]
    assert [answer.id for answer in answers] == list(range(80))
    assert [len(values(answer)) for answer in answers] == [1, 1, 0, 190] * 20


def split(sock: socket.socket) -> Iterator[bytes]:
    """Yield the messages of a stream until its end."""
    file = sock.makefile("rb")
    with file:
        while head := file.read(2):
            yield file.read(int.from_bytes(head, "big"))


def test_who_takes_no_answers(lab: Asked) -> None:
    """Who asks and asks and takes no answers is not read from any more, and others are answered."""
    query = dns.message.make_query("many", "A").to_wire(prepend_length=True) * 100
    with lab.stream() as sock:
        sock.settimeout(0)
        writable = select.poll()
        writable.register(sock, select.POLLOUT)
        sent = 0
        while writable.poll(300):
            with contextlib.suppress(BlockingIOError):
                sent += sock.send(query)
        assert values(lab.udp("web")) == ["10.77.0.2"]
        assert lab.responder.stats().answered < sent // 20  # of whose questions most are in the sockets
        sock.settimeout(SECONDS)
        assert len(values(dns.message.from_wire(next(split(sock))))) == 190


@pytest.mark.parametrize("data", [b"\xff\xff" + b"x" * 5000, b"\x00\x00", b"\x00\x02ab", b"\x00\x0c" + b"\xff" * 12])
def test_nonsense_over_a_stream(lab: Asked, data: bytes) -> None:
    """A connection over which no questions come is ended, though others are not."""
    with lab.stream() as other, lab.stream() as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            if data == b"\x00\x00":
                sock.sendall(b"\x00")
            assert sock.recv(100) == b""
        other.sendall(dns.message.make_query("web", "A").to_wire(prepend_length=True))
        assert other.recv(2) != b""


def test_connections_are_bounded(lab: Asked) -> None:
    """With more connections than it wants, the one that was silent longest is ended, and the new one is answered."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(lab.stream()) for _ in range(64)]
        query = dns.message.make_query("web", "A").to_wire(prepend_length=True)
        for sock in socks:  # so that it is known that all were accepted, and the first is not the most silent
            sock.sendall(query)
            assert len(sock.recv(4096)) > 2
        socks[0].sendall(query)
        assert len(socks[0].recv(4096)) > 2
        assert values(lab.tcp("web")) == ["10.77.0.2"]
        assert socks[1].recv(1) == b""
        socks[0].sendall(query)
        assert len(socks[0].recv(4096)) > 2


@given(packets=st.lists(st.binary(max_size=300), max_size=5))
@settings(max_examples=60)
def test_any_packets(packets: list[bytes]) -> None:
    """Whatever comes as packets, the next question is answered."""
    lab = shared()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((lab.host, lab.port))
        for packet in packets:
            sock.send(packet)
    assert values(lab.udp("web")) == ["10.77.0.2"]
    assert lab.responder.error is None


SHARED: list[Asked] = []


def shared() -> Asked:
    """Return a responder for all examples of one test."""
    return SHARED[-1]


@pytest.fixture(autouse=True)
def _shared(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.function is not test_any_packets:
        yield
        return
    with asked() as lab:
        SHARED.append(lab)
        yield
        SHARED.pop()


# ---- resolvers ----


class Resolver:
    """What is asked, and says what it is told to say; over UDP and TCP on one port."""

    def __init__(self, reply: Callable[[bytes], bytes | None]) -> None:
        self.reply = reply
        self.asked: list[tuple[bytes, tuple[str, int]]] = []
        self.datagrams, self.streams = bound_to_both()
        self.address: tuple[str, int] = self.datagrams.getsockname()
        self.stop = os.eventfd(0)
        self.threads = [threading.Thread(target=self.serve_datagrams), threading.Thread(target=self.serve_streams)]
        for thread in self.threads:
            thread.start()

    def serve_datagrams(self) -> None:
        """Answer until it is told to stop."""
        while self.stop not in select.select([self.datagrams.fileno(), self.stop], (), ())[0]:
            query, source = self.datagrams.recvfrom(4096)
            self.asked.append((query, source))
            answer = self.reply(query)
            if answer is not None:
                self.datagrams.sendto(answer, source)

    def serve_streams(self) -> None:
        """Answer one question of each connection until it is told to stop."""
        while self.stop not in select.select([self.streams.fileno(), self.stop], (), ())[0]:
            sock, source = self.streams.accept()
            with sock:
                head = sock.recv(2, socket.MSG_WAITALL)
                query = sock.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
                self.asked.append((query, source))
                answer = self.reply(query)
                if answer is not None:
                    data = len(answer).to_bytes(2, "big") + answer
                    for start in range(0, len(data), 700):
                        sock.sendall(data[start : start + 700])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self.stop, 1)
        for thread in self.threads:
            thread.join()
        os.close(self.stop)
        self.datagrams.close()
        self.streams.close()


def says(*addresses: str, code: str = "NOERROR") -> Callable[[bytes], bytes]:
    """Return what answers every question with these addresses."""

    def reply(query: bytes) -> bytes:
        message = dns.message.make_response(dns.message.from_wire(query), recursion_available=True)
        message.set_rcode(dns.rcode.from_text(code))
        if addresses:
            message.answer.append(dns.rrset.from_text(message.question[0].name, 60, "IN", "A", *addresses))
        return message.to_wire()

    return reply


def test_forwards() -> None:
    """What is not ours is asked of the resolver, under another number and each from a port of its own; ours is not."""
    with Resolver(says("192.0.2.7")) as resolver, asked(upstream=[resolver.address]) as lab:
        message = lab.udp("example.com", use_edns=0)
        assert values(message) == ["192.0.2.7"]
        assert message.flags & dns.flags.RA
        for _ in range(9):
            assert values(lab.udp("example.com", id=7)) == ["192.0.2.7"]
        assert values(lab.udp("web")) == ["10.77.0.2"]
        assert lab.udp("nobody").rcode() == dns.rcode.NXDOMAIN
        assert len(resolver.asked) == 10
        assert len({query[:2] for query, _ in resolver.asked[1:]}) > 5
        assert len({source for _, source in resolver.asked}) > 5
        assert lab.responder.stats() == Questions(answered=2, forwarded=10, failed=0, dropped=0)


def test_forwards_a_stream() -> None:
    """What comes over a stream is asked over one, and long answers come whole."""
    with (
        Resolver(says(*(f"192.0.2.{number}" for number in range(1, 200)))) as resolver,
        asked(upstream=[resolver.address]) as lab,
    ):
        assert len(values(lab.tcp("example.com"))) == 199
        with lab.stream() as sock:
            for number in range(5):
                sock.sendall(dns.message.make_query("example.com", "A", id=number).to_wire(prepend_length=True))
            sock.shutdown(socket.SHUT_WR)
            answers = [dns.message.from_wire(each) for each in split(sock)]
        assert sorted(answer.id for answer in answers) == list(range(5))
        assert {len(values(answer)) for answer in answers} == {199}


def test_forwards_no_more_than_is_taken() -> None:
    """A resolver's answer that its asker could not take becomes one that says so, whatever the resolver sends."""
    with (
        Resolver(says(*(f"192.0.2.{number}" for number in range(1, 200)))) as resolver,
        asked(upstream=[resolver.address]) as lab,
    ):
        message = lab.udp("example.com")
        assert (bool(message.flags & dns.flags.TC), values(message)) == (True, [])


@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED", "NOTIMP"])
def test_next_resolver(code: str) -> None:
    """Where one resolver will not say, the next is asked."""
    with (
        Resolver(says(code=code)) as first,
        Resolver(says("192.0.2.8")) as second,
        asked(upstream=[first.address, second.address]) as lab,
    ):
        assert values(lab.udp("example.com")) == ["192.0.2.8"]
        assert values(lab.tcp("example.com")) == ["192.0.2.8"]


def test_no_such_name_is_an_answer() -> None:
    """That there is no such name is passed on; nobody else is asked."""
    with (
        Resolver(says(code="NXDOMAIN")) as first,
        Resolver(says("192.0.2.8")) as second,
        asked(upstream=[first.address, second.address]) as lab,
    ):
        assert lab.udp("example.com").rcode() == dns.rcode.NXDOMAIN
        assert second.asked == []


def test_what_the_last_one_says() -> None:
    """Where no resolver will say, its words are passed on."""
    with Resolver(says(code="REFUSED")) as resolver, asked(upstream=[resolver.address]) as lab:
        assert lab.udp("example.com").rcode() == dns.rcode.REFUSED


def test_resolver_is_gone() -> None:
    """A resolver that is not there is noticed at once, over UDP and TCP, and the next is asked."""
    gone = bound(socket.SOCK_DGRAM)
    address = gone.getsockname()
    gone.close()
    with Resolver(says("192.0.2.8")) as second, asked(upstream=[address, second.address]) as lab:
        assert values(lab.udp("example.com")) == ["192.0.2.8"]
        assert values(lab.tcp("example.com")) == ["192.0.2.8"]
    with asked(upstream=[address]) as lab:
        assert lab.udp("example.com").rcode() == dns.rcode.SERVFAIL
        assert lab.tcp("example.com").rcode() == dns.rcode.SERVFAIL
        assert isinstance(lab.responder.error, ConnectionRefusedError)
        assert lab.responder.stats().failed == 2


def test_silent_resolver() -> None:
    """A resolver that says nothing is asked twice, the next one meanwhile; who asks again waits for the same answer."""
    with (
        Resolver(lambda _: None) as first,
        Resolver(says("192.0.2.8")) as second,
        asked(upstream=[first.address, second.address]) as lab,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(SECONDS)
        sock.connect((lab.host, lab.port))
        query = dns.message.make_query("example.com", "A").to_wire()
        for _ in range(3):
            sock.send(query)
        assert values(dns.message.from_wire(sock.recv(4096))) == ["192.0.2.8"]
        assert len(first.asked) == 1
        assert values(lab.udp("web")) == ["10.77.0.2"]


def test_forged_answers() -> None:
    """An answer with another number, to another question, or that is a question, is not taken for the resolver's."""

    def reply(query: bytes) -> bytes:
        number = dns.message.from_wire(query).id
        other = dns.message.make_query("example.org", "A", id=number).to_wire()
        wrong = says("6.6.6.6")(query)
        for forged in (bytes([wrong[0] ^ 1]) + wrong[1:], says("6.6.6.6")(other), query, b"", b"x" * 11, wrong[:12]):
            forger.datagrams.sendto(forged, forger.asked[-1][1])
        return says("192.0.2.9")(query)

    with Resolver(reply) as forger, asked(upstream=[forger.address]) as lab:
        assert values(lab.udp("example.com")) == ["192.0.2.9"]
        assert len(forger.asked) == 1


def test_answers_of_others() -> None:
    """A packet from another address than the resolver's does not reach the question."""
    ports: list[int] = []

    def reply(query: bytes) -> bytes:
        ports.append(resolver.asked[-1][1][1])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(says("6.6.6.6")(query), (LOCAL, ports[-1]))
        return says("192.0.2.9")(query)

    with Resolver(reply) as resolver, asked(upstream=[resolver.address]) as lab:
        assert values(lab.udp("example.com")) == ["192.0.2.9"]
    assert len(ports) == 1


def test_questions_under_way_are_bounded() -> None:
    """With too many questions under way the next hears SERVFAIL at once, and descriptors are not used up."""
    go = threading.Event()

    def reply(query: bytes) -> bytes:
        go.wait(SECONDS)
        return says("192.0.2.9")(query)

    with (
        Resolver(reply) as resolver,
        asked(upstream=[resolver.address]) as lab,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(SECONDS)
        sock.connect((lab.host, lab.port))
        for number in range(128):
            sock.send(dns.message.make_query("example.com", "A", id=number).to_wire())
        failed = lab.udp("example.com", id=500)
        stats = lab.responder.stats()
        go.set()
        assert failed.rcode() == dns.rcode.SERVFAIL
        assert (stats.forwarded, stats.failed) == (128, 1)
        assert values(lab.udp("web")) == ["10.77.0.2"]


def test_questions_of_one_connection_are_bounded() -> None:
    """Of the questions of one connection, a few are on their way at a time; the others follow, and all are answered."""
    arrived, go = threading.Semaphore(0), threading.Event()

    def reply(query: bytes) -> bytes:
        arrived.release()
        go.wait(SECONDS)
        return says("192.0.2.9")(query)

    with Resolver(reply) as resolver, asked(upstream=[resolver.address]) as lab, lab.stream() as sock:
        for number in range(50):
            sock.sendall(dns.message.make_query("example.com", "A", id=number).to_wire(prepend_length=True))
        sock.shutdown(socket.SHUT_WR)
        assert arrived.acquire(timeout=SECONDS)
        assert values(lab.udp("web")) == ["10.77.0.2"]
        forwarded = lab.responder.stats().forwarded
        go.set()
        assert sorted(dns.message.from_wire(each).id for each in split(sock)) == list(range(50))
        assert forwarded <= 16
        assert lab.responder.stats().forwarded == 50


@pytest.mark.parametrize("connect", [lambda *_: None, os.sysconf, lambda *_: Fd(os.open("/dev/null", os.O_RDONLY))])
def test_connect_fails(connect: Callable[[int, int], object]) -> None:
    """Where no socket can be opened to ask a resolver, that is SERVFAIL."""
    with asked(upstream=[LOCAL], connect=connect) as lab:
        assert lab.udp("example.com").rcode() == dns.rcode.SERVFAIL
        assert lab.responder.error is not None


def test_connect_is_used() -> None:
    """The sockets to ask with are those that the caller's function opens."""
    kinds = []

    def connect(family: int, kind: int) -> socket.socket:
        kinds.append((family, kind))
        return socket.socket(family, kind)

    with Resolver(says("192.0.2.7")) as resolver, asked(upstream=[resolver.address], connect=connect) as lab:
        lab.udp("example.com")
        lab.tcp("example.com")
    assert kinds == [(socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM)]


# ---- the handle ----


def test_handle() -> None:
    """A responder says what it is for, and frees its port, also with connections and questions under way."""
    with Resolver(lambda _: None) as resolver, asked(upstream=[resolver.address]) as lab:
        assert repr(lab.responder) == "<Responder for lab, forwards>"
        with lab.stream() as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(dns.message.make_query("example.com", "A").to_wire(), (lab.host, lab.port))
            sock.sendall(dns.message.make_query("web", "A").to_wire(prepend_length=True))
            assert len(sock.recv(4096)) > 12
            while not resolver.asked:
                select.poll().poll(5)
            lab.responder.close()
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
        bound(socket.SOCK_DGRAM, lab.port).close()
        assert lab.responder.closed
        lab.responder.close()


def test_refuses() -> None:
    """Sockets of other kinds, and resolvers without an address, are refused; the sockets stay their owner's."""
    zone = Zone(Names())
    with bound(socket.SOCK_STREAM) as stream, bound(socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(PlanError, match="UDP and TCP"):
            new_responder([datagrams, stream], zone=zone)
        with pytest.raises(PlanError, match="UDP and TCP"):
            new_responder([], [datagrams], zone=zone)
        with pytest.raises(PlanError, match="upstream"):
            new_responder([datagrams], [stream], zone=zone, upstream=["resolver.example"])
        with open("/dev/null", "rb") as null, pytest.raises(SyscallError) as caught:
            new_responder([datagrams, null], zone=zone)
        assert caught.value.errno == errno.ENOTSOCK
        assert datagrams.fileno() >= 0 <= stream.fileno()


def test_codec_is_loaded_late() -> None:
    """The library that reads messages is loaded with the first question, not with the responder."""
    assert (
        as_host("""
            import socket, sys
            from isolib.net.names import Names, Zone
            from isolib.net.responder import new_responder
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            address = sock.getsockname()
            with new_responder([sock], zone=Zone(Names())):
                print("dns.message" in sys.modules)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                    asker.sendto(b"\\0\\1\\1\\0\\0\\1" + bytes(6) + b"\\3web\\0\\0\\1\\0\\1", address)
                    print(asker.recv(100)[3] & 15, "dns.message" in sys.modules)
            """)
        == "False\n3 True\n"
    )
