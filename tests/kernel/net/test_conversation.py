"""Conversations about several namespaces: their order, their end at what is refused, and what is done on the way."""

from __future__ import annotations

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import ClosedError, SyscallError
from isolib._kernel.netlink.conversation import Turn, converse
from isolib._kernel.netlink.socket import Socket
from isolib._kernel.sockets import open_file_in
from isolib.net import parsing, requests
from isolib.net.queries import links
from isolib.net.where import Where

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from isolib._kernel.netlink.socket import Request
    from isolib.namespaces import NetNS

FORWARD = "/proc/sys/net/ipv4/ip_forward"
ABSENT = "/proc/sys/net/ipv4/isolib"


@pytest.fixture
def new() -> Iterator[NetNS]:
    """Return a namespace that nobody has spoken with."""
    with closing(isolib.new_netns()) as made:
        yield made


def bridge(name: str) -> Request:
    """Return the request for a bridge, which every test kernel has."""
    return requests.new_link("bridge", requests.link_attributes(name=name), name=name)


def names(ns: NetNS) -> set[str]:
    """Return the names of the links of a namespace."""
    return {link.name for link in links(ns)}


def forwarding(ns: NetNS | None) -> bytes:
    """Return what a namespace has for this setting."""
    with open_file_in(ns, FORWARD, os.O_RDONLY) as opened:
        return os.read(opened.fileno(), 10)


def test_turns_are_taken_in_their_order(a: NetNS, b: NetNS) -> None:
    """Each turn is about its namespace, sees what those before it have done, and keeps what it was answered."""
    one, two = a.netlink(), b.netlink()
    turns = (
        Turn(a, one, (bridge("x"), requests.get_link("x"))),
        Turn(b, two, (bridge("y"),)),
        Turn(a, one, (requests.get_state(1, "lo"), requests.get_link("x"))),
    )
    converse(turns)
    answered = [[parsing.parse_link(message).name for message in turn.answers] for turn in turns]
    assert answered == [["x"], [], ["lo", "x"]]
    assert (names(a), names(b)) == ({"lo", "x"}, {"lo", "y"})


def test_what_is_refused_is_the_end(a: NetNS, b: NetNS) -> None:
    """Of the turn in which something is refused the first such request is told, and those after it are not taken."""
    with pytest.raises(SyscallError) as caught:
        converse(
            (
                Turn(a, a.netlink(), (bridge("x"),)),
                Turn(b, b.netlink(), (bridge("y"), bridge("lo"), requests.remove_link(12345, "absent"))),
                Turn(a, a.netlink(), (bridge("z"),)),
            )
        )
    assert (caught.value.op, caught.value.target, caught.value.errno) == ("RTM_NEWLINK", "bridge lo", errno.EEXIST)
    assert (names(a), names(b)) == ({"lo", "x"}, {"lo", "y"})


@pytest.mark.parametrize("is_new", [True, False])
def test_setting_on_the_way(a: NetNS, new: NetNS, *, is_new: bool) -> None:
    """A setting is written in the namespace, and not outside, whether that has a socket or gets it on the way."""
    outside = forwarding(None)
    if not is_new:
        new.netlink()
    turns = Turn(a, a.netlink(), (bridge("x"),)), Turn(new, None, (requests.get_link("lo"),), (FORWARD, "1"))
    Where(new).converse(*turns)
    assert forwarding(new) == b"1\n"
    assert forwarding(None) == outside
    assert [parsing.parse_link(message).name for message in turns[1].answers] == ["lo"]
    assert turns[1].socket is new.netlink()
    assert (names(a), names(new)) == ({"lo", "x"}, {"lo"})


@pytest.mark.parametrize("is_new", [True, False])
def test_setting_that_there_is_not(a: NetNS, new: NetNS, *, is_new: bool) -> None:
    """Where there is no such setting, nothing is written, and what is said is said."""
    if not is_new:
        new.netlink()
    Where(new).converse(Turn(a, a.netlink(), (bridge("x"),)), Turn(new, None, (bridge("y"),), (ABSENT, "1")))
    assert (names(a), names(new)) == ({"lo", "x"}, {"lo", "y"})


@pytest.mark.parametrize("is_new", [True, False])
def test_setting_with_a_wrong_value(a: NetNS, new: NetNS, *, is_new: bool) -> None:
    """A value that the kernel does not take is refused with the name of the setting, before anything is said there."""
    if not is_new:
        new.netlink()
    with pytest.raises(SyscallError, match="ip_forward"):
        Where(new).converse(Turn(a, a.netlink(), (bridge("x"),)), Turn(new, None, (bridge("y"),), (FORWARD, "nonsense")))
    assert (names(a), names(new)) == ({"lo", "x"}, {"lo"})


def test_closed_namespace(a: NetNS, new: NetNS) -> None:
    """Who would speak about a namespace that is closed is told, and nothing is done."""
    where = Where(new)
    new.close()
    with pytest.raises(ClosedError):
        where.converse(Turn(a, a.netlink(), (bridge("x"),)), Turn(new, None, (bridge("y"),)))
    assert names(a) == {"lo"}


def test_threads_with_the_same_sockets(a: NetNS, b: NetNS) -> None:
    """Threads that speak about two namespaces in opposite orders do not wait for each other, and each hears its own."""
    ends = (a, a.netlink()), (b, b.netlink())

    def work(number: int) -> bool:
        name = f"br{number}"
        order = ends if number % 2 else ends[::-1]
        for _ in range(10):
            turns = tuple(Turn(ns, socket, (bridge(name), requests.get_link(name))) for ns, socket in order)
            converse(turns)
            found = [parsing.parse_link(turn.answers[0]) for turn in turns]
            if {link.name for link in found} != {name}:
                return False
            removals = [requests.remove_link(link.index, name) for link in found]
            converse(tuple(Turn(*end, (removal,)) for end, removal in zip(order, removals, strict=True)))
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert (names(a), names(b)) == ({"lo"}, {"lo"})


def test_answers_of_whom_it_has_interrupted(a: NetNS, b: NetNS) -> None:
    """A conversation that is begun while the thread is hearing on one of its sockets leaves it what is its own."""
    socket, other = a.netlink(), b.netlink()
    found = socket.lend(lambda: socket.ask(requests.get_link("lo")))
    assert parsing.parse_link(found[0]).name == "lo"
    turns = Turn(a, socket, (requests.get_link("lo"),)), Turn(b, other, (requests.get_link("lo"),))
    socket.lend(lambda: other.lend(lambda: converse(turns)))
    assert [len(turn.answers) for turn in turns] == [1, 1]


def test_in_the_midst_of_a_long_dump(a: NetNS, b: NetNS, new: NetNS) -> None:
    """A conversation that interrupts a long dump on its socket gets its answers, does what it is to do, and spoils nothing."""
    socket = a.netlink()
    ways = [ip_network((10 << 24 | number << 8, 24)) for number in range(3000)]
    with isolib.new_veth(a, b, names=("wire", "far"), addresses=("192.0.2.1/24", None)) as cable:
        socket.send(*(requests.add_route(way, index=cable.a.index) for way in ways))
        turns = (
            Turn(a, socket, (bridge("x"), requests.get_link("x"))),
            Turn(new, None, (bridge("y"), requests.get_link("y")), (ABSENT, "1")),
        )

        def interrupt(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code is Socket._hear.__code__:
                sys.setprofile(None)
                Where(new).converse(*turns)

        sys.setprofile(interrupt)
        try:
            found = socket.dump(requests.dump_routes(4))
        finally:
            sys.setprofile(None)
    assert {parsing.parse_destination(message) for message in found} >= set(ways)
    assert [[parsing.parse_link(message).name for message in turn.answers] for turn in turns] == [["x"], ["y"]]
    assert (names(a), names(new)) == ({"lo", "x"}, {"lo", "y"})
