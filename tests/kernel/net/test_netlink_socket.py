"""Netlink sockets, and other things, of network namespaces that the caller is not in."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import sys
import threading
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import ClosedError, PermissionDenied, SyscallError
from isolib._kernel.netlink import codec
from isolib._kernel.netlink import socket as module
from isolib._kernel.netlink.socket import NETFILTER, ROUTE, Request, Socket, open_netlink
from isolib._kernel.sockets import open_file_in, open_socket
from tests.descriptors import refusals
from tests.examined import nft_can
from tests.interrupts import interrupt
from tests.oracles import run_in
from tests.rights import RIGHTS, having
from tests.threads import here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from isolib.namespaces import NetNS

LO = 1
NFTABLES = 10
RMEM_MAX = 212_992
"""What net.core.rmem_max is where nobody has changed it."""
ROOM = 1 << 23
"""For how many bytes that are sent at once a socket of ours asks."""
FORWARD = "/proc/sys/net/ipv4/ip_forward"


@pytest.fixture(params=RIGHTS)
def rights(request: pytest.FixtureRequest, user_namespaces: None) -> Iterator[str]:
    """Run the test once with root's capabilities, and once without any."""
    with having(request.param):
        yield request.param


@pytest.fixture
def net(rights: str) -> Iterator[NetNS]:
    """Return a namespace that the test's thread is not in."""
    with closing(isolib.new_netns()) as namespace:
        yield namespace


@pytest.fixture
def route(net: NetNS) -> Iterator[Socket]:
    """Return a socket of it, for links and addresses."""
    with open_netlink(net) as opened:
        yield opened


def names(net: NetNS) -> set[str]:
    """Return the links of a namespace, as ip sees them."""
    return {link["ifname"] for link in json.loads(run_in(net, "ip", "-j", "link"))}


def new_bridge(name: str) -> Request:
    """Return the request for a bridge."""
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + codec.text(3, name) + codec.nested(18, codec.text(1, "bridge"))
    return Request(16, body, codec.CREATE | codec.EXCL, "RTM_NEWLINK", name)


def get_link(name: str = "lo") -> Request:
    """Return the question for one link."""
    return Request(18, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + codec.text(3, name), 0, "RTM_GETLINK", name)


LINKS = Request(18, struct.pack("=BxHiII", 0, 0, 0, 0, 0), 0, "RTM_GETLINK", "links")
ADDRESSES = Request(22, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0), 0, "RTM_GETADDR", "addresses")


def address(number: int, kind: int = 20) -> Request:
    """Return the request for an address of lo's, or for its removal."""
    raw = socket.inet_aton(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, LO) + codec.attribute(2, raw) + codec.attribute(1, raw)
    flags = codec.CREATE | codec.EXCL if kind == 20 else 0
    return Request(kind, body, flags, "RTM_NEWADDR" if kind == 20 else "RTM_DELADDR", f"address {number}")


def gone(number: int) -> Request:
    """Return the removal of an address."""
    return address(number, 21)


def listed(route: Socket) -> list[int]:
    """Return the numbers of the addresses that `address` has made."""
    found = (codec.table(message.body, 8)[2] for message in route.dump(ADDRESSES))
    return sorted(int.from_bytes(raw, "big") - (10 << 24) for raw in found if raw[0] == 10)


def link_names(route: Socket) -> set[str]:
    """Return the links that a dump has."""
    return {codec.word(codec.table(message.body, 16)[3]) for message in route.dump(LINKS)}


def fails(errors: type[SyscallError] | tuple[type[SyscallError], ...], number: int, call: Callable[[], object]) -> SyscallError:
    """Return the exception that a call raises, which has this error number."""
    with pytest.raises(errors) as raised:
        call()
    assert raised.value.errno == number
    return raised.value


# ---- whose it is ----


def test_socket_stays_in_its_namespace(net: NetNS, route: Socket) -> None:
    """What is asked through it happens in the namespace that it was opened for, and the thread has never left its own."""
    before = here()
    route.send(new_bridge("isolib-br0"))
    assert names(net) == link_names(route) == {"lo", "isolib-br0"}
    assert here() == before
    assert "isolib-br0" not in {name for _, name in socket.if_nameindex()}
    with open_netlink(None) as own:
        assert link_names(own) == {name for _, name in socket.if_nameindex()}


def test_socket_outlives_the_handle(net: NetNS, route: Socket) -> None:
    """The namespace lives on for the socket when its handle is closed."""
    route.send(new_bridge("br0"))
    net.close()
    assert link_names(route) == {"lo", "br0"}


def test_own_namespace_needs_no_rights(rights: str) -> None:
    """A handle for the namespace that the thread is in is as good as none."""
    with closing(isolib.open_netns(pid=os.getpid())) as own, open_netlink(own) as opened:
        assert link_names(opened) == {name for _, name in socket.if_nameindex()}
        with open_file_in(own, FORWARD, os.O_RDONLY) as file, open(FORWARD, "rb") as same:
            assert os.read(file.fileno(), 8) == same.read()


def test_nobody_but_the_kernel_answers(net: NetNS, route: Socket) -> None:
    """Root of the namespace cannot send it what would be taken for an answer."""
    with socket.fromfd(route.fileno(), socket.AF_NETLINK, socket.SOCK_RAW, ROUTE) as same:
        port = same.getsockname()[0]
    forger = open_socket(net, socket.AF_NETLINK, socket.SOCK_RAW, ROUTE)
    forged = codec.request(codec.ERROR, bytes(20), sequence=1)
    with (
        forger,
        socket.fromfd(forger.fileno(), socket.AF_NETLINK, socket.SOCK_RAW, ROUTE) as other,
        pytest.raises(ConnectionRefusedError),
    ):
        other.sendto(forged, (port, 0))
    assert link_names(route) == {"lo"}


def test_socket_of_any_kind(net: NetNS) -> None:
    """A socket for TCP that is opened so listens in the namespace and not on the host."""
    opened = open_socket(net, socket.AF_INET, socket.SOCK_STREAM, label="listener")
    with opened, socket.fromfd(opened.fileno(), socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 80))
        server.listen()
        assert "127.0.0.1:80" in run_in(net, "ss", "-Hltn")
        assert os.get_inheritable(opened.fileno()) is False


def test_packet_socket_needs_rights_inside_only(net: NetNS) -> None:
    """A packet socket is opened by who is root inside, whoever he is outside."""
    with open_socket(net, socket.AF_PACKET, socket.SOCK_RAW, label="capture") as opened:
        assert opened.fileno() > 2


def test_kinds_that_there_are_not(net: NetNS) -> None:
    """A family that the kernel lacks is refused with the name of what was asked for."""
    error = fails(SyscallError, errno.EAFNOSUPPORT, lambda: open_socket(net, 45, socket.SOCK_STREAM, label="nobody's"))
    assert error.op == "socket"
    assert "nobody's" in str(error)


def test_what_is_no_namespace(net: NetNS, tmp_path: object) -> None:
    """A closed handle, and a descriptor of something else, are refused."""
    with open(os.devnull, "rb") as file:
        with pytest.raises(SyscallError) as raised:
            open_netlink(file)
        assert raised.value.errno in {errno.EINVAL, errno.ENOTTY}
    net.close()
    with pytest.raises(ClosedError):
        open_netlink(net)
    with pytest.raises(ClosedError):
        open_file_in(net, FORWARD, os.O_RDONLY)


def test_no_descriptors(net: NetNS) -> None:
    """Whichever descriptor is refused, the exception is isolib's and nothing stays open."""
    refused = refusals(lambda: open_netlink(net).close())
    assert len(refused) >= 2
    assert {error.errno for error in refused} == {errno.EMFILE}


# ---- requests ----


def test_middle_one_is_refused(net: NetNS, route: Socket) -> None:
    """Of several in one send the refused one is named with the kernel's words; those after it were tried all the same."""
    wanted = ["br0", "br1", "lo", "br3", "br4"]
    error = fails(SyscallError, errno.EEXIST, lambda: route.send(*map(new_bridge, wanted)))
    assert (error.op, error.target) == ("RTM_NEWLINK", "lo")
    assert names(net) == set(wanted)


def test_first_of_several_refused_is_named(route: Socket) -> None:
    """Of several refused ones it is the first, also where they go in several sends, and those after them are tried."""
    taken = [3, 5, 640, 699]
    route.send(*map(address, taken))
    error = fails(SyscallError, errno.EEXIST, lambda: route.send(*map(address, range(1, 700))))
    assert error.target == "address 3"
    assert listed(route) == list(range(1, 700))


def test_all_refused(route: Socket) -> None:
    """However many are refused at once, the first is named: there is room for what the kernel says of them."""
    error = fails(SyscallError, errno.EADDRNOTAVAIL, lambda: route.send(*map(gone, range(3000))))
    assert error.target == "address 0"
    assert listed(route) == []


def test_answers_belong_to_their_requests(route: Socket) -> None:
    """What several questions in one send are answered comes in their order, and has room in an ordinary user's socket."""
    with socket.fromfd(route.fileno(), socket.AF_NETLINK, socket.SOCK_RAW, ROUTE) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RMEM_MAX)
    wanted = [f"br{number}" for number in range(150)]
    assert route.send(*map(new_bridge, wanted)) == [[]] * 150
    answers = route.send(*map(get_link, wanted))
    assert [[codec.word(codec.table(one.body, 16)[3]) for one in answer] for answer in answers] == [[name] for name in wanted]
    assert route.send() == []


def test_words_of_the_kernel(route: Socket) -> None:
    """What the kernel says of a refusal is part of the exception, where it says something."""
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + codec.nested(18, codec.text(1, "nosuchkind"))
    wrong = Request(16, body, codec.CREATE, "RTM_NEWLINK", "x0", {errno.EOPNOTSUPP: "no kernel has it"})
    error = fails(SyscallError, errno.EOPNOTSUPP, lambda: route.ask(wrong))
    assert "no kernel has it; the kernel says: Unknown device type" in str(error)
    assert "the kernel says" not in str(fails(SyscallError, errno.ENODEV, lambda: route.ask(get_link("nobody"))))


def test_without_rights_inside(rights: str, user_namespaces: None) -> None:
    """Who has no rights over a namespace may look, and is refused changes with the exception for that."""
    with open_netlink(None) as own:
        if rights == "rootless":
            fails(PermissionDenied, errno.EPERM, lambda: own.ask(new_bridge("isolib-br0")))
        assert "lo" in link_names(own)


def test_long_request(route: Socket) -> None:
    """A request as long as an attribute may be goes alone; of it and those around it the refused one is named."""
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + codec.text(3, "long") + codec.attribute(99, bytes(65_531))
    long = Request(18, body, 0, "RTM_GETLINK", "long")
    error = fails(SyscallError, errno.EINVAL, lambda: route.send(new_bridge("br0"), long, new_bridge("br1")))
    assert error.target == "long"
    assert link_names(route) == {"lo", "br0", "br1"}


def test_numbers_of_requests_begin_anew(route: Socket) -> None:
    """After the last number that a request can have comes the first one, never 0."""
    route._numbers = count(0xFFFFFFFD)
    seen = [route.ask(get_link())[0].sequence for _ in range(4)]
    assert seen == [0xFFFFFFFE, 0xFFFFFFFF, 1, 2]


# ---- dumps ----


def test_long_dump(route: Socket) -> None:
    """A list that comes in many parts is whole."""
    route.send(*map(address, range(900)))
    assert listed(route) == list(range(900))
    wanted = {f"br{number}" for number in range(200)}
    route.send(*map(new_bridge, wanted))
    assert link_names(route) == {"lo", *wanted}


def test_change_in_the_midst_of_a_dump(net: NetNS, route: Socket) -> None:
    """A list that changed while it was read is asked for again: it is one that there was."""
    route.send(*map(address, range(1500)))
    turn = 0

    def change() -> None:
        nonlocal turn
        turn += 1
        if turn == 1:
            other.send(gone(0), gone(1), address(5000))

    with open_netlink(net) as other:
        at_each_return(change, lambda code: code is Socket._say.__code__, lambda: found.append(listed(route)))
    assert found == [[*range(2, 1500), 5000]]


found: list[list[int]] = []


def at_each_return(action: Callable[[], object], counts: Callable[[CodeType], bool], call: Callable[[], object]) -> None:
    """Call something, and an action whenever a function returns that counts; as a signal handler would be called there."""

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and counts(frame.f_code):
            sys.setprofile(None)
            action()
            sys.setprofile(profile)

    found.clear()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)


# ---- batches ----


def nft(number: int, flags: int, op: str, target: str, *attributes: bytes) -> Request:
    """Return a request of nftables' for the family inet."""
    return Request(NFTABLES << 8 | number, struct.pack(">BBH", 1, 0, 0) + b"".join(attributes), flags, op, target)


def table(name: str) -> Request:
    """Return the request for a table."""
    return nft(0, codec.CREATE | codec.EXCL, "NFT_MSG_NEWTABLE", name, codec.text(1, name))


def chain(name: str, of: str) -> Request:
    """Return the request for a chain of a table."""
    return nft(3, codec.CREATE, "NFT_MSG_NEWCHAIN", name, codec.text(1, of), codec.text(3, name))


def tables(net: NetNS) -> set[str]:
    """Return the tables of a namespace, as nft sees them."""
    found = json.loads(run_in(net, "nft", "-j", "list", "tables"))["nftables"]
    return {one["table"]["name"] for one in found if "table" in one}


@pytest.fixture
def filters(net: NetNS) -> Iterator[Socket]:
    """Return a socket for nftables."""
    if not nft_can("add table inet tried"):
        pytest.skip("the program nft makes no table here")
    with open_netlink(net, NETFILTER) as opened:
        yield opened


def test_batch_is_atomic(net: NetNS, filters: Socket) -> None:
    """A batch is done as a whole or, when one of it is refused, which is named, not at all."""
    wrong = [table("a"), chain("c", "missing"), table("b"), chain("d", "missing")]
    error = fails(SyscallError, errno.ENOENT, lambda: filters.batch(NFTABLES, *wrong))
    assert (error.op, error.target) == ("NFT_MSG_NEWCHAIN", "c")
    assert tables(net) == set()
    assert filters.batch(NFTABLES, table("a"), chain("c", "a"), table("b")) == [[], [], []]
    assert tables(net) == {"a", "b"}
    assert len(filters.dump(nft(1, 0, "NFT_MSG_GETTABLE", "tables"))) == 2
    assert filters.batch(NFTABLES) == []


def test_batch_of_a_subsystem_that_there_is_not(filters: Socket) -> None:
    """What is wrong with the whole batch is said, and the socket can be used afterwards."""
    with pytest.raises(SyscallError) as raised:
        filters.batch(15, table("a"), table("b"))
    assert raised.value.target == "a"
    assert filters.dump(nft(1, 0, "NFT_MSG_GETTABLE", "tables")) == []


def test_batch_in_which_all_is_refused(net: NetNS, filters: Socket) -> None:
    """However many of a batch are refused, the first is named, and the socket can be used afterwards."""
    wrong = [chain(f"c{number}", "missing") for number in range(2500)]
    error = fails(SyscallError, errno.ENOENT, lambda: filters.batch(NFTABLES, *wrong))
    assert error.target == "c0"
    filters.batch(NFTABLES, table("a"))
    assert tables(net) == {"a"}


def test_long_batch(rights: str, net: NetNS, filters: Socket) -> None:
    """Root's batch may be longer than what a socket has room for by default; for others the error names the limit."""
    comment = codec.attribute(6, b"\0\x80" + bytes(128))

    def new_table(number: int, *more: bytes) -> Request:
        name = f"t{number}"
        return nft(0, codec.CREATE, "NFT_MSG_NEWTABLE", name, codec.text(1, name), comment, *more)

    if rights == "privileged":
        filters.batch(NFTABLES, *map(new_table, range(2500)))
        assert len(filters.dump(nft(1, 0, "NFT_MSG_GETTABLE", "tables"))) == 2500
    else:
        with open("/proc/sys/net/core/wmem_max", encoding="ascii") as file:
            most = 2 * min(int(file.read()), ROOM)  # the kernel doubles what is asked for (socket(7))
        unknown = codec.attribute(99, bytes(60_000))
        long = [new_table(0), *(new_table(number, unknown) for number in range(1, most // 60_000 + 2))]
        error = fails(SyscallError, errno.EMSGSIZE, lambda: filters.batch(NFTABLES, *long))
        assert "net.core.wmem_max" in str(error)
        assert tables(net) == set()
        filters.batch(NFTABLES, long[0])
        assert tables(net) == {"t0"}


# ---- interrupts, threads, forks ----


@pytest.mark.parametrize("kind", ["dump", "send"])
def test_interrupt_at_every_point(route: Socket, kind: str) -> None:
    """Wherever a KeyboardInterrupt comes, what is asked next is answered rightly: a list is whole, a refusal of its own."""
    route.send(*map(address, range(300)))
    asked: Callable[[], object] = {
        "dump": lambda: route.dump(ADDRESSES),
        "send": lambda: route.send(*map(get_link, ["lo"] * 3)),
    }[kind]
    turn = 1
    while not interrupt(turn, asked, lambda code: code.co_filename == module.__file__):
        assert listed(route) == list(range(300))
        assert fails(SyscallError, errno.EEXIST, lambda: route.send(address(7))).target == "address 7"
        turn += 1
    assert turn > 20


def test_interrupt_between_send_and_receive(route: Socket) -> None:
    """What somebody asked and never read, a list that forbids any other meanwhile too, disturbs nobody."""
    route.send(*map(address, range(900)))
    for body in (address(7), ADDRESSES):
        os.write(
            route.fileno(), codec.request(body.type, body.body, flags=codec.ACK if body.type == 20 else codec.DUMP, sequence=1)
        )
        assert listed(route) == list(range(900))
        assert route.send(get_link()) != [[]]


def test_handler_uses_the_socket(route: Socket) -> None:
    """A signal handler, or a finalizer, may use the socket at any point of its use: both get what is theirs."""
    route.send(*map(address, range(300)))
    wrong: list[object] = []
    turns = 0

    def handler() -> None:
        nonlocal turns
        turns += 1
        if turns % 7 == 1 and listed(route) != list(range(300)):
            wrong.append("list")
        if [codec.word(codec.table(one.body, 16)[3]) for one in route.ask(get_link())] != ["lo"]:
            wrong.append("link")

    at_each_return(handler, lambda code: code.co_filename == module.__file__, lambda: found.append(listed(route)))
    assert found == [list(range(300))]
    assert turns > 5
    assert wrong == []


def test_handler_closes(net: NetNS) -> None:
    """A signal handler may close what the interrupted thread uses: that one is told, and no other descriptor is touched."""
    points = 0
    while True:
        route = open_netlink(net)
        number = route.fileno()
        left = points

        def handler(route: Socket = route) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                route.close()

        try:
            at_each_return(handler, lambda code: code.co_filename == module.__file__, lambda: listed(route))  # noqa: B023
        except ClosedError:
            pass
        else:
            if left >= 0:
                route.close()
                break
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        points += 1
    assert points > 3


def test_real_interrupt(route: Socket) -> None:
    """A signal whose handler raises, at some point of many requests, leaves the socket usable."""
    route.send(*map(address, range(500)))
    armed = False

    def handler(_: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed and frame is not None and frame.f_code.co_filename == module.__file__:
            armed = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
        for _ in range(50):
            try:
                armed = True
                while armed:
                    route.dump(ADDRESSES)
            except KeyboardInterrupt:
                pass
            assert listed(route) == list(range(500))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_threads_share_a_socket(route: Socket) -> None:
    """Sixteen threads that ask through one socket each get their own answers and their own refusals."""
    wrong: list[object] = []

    def body(thread: int) -> None:
        own = range(thread * 40, thread * 40 + 40)
        route.send(*map(address, own))
        for number in own:
            try:
                route.ask(address(number))
            except SyscallError as error:
                if error.target != f"address {number}":
                    wrong.append(error)
            if not set(own) <= set(listed(route)) and number % 20 == 0:
                wrong.append(number)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert listed(route) == list(range(640))


def test_closing_while_threads_use_it(net: NetNS) -> None:
    """Closed by one thread, every other is told so, and none reads from a descriptor that has got the number."""
    route = open_netlink(net)
    outcomes: list[object] = []
    started = threading.Barrier(5)

    def body() -> None:
        started.wait()
        try:
            while True:
                listed(route)
        except ClosedError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=body) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    route.close()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4


def test_fork(route: Socket) -> None:
    """A fork may not use it, for answers would go astray, and closing it there takes nothing from the parent."""
    child = os.fork()
    if not child:
        status = 1
        try:
            with pytest.raises(ClosedError, match="process that made it"):
                route.ask(get_link())
            route.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert link_names(route) == {"lo"}


def test_no_room_for_answers(route: Socket) -> None:
    """Answers for which there was no room are not waited for: the error says so, and the socket can be used afterwards."""
    route.send(*map(address, range(1, 60)))
    with socket.fromfd(route.fileno(), socket.AF_NETLINK, socket.SOCK_RAW, ROUTE) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        error = fails(SyscallError, errno.ENOBUFS, lambda: route.send(*[get_link()] * 60))
        assert "net.core.rmem_max" in str(error)
        refused = fails(SyscallError, errno.EEXIST, lambda: route.send(*map(address, range(1, 60))))
        assert refused.target == "address 1"
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        assert len(route.ask(get_link())) == 1


def test_closed(net: NetNS) -> None:
    """Closed, it can be asked nothing more; closing it again is nothing."""
    route = open_netlink(net)
    assert repr(route) == "<Socket netlink route>"
    route.close()
    route.close()
    assert repr(route) == "<Socket netlink route closed>"
    for use in (lambda: route.ask(get_link()), lambda: route.dump(LINKS), route.fileno):
        with pytest.raises(ClosedError):
            use()


# ---- files ----


def test_settings_are_the_namespaces(net: NetNS) -> None:
    """A file of /proc/sys/net that is opened so is the namespace's: read, written, and the host's is as it was."""
    with open(FORWARD, "rb") as file:
        host = file.read()
    for value in (b"1\n", b"0\n", b"1\n"):
        with open_file_in(net, FORWARD, os.O_WRONLY) as opened:
            os.write(opened.fileno(), value)
        with open_file_in(net, FORWARD, os.O_RDONLY) as opened:
            assert os.read(opened.fileno(), 8) == value
        assert run_in(net, "cat", FORWARD) == value.decode()
    with open(FORWARD, "rb") as file:
        assert file.read() == host


def test_setting_on_the_way_to_a_socket(net: NetNS) -> None:
    """A setting is written on the way on which a socket is made; where there is no such setting, there is no socket either."""
    with open_netlink(net, put=(FORWARD, "1")):
        assert run_in(net, "cat", FORWARD) == "1\n"
    path = "/proc/sys/net/ipv4/isolib"
    for where in (net, None):
        with pytest.raises(SyscallError) as raised:
            open_netlink(where, put=(path, "1"))
        assert raised.value.errno == errno.ENOENT
        assert path in str(raised.value)


def test_setting_that_there_is_not(net: NetNS) -> None:
    """A setting that there is not is an error that names it, in the namespace and in one's own."""
    path = "/proc/sys/net/ipv4/isolib"
    for where in (net, None):
        with pytest.raises(SyscallError) as raised:
            open_file_in(where, path, os.O_RDONLY)
        assert raised.value.errno == errno.ENOENT
        assert path in str(raised.value)
