"""nftables as values and bytes; what a network's firewall asks for; which destinations are refused."""

from __future__ import annotations

import itertools
import struct
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib._kernel.netlink import codec, nft
from isolib._kernel.netlink import nft_match as m
from isolib._kernel.netlink.codec import MalformedError, Message
from isolib._kernel.netlink.nft import Element, Hook, Kind, Scope, joined, key, parse_elements, parse_rule
from isolib._kernel.netlink.nft_expressions import (
    ACCEPT,
    Bitwise,
    Byteorder,
    Compare,
    Counter,
    Ct,
    Expression,
    Fib,
    Lookup,
    Masquerade,
    Meta,
    Nat,
    Numgen,
    Payload,
    Reject,
    Unknown,
    Verdict,
    decode,
    encode,
    register,
)
from isolib._kernel.netlink.nft_numbers import Code, Op
from isolib.errors import PlanError
from isolib.net.egress import Egress, Interval
from isolib.net.ruleset import Changes, Published, State, Target, check_port, check_published

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Network
    from typing import TypeAlias

    Decisions: TypeAlias = Sequence[tuple[Sequence[IPv4Network], bool]]

    from isolib._kernel.netlink.socket import Request

# ---- bytes ----

#: What nft 1.0.6 sends for `iifname "eth0" ip daddr 10.1.32.0/20 tcp dport 80`, and for the two values of a translation.
EXPRESSIONS = bytes.fromhex(
    "24000180090001006d6574610000000014000280080002000000000608000100000000013800018008000100636d70002c0002800800010000000001"
    "080002000000000018000380140001006574683000000000000000000000000024000180090001006d65746100000000140002800800020000000"
    "00f08000100000000012c00018008000100636d700020000280080001000000000108000200000000000c0003800500010002000000340001800c"
    "0001007061796c6f616400240002800800010000000001080002000000000108000300000000100800040000000004440001800c000100626974"
    "7769736500340002800800010000000001080002000000000108000300000000040c00048008000100fffff0000c00058008000100000000002c"
    "00018008000100636d700020000280080001000000000108000200000000000c000380080001000a01200024000180090001006d657461000000"
    "0014000280080002000000001008000100000000012c00018008000100636d700020000280080001000000000108000200000000000c00038005"
    "00010006000000340001800c0001007061796c6f6164002400028008000100000000010800020000000002080003000000000208000400000000"
    "022c00018008000100636d700020000280080001000000000108000200000000000c0003800600010000500000"
)
NAT = bytes.fromhex(
    "2c0001800e000100696d6d6564696174650000001800028008000100000000010c000280080001000a0000022c0001800e000100696d6d656469"
    "6174650000001800028008000100000000020c000280060001001f90000038000180080001006e6174002c000280080001000000000108000200"
    "00000002080003000000000108000500000000020800070000000002"
)
#: The same for `set s { type ipv4_addr; flags interval; }` of table inet t: the body of the message.
SET = bytes.fromhex(
    "010000000600010074000000060002007300000008000300000000040800040000000007080005000000000408000a00000000010a000d00000402"
    "0000000000"
)


def test_rules_are_written_as_nft_writes_them() -> None:
    """A rule that looks at interface, network and port is byte for byte the one that nft sends."""
    ours = m.rule(m.arrives("eth0"), m.to(ip_network("10.1.32.0/20")), m.port("tcp", 80))
    assert encode(*ours) == EXPRESSIONS
    assert decode(EXPRESSIONS) == ours


def test_translation_is_read_as_nft_writes_it() -> None:
    """A translation that nft sends is ours; the bits that the kernel sets by itself are not told, and what it loads is kept."""
    *loads, nat = decode(NAT)
    assert nat == Nat(1, nft.IPV4, 1, 2)
    assert [one.word for one in loads] == ["immediate", "immediate"]
    assert encode(*loads) == NAT[: len(encode(*loads))]


def test_sets_are_written_as_nft_writes_them() -> None:
    """A set of intervals is byte for byte the one that nft sends."""
    assert Scope(nft.INET, "t").new_set("s", nft.ADDRESS[nft.IPV4], intervals=True).body == SET


WORDS = st.integers(0, 2**32 - 1)
LONGS = st.integers(0, 2**64 - 1)
REGISTERS = st.integers(1, 23)
VALUES = st.binary(min_size=1, max_size=64)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
MAYBE = st.none() | WORDS
FLAGS = st.none() | st.just(4) | st.just(2**31)
STRATEGIES: dict[type[Expression], st.SearchStrategy[Expression]] = {
    Payload: st.builds(Payload, WORDS, WORDS, WORDS, REGISTERS),
    Meta: st.builds(Meta, WORDS, MAYBE, MAYBE),
    Ct: st.builds(Ct, WORDS, MAYBE, st.none() | st.integers(0, 255), MAYBE),
    Compare: st.builds(Compare, WORDS, VALUES, REGISTERS),
    Bitwise: st.builds(Bitwise, VALUES, VALUES, REGISTERS, REGISTERS),
    Byteorder: st.builds(Byteorder, WORDS, WORDS, WORDS, REGISTERS, REGISTERS),
    Lookup: st.builds(Lookup, NAMES, REGISTERS, MAYBE, WORDS),
    Counter: st.builds(Counter, LONGS, LONGS),
    Numgen: st.builds(Numgen, WORDS, WORDS, WORDS, REGISTERS),
    Fib: st.builds(Fib, WORDS, WORDS, REGISTERS),
    Reject: st.builds(Reject, WORDS, st.none() | st.integers(0, 255)),
    Masquerade: st.builds(Masquerade, MAYBE),
    Nat: st.builds(Nat, WORDS, WORDS, REGISTERS, st.none() | REGISTERS, FLAGS),
    Verdict: st.builds(Verdict, st.sampled_from(Code), st.none() | NAMES),
    Unknown: st.builds(Unknown, st.sampled_from(("log", "objref")), st.binary(max_size=40)),
}


@given(st.lists(st.one_of(*STRATEGIES.values()), max_size=5))
def test_expressions_are_read_as_they_were_written(expressions: list[Expression]) -> None:
    """Whatever the values, what was written is what is read."""
    assert decode(encode(*expressions)) == tuple(expressions)


def test_every_expression_is_tried() -> None:
    """No class of expressions is left out of the test before this one."""
    assert {one.__name__ for one in STRATEGIES} == {one.__name__ for one in Expression.__subclasses__()}


@given(st.binary(max_size=200))
def test_nonsense_is_said_to_be_nonsense(data: bytes) -> None:
    """Bytes of any kind are expressions, or malformed; nothing else is raised."""
    try:
        found = decode(data)
    except MalformedError:
        return
    assert all(isinstance(one, Expression) for one in found)


@given(
    st.sampled_from(sorted({"payload", "meta", "ct", "cmp", "bitwise", "nat", "immediate", "lookup"})), st.binary(max_size=80)
)
def test_other_shapes_are_kept(word: str, data: bytes) -> None:
    """An expression whose attributes are not as ours are is shown as it came."""
    whole = codec.nested(1, codec.text(1, word), codec.nested(2, data))
    (found,) = decode(whole)
    assert found.word == word
    if isinstance(found, Unknown):
        assert found.attributes == data


def test_registers_are_named_as_the_kernel_does() -> None:
    """Each fourth word is one of the long registers; there are sixteen."""
    assert [register(word) for word in range(16)] == [1, 9, 10, 11, 2, 13, 14, 15, 3, 17, 18, 19, 4, 21, 22, 23]
    for word in (-1, 16):
        with pytest.raises(ValueError, match="registers"):
            register(word)


def told(body: bytes) -> Message:
    """Return a message as the kernel sends it."""
    return Message(0, 0, 0, 0, body)


def test_rules_are_read() -> None:
    """What was asked for is what is read: where it is, what it does, its comment."""
    asked = Scope(nft.INET, "tbl").add("chain", m.rule(m.count(), ACCEPT), "why \N{BLACK HEART SUIT}")
    rule = parse_rule(told(asked.body + codec.be64(3, 77)))
    assert (rule.family, rule.table, rule.chain, rule.handle) == ("inet", "tbl", "chain", 77)
    assert rule.expressions == (Counter(), ACCEPT)
    assert rule.comment == "why \N{BLACK HEART SUIT}"


def test_long_comments_are_refused() -> None:
    """A comment is as long as nft would take, and no longer."""
    scope = Scope(nft.INET, "t")
    assert parse_rule(told(scope.add("c", (), "x" * 127).body)).comment == "x" * 127
    with pytest.raises(ValueError, match="127 bytes"):
        scope.add("c", (), "x" * 128)


@given(st.binary(max_size=120))
def test_rules_of_any_shape(data: bytes) -> None:
    """Bytes of any kind are a rule, or malformed."""
    try:
        parse_rule(told(data))
        parse_elements([told(data)])
    except MalformedError:
        pass


@given(st.sets(st.integers(1, 2**32 - 2), max_size=20).map(sorted))
def test_elements_are_read_as_they_were_put(numbers: list[int]) -> None:
    """Intervals come back with their ends, whatever the order of the parts."""
    keys = [number.to_bytes(4, "big") for number in numbers]
    pairs = [Element(keys[at], keys[at + 1]) for at in range(0, len(keys) - 1, 2)]
    asked = Scope(nft.INET, "t").put("s", pairs)
    assert parse_elements([told(one.body) for one in reversed(asked)]) == pairs


def test_many_elements_are_several_requests() -> None:
    """However many there are, no attribute is too long, and none is lost."""
    elements = [Element(number.to_bytes(16, "big"), value=bytes(20)) for number in range(2000)]
    asked = Scope(nft.INET, "t").put("s", elements)
    assert len(asked) == 5
    assert parse_elements([told(one.body) for one in asked]) == elements
    assert Scope(nft.INET, "t").put("s", []) == []


def test_concatenations_are_padded() -> None:
    """A key of several values has each at a multiple of four bytes, and its type is made of theirs."""
    assert joined(nft.PROTOCOL, nft.PORT) == Kind(12 << 6 | 13, 8, 0)
    assert joined(nft.ADDRESS[nft.IPV6], nft.PORT).size == 20
    assert key(b"\x06", b"\x00\x50", b"1234") == b"\x06\0\0\0\x00\x50\0\x001234"


def test_requests_name_what_they_are_about() -> None:
    """An error says which message and which object it was."""
    request = Scope(nft.BRIDGE, "net").new_chain("forward", Hook(2, -200))
    assert (request.op, request.target) == ("NFT_MSG_NEWCHAIN", "table bridge net: chain forward")


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_are_between_none_and_all(share: float) -> None:
    """More than all cannot be lost, nor less than nothing."""
    with pytest.raises(ValueError, match="share"):
        m.lose(share)


def test_loss_compares_bytes() -> None:
    """A packet is lost when a random number, its first byte first, is below the threshold."""
    assert m.lose(0.25) == (Numgen(2**32 - 1), Byteorder(1, 4, 4), Compare(Op.LT, b"\x40\0\0\0"))


@given(st.floats(0, 1))
def test_loss_threshold(share: float) -> None:
    """The threshold is the share, to one part of 2^32; nothing that is possible becomes impossible, and 1 is always."""
    below = m.threshold(share)
    assert 0 <= below <= m.MODULUS
    assert below / m.MODULUS == pytest.approx(share, abs=1 / m.MODULUS)
    assert bool(below) is bool(share)


def test_hooks_of_a_device_name_it() -> None:
    """A chain on an interface's way out names the interface, and others name none."""
    hooks = [
        codec.table(codec.table(Scope(family, "t").new_chain("c", hook).body, 4)[4])
        for family, hook in ((nft.NETDEV, Hook(nft.EGRESS, 0, device="eth0")), (nft.INET, Hook(nft.FORWARD, 0)))
    ]
    assert hooks == [{1: b"\0\0\0\1", 2: bytes(4), 3: b"eth0\0"}, {1: b"\0\0\0\2", 2: bytes(4)}]


# ---- which destinations are refused ----

SMALL = st.builds(
    lambda number, length: ip_network((0x0A000000 | number >> 32 - length << 32 - length & 0xFF, length)),
    st.integers(0, 255),
    st.integers(24, 32),
)


@given(st.lists(st.tuples(SMALL, st.booleans()), max_size=8), st.booleans())
def test_the_smallest_network_decides(decisions: Sequence[tuple[IPv4Network, bool]], is_open: bool) -> None:  # noqa: FBT001
    """For every address, the decision on the smallest network that has it counts, the last of equal ones, or else the rest."""
    egress = Egress(open=is_open)
    for network, allowed in decisions:
        egress = egress.decide([network], allowed=allowed)
    refused = egress.refused(4)
    for number in (0, *range(0x0A000000, 0x0A000100), 2**32 - 1):
        around = [
            (network.prefixlen, at, allowed) for at, (network, allowed) in enumerate(decisions) if ip_address(number) in network
        ]
        expected = max(around)[2] if around else is_open
        assert any(start <= number < end for start, end in refused) != expected
    for one, after in itertools.pairwise(refused):
        assert one.start < one.end < after.start


def test_protocols_are_apart() -> None:
    """What is decided about IPv4 says nothing of IPv6."""
    egress = Egress().decide([ip_network("0.0.0.0/0")], allowed=False)
    assert egress.refused(4) == [Interval(0, 2**32)]
    assert egress.refused(6) == []
    assert Egress(open=False).refused(6) == [Interval(0, 2**128)]


# ---- what a firewall asks for ----


def changes(*, private: bool = True, state: State | None = None) -> Changes:
    """Return changes of a new firewall."""
    return Changes("lab", state or State(), private=private, subnets=(ip_network("10.0.0.0/24"),))


def ops(requests: Sequence[Request]) -> list[str]:
    """Return what is asked, without the words that all have."""
    return [f"{one.op.removeprefix('NFT_MSG_')} {one.target.partition(': ')[2]}".strip() for one in requests]


def flags_of(request: Request) -> int:
    """Return the flags of a table."""
    return struct.unpack(">I", codec.table(request.body, 4)[2])[0]  # type: ignore[no-any-return]


def test_tables_of_the_host_are_owned() -> None:
    """A table where others live belongs to its socket; one in a namespace of ours goes with that."""
    for private in (True, False):
        made = changes(private=private)
        made.begin()
        made.guard_ports()
        tables = [one for one in made.requests if one.op == "NFT_MSG_NEWTABLE"]
        assert [one.target for one in tables] == ["table inet lab", "table bridge lab"]
        assert [flags_of(one) for one in tables] == [0 if private else 2] * 2


def test_only_a_namespace_of_ours_drops_what_nobody_spoke_of() -> None:
    """The policy of forwarding is to drop in ours, and to accept in the host's."""
    for private in (True, False):
        made = changes(private=private)
        made.route("br0", None, outward=True)
        (chain,) = (one for one in made.requests if one.target.endswith("chain forward"))
        assert codec.table(chain.body, 4)[5] == struct.pack(">I", 0 if private else 1)


def test_publishing_again_costs_one_request() -> None:
    """What is needed for the first published port is made once; the next one is an element of a map."""
    made = changes()
    target = Target(ip_address("10.0.0.2"), 80)
    made.publish(Published("tcp", None, 8080, 4), target)
    first = len(made.requests)
    made.publish(Published("udp", ip_address("192.0.2.1"), 8080, 4), target)
    made.unpublish(Published("tcp", None, 8080, 4))
    assert ops(made.requests[first:]) == ["NEWSETELEM elements of published4", "DELSETELEM elements of open4"]
    assert list(made.state.published) == [Published("udp", ip_address("192.0.2.1"), 8080, 4)]


def test_hairpins_are_made_once_for_each_subnet() -> None:
    """Masquerading within a subnet is asked for when something in it is first published, and for no other target."""
    made = changes()
    for number, address in enumerate(("192.0.2.1", "10.0.0.2", "10.0.0.3")):
        made.publish(Published("tcp", None, 8080 + number, 4), Target(ip_address(address), 80))
    assert ops(made.requests).count("NEWRULE rule of postrouting") == 1


def test_decisions_change_only_what_differs() -> None:
    """An interval that stays is not sent again."""
    first = changes(state=State(egress=Egress().decide([ip_network("192.0.2.0/24")], allowed=False)))
    first.route("br0", None, outward=True)
    assert ops(first.batch())[-1] == "NEWSETELEM elements of refused4"
    made = changes(state=first.state)
    assert made.batch() == []
    made.decide(made.state.egress.decide([ip_network("198.51.100.0/24")], allowed=False))
    (request,) = made.batch()
    (element,) = parse_elements([told(request.body)])
    assert element == Element(ip_address("198.51.100.0").packed, ip_address("198.51.101.0").packed)
    made.decide(first.state.egress)
    assert made.batch() == []


DECISIONS = st.lists(st.tuples(st.lists(SMALL, min_size=1, max_size=3), st.booleans()), max_size=6)


@given(DECISIONS, DECISIONS, st.booleans())
def test_decisions_of_one_batch_are_one_difference(before: Decisions, after: Decisions, is_routed: bool) -> None:  # noqa: FBT001
    """However many decisions are made in one batch, nothing is put in and taken out again, and the kernel has the last word."""
    first = changes()
    if is_routed:
        first.route("br0", None, outward=True)
    for networks, allowed in before:
        first.decide(first.state.egress.decide(networks, allowed=allowed))
    made = changes(state=first.state)
    for networks, allowed in after:
        made.decide(made.state.egress.decide(networks, allowed=allowed))
    if not is_routed:
        made.route("br0", None, outward=True)
    take, put = "NFT_MSG_DELSETELEM", "NFT_MSG_NEWSETELEM"
    held: set[Element] = set()
    for batch in (first.batch(), made.batch()):
        said = [one for one in batch if one.target.endswith("elements of refused4")]
        assert [one.op for one in said] in ([], [take], [put], [take, put])
        for one in said:
            elements = set(parse_elements([told(one.body)]))
            assert held.isdisjoint(elements) if one.op == put else held >= elements
            held ^= elements
    bounds = [(one.start, one.end) for one in made.state.egress.refused(4)]
    assert sorted((int.from_bytes(one.key, "big"), int.from_bytes(one.end or b"", "big")) for one in held) == bounds


def test_sets_of_one_batch_have_numbers_of_their_own() -> None:
    """The kernel tells the sets of a batch apart by them."""
    made = changes()
    made.begin()
    made.serve("br0", [("udp", 53)])
    made.route("br0", None, outward=True)
    made.publish(Published("tcp", None, 8080, 4), Target(ip_address("10.0.0.2"), 80))
    made.part([(("a",), ()), (("b",), ())])
    sets = [codec.table(one.body, 4)[10] for one in made.requests if one.op == "NFT_MSG_NEWSET"]
    assert len(set(sets)) == len(sets) > 8


@pytest.mark.parametrize(
    ("proto", "port"),
    [("icmp", 80), ("TCP", 80), ("tcp", 0), ("tcp", 65536), ("tcp", -1), ("tcp", True), ("tcp", "80"), ("tcp", 80.0)],
)
def test_ports_that_are_none(proto: str, port: object) -> None:
    """What is no port of a protocol that has such is refused before anything is done."""
    with pytest.raises(PlanError, match="ports" if proto in {"icmp", "TCP"} else "port"):
        check_port(proto, port, "x")  # type: ignore[arg-type]


def test_where_a_port_can_be_published() -> None:
    """Every address is one spelling for all; loopback, other protocols and what is no address are refused."""
    every = Published("tcp", None, 80, 4)
    assert check_published("tcp", None, 80, 4) == every
    assert check_published("tcp", "0.0.0.0", 80, 4) == every
    assert check_published("tcp", "::", 80, 6) == Published("tcp", None, 80, 6)
    assert check_published("udp", "192.0.2.1", 53, 4) == Published("udp", ip_address("192.0.2.1"), 53, 4)
    for host, version, why in (
        ("127.0.0.1", 4, "never leaves"),
        ("127.9.9.9", 4, "never leaves"),
        ("::1", 6, "never leaves"),
        ("::1", 4, "one protocol"),
        ("localhost", 4, "is no address"),
        ("10.0.0.0/24", 4, "is no address"),
        ("", 4, "is no address"),
    ):
        with pytest.raises(PlanError, match=why):
            check_published("tcp", host, 80, version)
