"""Netlink sockets: whose namespace they are of, what comes back to whom, and what a refusal says."""

from __future__ import annotations

import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from isolib import ClosedError, SyscallError, new_netns
from isolib._kernel.handle import Fd
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import GENERIC, NETFILTER, Request, open_netlink
from isolib._kernel.sockets import open_file_in, open_socket
from isolib.net import parsing, requests
from tests.interrupts import interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.netlink.socket import Socket
    from isolib.namespaces import NetNS

pytestmark = pytest.mark.usefixtures("user_namespaces")


@pytest.fixture
def ns() -> Iterator[NetNS]:
    """Return a network namespace."""
    with closing(new_netns()) as made:
        yield made


@pytest.fixture
def route(ns: NetNS) -> Iterator[Socket]:
    """Return a socket of that namespace."""
    with open_netlink(ns) as made:
        yield made


def new(name: str) -> Request:
    """Return the request for a bridge, which every test kernel has."""
    return requests.new_link("bridge", requests.link_attributes(name=name), name=name)


def names(route: Socket) -> list[str]:
    """Return the names of the links of the socket's namespace."""
    return sorted(parsing.parse_link(message).name for message in route.dump(requests.dump_links()))


def test_socket_is_the_namespaces(ns: NetNS, route: Socket) -> None:
    """What is asked of a socket is about its namespace, on whichever thread, and stays so when the handle is closed."""
    route.ask(new("br0"))
    assert names(route) == ["br0", "lo"]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(names, route).result() == ["br0", "lo"]
    ns.close()
    assert names(route) == ["br0", "lo"]
    with open_netlink(None) as own:
        assert set(names(own)) == {name for _, name in socket.if_nameindex()}


def test_answers_are_in_the_order_of_requests(route: Socket) -> None:
    """Several requests in one send are each answered with what they asked for, and those that ask nothing with nothing."""
    answers = route.send(new("a"), requests.get_link("a"), new("b"), requests.get_link("b"), requests.get_link("lo"))
    assert [[parsing.parse_link(message).name for message in answer] for answer in answers] == [[], ["a"], [], ["b"], ["lo"]]
    assert route.send() == []


def test_refusal_names_the_first(route: Socket) -> None:
    """The first that is refused is the one that is told; those after it were carried out all the same."""
    with pytest.raises(SyscallError) as caught:
        route.send(new("a"), new("lo"), new("b"), requests.remove_link(12345, "absent"))
    assert (caught.value.op, caught.value.target, caught.value.errno) == ("RTM_NEWLINK", "bridge lo", errno.EEXIST)
    assert names(route) == ["a", "b", "lo"]


def test_refusal_has_the_kernels_words(route: Socket) -> None:
    """What the kernel says beside an error number is told."""
    with pytest.raises(SyscallError, match="the kernel says: ") as caught:
        route.ask(requests.new_link("no-such-kind", requests.link_attributes(name="x"), name="x"))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_more_than_fits_in_one_send(route: Socket) -> None:
    """Thousands of requests are carried out, and each is answered."""
    answers = route.send(*[requests.get_link("lo")] * 3000)
    assert [len(answer) for answer in answers] == [1] * 3000
    body = requests.link_attributes(alias="x" * 200)
    route.send(*[requests.set_link(1, "lo", body) for _ in range(1000)])
    assert parsing.parse_link(route.ask(requests.get_link("lo"))[0]).alias == "x" * 200


def test_threads_take_turns(route: Socket) -> None:
    """Eight threads use one socket, and each gets its own answers."""

    def work(number: int) -> bool:
        name = f"br{number}"
        for _ in range(5):
            made = route.send(new(name), requests.get_link(name))[1]
            if parsing.parse_link(made[0]).name != name or name not in names(route):
                return False
            route.ask(requests.remove_link(parsing.parse_link(made[0]).index, name))
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert names(route) == ["lo"]


def test_interrupted_and_used_again(route: Socket) -> None:
    """After an interrupt at any point, the next request gets its own answer, and not what was left of another."""
    wanted = route.send.__code__.co_filename
    turn = 0
    while (
        interrupt(turn := turn + 1, lambda: route.send(*[requests.get_link("lo")] * 3), lambda code: code.co_filename == wanted)
        == 0
    ):
        assert names(route) == ["lo"], turn
        assert [len(answer) for answer in route.send(requests.get_link("lo"), requests.get_link("lo"))] == [1, 1], turn
    assert turn > 10


def test_closed_and_forked(ns: NetNS) -> None:
    """A socket that is closed, and the copy of a fork, say so; and closing the copy does nothing to the socket."""
    with open_netlink(ns) as one:
        child = os.fork()
        if not child:
            code = 1
            try:
                names(one)
            except ClosedError:
                one.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert names(one) == ["lo"]
    one.close()
    assert "closed" in repr(one)
    with pytest.raises(ClosedError):
        names(one)


@pytest.mark.parametrize(("protocol", "word"), [(NETFILTER, "netfilter"), (GENERIC, "generic")])
def test_other_protocols(ns: NetNS, protocol: int, word: str) -> None:
    """Sockets of other protocols are opened in the namespace too, and say which they are."""
    with open_netlink(ns, protocol) as found:
        assert word in repr(found)


def test_generic_answers(ns: NetNS) -> None:
    """A dump of generic netlink tells its own family, which every kernel has."""
    with open_netlink(ns, GENERIC) as found:
        answers = found.dump(Request(16, b"\3\1\0\0", 0, "CTRL_CMD_GETFAMILY", "families"))
    assert b"nlctrl\0" in {codec.table(message.body, 4)[2] for message in answers}


def test_handle_keeps_its_sockets(ns: NetNS) -> None:
    """A namespace's handle has one socket for each protocol, opened once and closed with it."""
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: ns.netlink(), range(64)))
    (one,) = found
    assert one is ns.netlink()
    assert ns.netlink(NETFILTER) is not one
    ns.close()
    with pytest.raises(ClosedError):
        names(one)
    with pytest.raises(ClosedError):
        ns.netlink()


def test_sockets_and_files_of_a_namespace(ns: NetNS) -> None:
    """A socket and a file are opened in the namespace, and a refusal there names the call and its object."""
    with open_socket(ns, 2, 1) as stream:
        assert not os.get_inheritable(stream.fileno())
    with pytest.raises(SyscallError) as caught:
        open_socket(ns, 2, 99, label="odd one")
    assert (caught.value.op, caught.value.target) == ("socket", "odd one")
    with open_file_in(ns, "/proc/sys/net/ipv4/ip_forward", os.O_RDONLY) as file:
        assert os.read(file.fileno(), 10) == b"0\n"
    with pytest.raises(SyscallError) as caught:
        open_file_in(ns, "/proc/sys/net/absent", os.O_RDONLY)
    assert (caught.value.errno, caught.value.target) == (errno.ENOENT, "/proc/sys/net/absent")
    with pytest.raises(SyscallError):
        open_file_in(None, "/proc/sys/net/absent", os.O_RDONLY)
    with Fd(os.open("/", os.O_RDONLY)) as no_namespace, pytest.raises(SyscallError) as caught:
        open_socket(no_namespace, 2, 1)
    assert caught.value.errno in {errno.EINVAL, errno.ENOTTY}  # from setns(2), or from asking for its owner
