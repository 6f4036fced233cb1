"""From rtnetlink's messages to values: bytes that the kernel sent, bytes that it never would, and bytes made here."""

from __future__ import annotations

import struct
from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import MalformedError, Message
from isolib.net import parsing, requests
from isolib.net.parsing import IFADDR, IFINFO, NDMSG, RTMSG
from isolib.net.values import Address, BridgeOptions, Link, LinkStats, Neighbour, PortOptions, Route, Rule

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv4Network

    from hypothesis.strategies import SearchStrategy

PARSERS: dict[str, tuple[Callable[[Message], object], int, type]] = {
    "link": (parsing.parse_link, IFINFO.size, Link),
    "address": (parsing.parse_address, IFADDR.size, Address),
    "route": (parsing.parse_route, RTMSG.size, Route),
    "neighbour": (parsing.parse_neighbour, NDMSG.size, Neighbour),
    "rule": (parsing.parse_rule, RTMSG.size, Rule),
}

every_parser = pytest.mark.parametrize("which", PARSERS)


def message(body: bytes) -> Message:
    """Return a message with this body."""
    return Message(16, 0, 1, 0, body)


# ---- links ----


def link(*attributes: bytes, index: int = 2, flags: int = 0) -> Link:
    """Return a link of these attributes."""
    return parsing.parse_link(message(IFINFO.pack(0, 1, index, flags, 0) + b"".join(attributes)))


def test_link_without_anything() -> None:
    """A message without attributes is a link without anything."""
    assert link() == Link(index=2, name="", kind="", mac="", mtu=0, flags=frozenset(), state="unknown")


def test_link_with_everything() -> None:
    """Each attribute comes to be the field that it is for."""
    found = link(
        codec.text(3, "eth0"),
        codec.attribute(1, bytes.fromhex("02420a000001")),
        codec.u32(4, 1500),
        codec.u8(16, 6),
        codec.u32(10, 7),
        codec.u32(5, 9),
        codec.s32(37, 3),
        codec.text(20, "hi"),
        codec.attribute(23, struct.pack("=10Q", *range(10)) + bytes(100)),
        codec.nested(18, codec.text(1, "veth")),
        flags=0x1 | 0x2 | 0x40 | 0x10000,
    )
    assert found == Link(
        index=2,
        name="eth0",
        kind="veth",
        mac="02:42:0a:00:00:01",
        mtu=1500,
        flags=frozenset({"up", "broadcast", "running", "lower_up"}),
        state="up",
        master=7,
        lower=9,
        lower_nsid=3,
        alias="hi",
        stats=LinkStats(*range(10)),
    )
    assert found.up


@pytest.mark.parametrize(
    ("kind", "data", "field", "expected"),
    [
        ("vlan", codec.u16(1, 4094), "vlan", 4094),
        ("vxlan", codec.u32(1, 77) + codec.u32(3, 5), "vni", 77),
        ("vxlan", codec.u32(1, 77) + codec.u32(3, 5), "lower", 5),
        ("macvlan", codec.u32(1, 4), "mode", "bridge"),
        ("macvtap", codec.u32(1, 16), "mode", "source"),
        ("macvlan", codec.u32(1, 99), "mode", None),
        ("ipvlan", codec.u16(1, 2), "mode", "l3s"),
        ("dummy", codec.u32(1, 4), "mode", None),
        ("wireguard", b"\xff\xff", "vlan", None),
    ],
)
def test_links_of_kinds(kind: str, data: bytes, field: str, expected: object) -> None:
    """What is of a kind's own is read for that kind, and for no other one."""
    assert getattr(link(codec.nested(18, codec.text(1, kind), codec.attribute(2, data))), field) == expected


def test_bridge_and_port() -> None:
    """Times are seconds, of hundredths; flags are truths; a port says which state it is in."""
    options = (
        codec.u32(1, 1500),
        codec.u32(2, 200),
        codec.u32(3, 2000),
        codec.u32(4, 30000),
        codec.u32(5, 1),
        codec.u16(6, 4096),
    )
    more = (codec.u8(7, 1), codec.u16(39, 7), codec.u8(23, 1))
    bridge = link(codec.nested(18, codec.text(1, "bridge"), codec.nested(2, *options, *more)))
    assert bridge.bridge == BridgeOptions(
        stp=True,
        forward_delay=15.0,
        hello_time=2.0,
        max_age=20.0,
        ageing_time=300.0,
        priority=4096,
        vlan_filtering=True,
        default_pvid=7,
        multicast_snooping=True,
    )
    states = ("disabled", "listening", "learning", "forwarding", "blocking", "5")
    for number, state in enumerate(states):
        data = (codec.u8(1, number), codec.u16(2, 32), codec.u32(3, 100), *(codec.u8(kind, 1) for kind in (4, 5, 7, 8, 9, 33)))
        port = link(codec.nested(18, codec.text(4, "bridge"), codec.nested(5, *data)))
        assert port.port == PortOptions(
            state=state,
            priority=32,
            cost=100,
            hairpin=True,
            guard=True,
            fast_leave=True,
            learning=True,
            flood=True,
            isolated=True,
        )
    assert link(codec.nested(18, codec.text(4, "bond"), codec.nested(5, *options))).port is None


def test_states_and_flags_that_are_new() -> None:
    """A state that is not known is unknown, and flags that are not known are left out."""
    assert [link(codec.u8(16, number)).state for number in (0, 6, 7, 255)] == ["unknown", "up", "unknown", "unknown"]
    assert link(flags=0x80000000).flags == frozenset()
    assert link(flags=0x8).kind == "loopback"


# ---- what requests say, read back ----


@pytest.mark.parametrize("text", ["10.0.0.1/24", "10.0.0.1/32", "10.0.0.1/31", "fd00::1/64", "fe80::1/64"])
def test_addresses_that_are_asked_for(text: str) -> None:
    """The body of a request for an address is read as that address."""
    interface = ip_interface(text)
    found = parsing.parse_address(message(requests.add_address(interface, 7, "eth0").body))
    assert (found.interface, found.index, found.peer) == (interface, 7, None)
    assert "permanent" in found.flags
    assert found.scope == ("link" if interface.is_link_local else "global")
    has_broadcast = isinstance(interface, IPv4Interface) and interface.network.prefixlen < 31
    assert found.broadcast == (interface.network.broadcast_address if has_broadcast else None)
    other = ip_address("10.0.0.9" if interface.version == 4 else "fd00::9")
    assert parsing.parse_address(message(requests.add_address(interface, 7, "eth0", peer=other).body)).peer == other


NUMBERS = st.integers(1, 0xFFFFFFFF)
NETWORKS_4 = st.builds(
    lambda address, length: ip_network((address, length), strict=False), st.ip_addresses(v=4), st.integers(0, 32)
)
NETWORKS_6 = st.builds(
    lambda address, length: ip_network((address, length), strict=False), st.ip_addresses(v=6), st.integers(0, 128)
)
ADDRESSES_4 = st.ip_addresses(v=4)
ADDRESSES_6 = st.ip_addresses(v=6)
TABLES = st.sampled_from(["main", "local", "default"]) | st.integers(1, 252) | st.integers(256, 0xFFFFFFFF)


@given(
    parts=st.tuples(NETWORKS_4, st.none() | ADDRESSES_4 | ADDRESSES_6, st.none() | ADDRESSES_4)
    | st.tuples(NETWORKS_6, st.none() | ADDRESSES_6, st.none() | ADDRESSES_6),
    index=st.none() | st.integers(1, (1 << 31) - 1),
    metric=st.none() | NUMBERS,
    table=TABLES,
    kind=st.sampled_from(["unicast", "blackhole", "unreachable", "prohibit", "throw"]),
    more=st.tuples(st.none() | st.integers(68, 65535), st.booleans()),
    ways=st.just(()) | st.lists(st.tuples(st.integers(1, (1 << 31) - 1), st.integers(1, 256)), min_size=2, max_size=5),
)
def test_routes_that_are_asked_for(
    *,
    parts: tuple[IPv4Network, IPv4Address | None, IPv4Address | None],
    index: int | None,
    metric: int | None,
    table: str | int,
    kind: str,
    more: tuple[int | None, bool],
    ways: list[tuple[int, int]],
) -> None:
    """The body of a request for a route is read as that route, whatever it is made of."""
    destination, gateway, source = parts
    hops = tuple((gateway, *way) for way in ways)
    places = {"metric": metric, "table": table, "source": source, "mtu": more[0], "onlink": more[1], "hops": hops}
    request = requests.add_route(destination, gateway=gateway, index=index, kind=kind, **places)  # type: ignore[arg-type]
    assert parsing.parse_route(message(request.body)) == Route(
        destination=destination,
        gateway=gateway,
        index=index,
        source=source,
        metric=metric or 0,
        table=table,
        protocol="static",
        scope="link" if gateway is None and kind == "unicast" else "global",
        type=kind,
        hops=hops,
        mtu=more[0],
        onlink=more[1],
    )


def rules(family: int) -> SearchStrategy[Rule]:
    """Return rules of a family that the kernel can have."""
    networks = st.none() | (NETWORKS_4 if family == 2 else NETWORKS_6).filter(lambda one: one.prefixlen > 0)
    words = st.sampled_from(["", "lo", "eth0", "é"])

    def rule(choice: tuple[str, str | int], mark: tuple[int, int], **fields: Any) -> Rule:  # noqa: ANN401
        return Rule(action=choice[0], table=choice[1], family=family, mark=mark[0], mask=mark[1], **fields)

    refusals = st.sampled_from(["blackhole", "unreachable", "prohibit"])
    return st.builds(
        rule,
        st.tuples(st.just("lookup"), TABLES) | st.tuples(refusals, st.just("unspec")),
        st.tuples(NUMBERS, NUMBERS) | st.just((0, 0)),
        priority=NUMBERS,
        source=networks,
        destination=networks,
        incoming=words,
        outgoing=words,
    )


@given(rule=rules(2) | rules(10))
def test_rules_that_are_asked_for(rule: Rule) -> None:
    """The body of a request for a rule is read as that rule, whatever it is made of."""
    assert parsing.parse_rule(message(requests.add_rule(rule).body)) == rule
    assert parsing.parse_rule(message(requests.remove_rule(rule).body)) == rule


@pytest.mark.parametrize("text", ["10.0.0.9", "fd00::9"])
def test_neighbours_that_are_asked_for(text: str) -> None:
    """The body of a request for a neighbour is read as that neighbour."""
    request = requests.add_neighbour(ip_address(text), bytes.fromhex("020000000009"), 7, "eth0")
    assert parsing.parse_neighbour(message(request.body)) == Neighbour(
        address=ip_address(text), index=7, mac="02:00:00:00:00:09", state="permanent"
    )


# ---- what the kernel does not send ----


@every_parser
@given(body=st.binary(max_size=200))
def test_bytes_of_any_kind(which: str, body: bytes) -> None:
    """Whatever the bytes are, they are a value, or are told to be malformed."""
    parse, _, kind = PARSERS[which]
    try:
        found = parse(message(body))
    except MalformedError:
        return
    assert isinstance(found, kind) or (which == "neighbour" and found is None)


def attributes(depth: int = 2) -> SearchStrategy[bytes]:
    """Return attributes of the kinds that are looked at, with values of any length, or attributes again."""
    values = st.binary(max_size=20) | st.sampled_from(
        [b"veth\0", b"bridge\0", b"vlan\0", b"vxlan\0", b"macvlan\0", b"ipvlan\0"]
    )
    if depth:
        values |= attributes(depth - 1)
    one = st.builds(codec.attribute, st.integers(0, 40), values)
    return st.lists(one, max_size=6).map(b"".join)


@every_parser
@given(data=st.data())
def test_attributes_of_any_kind(which: str, data: st.DataObject) -> None:
    """Whatever well-formed attributes hold, they are a value, or are told to be malformed."""
    parse, size, kind = PARSERS[which]
    family = data.draw(st.sampled_from([0, 2, 7, 10, 128]))
    head = bytes([family]) + data.draw(st.binary(min_size=size - 1, max_size=size - 1))
    try:
        found = parse(message(head + data.draw(attributes())))
    except MalformedError:
        return
    assert isinstance(found, kind) or (which == "neighbour" and found is None)


@every_parser
def test_too_short(which: str) -> None:
    """A message that is shorter than its structure is malformed."""
    parse, size, _ = PARSERS[which]
    for length in range(size):
        with pytest.raises(MalformedError, match=f"{length} bytes"):
            parse(message(bytes(length)))


@pytest.mark.parametrize(
    ("parse", "body", "words"),
    [
        (parsing.parse_address, IFADDR.pack(2, 33, 0, 0, 1) + codec.attribute(1, bytes(4)), "prefix of 33 bits"),
        (parsing.parse_address, IFADDR.pack(2, 24, 0, 0, 1) + codec.attribute(1, bytes(5)), "an address of 5 bytes"),
        (parsing.parse_address, IFADDR.pack(2, 24, 0, 0, 1), "without an address"),
        (parsing.parse_route, RTMSG.pack(2, 33, 0, 0, 0, 0, 0, 0, 0), "prefix of 33 bits"),
        (parsing.parse_route, RTMSG.pack(2, 24, 0, 0, 0, 0, 0, 0, 0) + codec.attribute(1, bytes(3)), "a network of 3 bytes"),
        (parsing.parse_route, RTMSG.pack(128, 0, 0, 0, 0, 0, 0, 0, 0), "a route of family 128"),
        (parsing.parse_rule, RTMSG.pack(128, 0, 0, 0, 0, 0, 0, 0, 0), "a rule of family 128"),
        (parsing.parse_rule, RTMSG.pack(10, 0, 129, 0, 0, 0, 0, 0, 0) + codec.attribute(2, bytes(16)), "prefix of 129 bits"),
        (parsing.parse_route, RTMSG.pack(2, 0, 0, 0, 0, 0, 0, 0, 0) + codec.attribute(9, b"\xff\xff" + bytes(8)), "a next hop"),
        (parsing.parse_route, RTMSG.pack(2, 0, 0, 0, 0, 0, 0, 0, 0) + codec.attribute(9, b"\1\0" + bytes(8)), "a next hop"),
    ],
)
def test_malformed(parse: Callable[[Message], object], body: bytes, words: str) -> None:
    """What is wrong with a message is said."""
    with pytest.raises(MalformedError, match=words):
        parse(message(body))


def test_families() -> None:
    """Messages of IP are told from those of multicast forwarding and of bridges, and an empty one is neither."""
    assert [parsing.is_of_ip(message(body)) for body in (b"\2", b"\x0a", b"\x80", b"\7", b"\0", b"")] == [True] * 2 + [
        False
    ] * 4
    assert parsing.parse_neighbour(message(NDMSG.pack(7, 1, 2, 0, 0) + codec.attribute(2, bytes(6)))) is None


def test_names_that_are_no_text() -> None:
    """A name in bytes that are no UTF-8 comes back as Python writes such file names, and goes no further than its NUL."""
    assert link(codec.attribute(3, b"\xffe\0th")).name == "\udcffe"
