"""What messages of the kernel say that has changed."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import MalformedError, Message
from isolib.net.ledger import KINDS, Ledger
from isolib.net.values import Address, Link, Neighbour, Route

if TYPE_CHECKING:
    from isolib.net.ledger import Change


def link(index: int, name: str, *, kind: int = 16, up: bool = False, family: int = 0, stats: int | None = None) -> Message:
    """Return a message about a link."""
    body = struct.pack("=BxHiII", family, 1, index, int(up), 0) + codec.text(3, name)
    if stats is not None:
        body += codec.attribute(23, struct.pack("=24Q", *[stats] * 24))
    return Message(kind, 0, 0, 0, body)


def address(text: str, index: int = 2, *, kind: int = 20, family: int = socket.AF_INET) -> Message:
    """Return a message about an address."""
    body = struct.pack("=BBBBI", family, 24, 0, 0, index) + codec.attribute(2, socket.inet_aton(text))
    return Message(kind, 0, 0, 0, body)


def route(text: str, via: str, *, kind: int = 24, flags: int = 0, cloned: bool = False, metric: int = 0) -> Message:
    """Return a message about a route of the main table."""
    head = struct.pack("=BBBBBBBBI", socket.AF_INET, 24, 0, 0, 254, 3, 0, 1, 0x200 if cloned else 0)
    body = head + codec.attribute(1, socket.inet_aton(text)) + codec.attribute(5, socket.inet_aton(via)) + codec.u32(6, metric)
    return Message(kind, flags, 0, 0, body)


def neighbour(text: str, *, kind: int = 28, state: int = 2, family: int = socket.AF_INET) -> Message:
    """Return a message about a neighbour."""
    body = struct.pack("=BxxxiHBB", family, 2, state, 0, 0) + codec.attribute(1, socket.inet_aton(text))
    return Message(kind, 0, 0, 0, body)


def told(ledger: Ledger, *messages: Message) -> list[Change]:
    """Return what is news in messages."""
    return [change for message in messages for change in ledger.take(message)]


@pytest.fixture
def ledger() -> Ledger:
    """Return an empty ledger of everything."""
    return Ledger(KINDS)


def test_a_life(ledger: Ledger) -> None:
    """The first message of a thing adds it, a different one changes it, the same one again is no news, the last removes it."""
    messages = link(2, "a"), link(2, "a"), link(2, "b"), link(2, "b", kind=17), link(2, "b", kind=17)
    added, changed, removed = told(ledger, *messages)
    assert isinstance(added.what, Link)
    assert (added.kind, added.what.name, added.before) == ("added", "a", None)
    assert isinstance(changed.what, Link)
    assert (changed.kind, changed.what.name, changed.before) == ("changed", "b", added.what)
    assert (removed.kind, removed.what, removed.before) == ("removed", changed.what, changed.what)


def test_counters_are_no_change(ledger: Ledger) -> None:
    """That a link has passed packets is no news by itself."""
    assert [change.kind for change in told(ledger, link(2, "a", stats=1), link(2, "a", stats=2))] == ["added"]


def test_bridges_messages_are_of_no_link(ledger: Ledger) -> None:
    """What a bridge tells of its ports is not of the links: one that leaves it is not removed."""
    told(ledger, link(2, "a"))
    assert told(ledger, link(2, "a", family=7), link(2, "a", kind=17, family=7), link(3, "b", family=7)) == []
    assert [change.kind for change in told(ledger, link(2, "a", kind=17))] == ["removed"]


def test_of_each_kind(ledger: Ledger) -> None:
    """Addresses, routes and neighbours are told apart by what makes them the same: not by what can change."""
    found = told(ledger, address("10.0.0.1"), address("10.0.0.1", 3), address("10.0.0.1", kind=21))
    assert [(change.kind, type(change.what)) for change in found] == [
        ("added", Address),
        ("added", Address),
        ("removed", Address),
    ]
    found = told(ledger, neighbour("10.0.0.2"), neighbour("10.0.0.2", state=4), neighbour("10.0.0.2", kind=29))
    assert [(change.kind, type(change.what)) for change in found] == [
        ("added", Neighbour),
        ("changed", Neighbour),
        ("removed", Neighbour),
    ]


def test_routes(ledger: Ledger) -> None:
    """A route beside another is one more, one in its place changes it, and one that was only learned is none."""
    added, beside = told(ledger, route("10.1.0.0", "10.0.0.1"), route("10.1.0.0", "10.0.0.2", metric=7))
    assert added.kind == beside.kind == "added"
    [changed] = told(ledger, route("10.1.0.0", "10.0.0.3", flags=codec.REPLACE))
    assert (changed.kind, changed.before) == ("changed", added.what)
    [new] = told(ledger, route("10.2.0.0", "10.0.0.3", flags=codec.REPLACE))
    assert new.kind == "added"
    assert told(ledger, route("10.3.0.0", "10.0.0.1", cloned=True)) == []
    [removed] = told(ledger, route("10.1.0.0", "10.0.0.3", kind=25), route("10.1.0.0", "10.0.0.3", kind=25))
    assert isinstance(removed.what, Route)
    assert (removed.kind, removed.what.destination) == ("removed", ip_network("10.1.0.0/24"))


def test_when_routes_go_silently(ledger: Ledger) -> None:
    """A link that goes or goes down, and an address that goes, make routes go of which nobody tells."""
    for messages, is_stale in (
        ([link(2, "a", up=True), address("10.0.0.1"), neighbour("10.0.0.2", kind=29), route("10.1.0.0", "10.0.0.1")], False),
        ([link(2, "b", up=True)], False),
        ([link(2, "b")], True),
        ([link(2, "b", up=True)], False),
        ([address("10.0.0.1", kind=21)], True),
        ([link(2, "b", kind=17)], True),
    ):
        ledger.is_stale = False
        told(ledger, *messages)
        assert ledger.is_stale is is_stale


def test_comparing(ledger: Ledger) -> None:
    """Compared with all that there is, what is new, different and gone is told, and then known."""
    told(ledger, link(1, "lo"), link(2, "a"), link(3, "b"))
    everything = [link(1, "lo"), link(3, "c"), link(4, "d"), link(5, "e", family=7)]
    found = list(ledger.compare(Link, everything))
    assert [(change.kind, getattr(change.what, "name", "")) for change in found] == [
        ("removed", "a"),
        ("changed", "c"),
        ("added", "d"),
    ]
    assert list(ledger.compare(Link, everything)) == []


def test_what_is_not_wanted() -> None:
    """Kinds that nobody asked for, families that are not IP's, and other messages are passed over."""
    ledger = Ledger([Link, Address])
    others = neighbour("10.0.0.1"), route("10.1.0.0", "10.0.0.1"), Message(99, 0, 0, 0, b""), Message(codec.DONE, 0, 0, 0, b"")
    assert told(ledger, *others, address("10.0.0.1", family=28)) == []
    assert told(Ledger(KINDS), neighbour("224.0.0.22", state=0x40), neighbour("10.0.0.1", family=7)) == []


def test_message_that_is_cut(ledger: Ledger) -> None:
    """A message that is too short is refused, and changes nothing."""
    for kind in (16, 17, 20, 24, 28):
        with pytest.raises(MalformedError):
            told(ledger, Message(kind, 0, 0, 0, b"\2\0\0"))
    assert told(ledger, link(2, "a"))[0].kind == "added"
